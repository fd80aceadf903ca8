//! What the store does.

use std::sync::Arc;

use resilience_core::breaker::fleet::{
    BreakerRecord, BreakerView, FleetState, LeaseAnswer, Report,
};

use super::{LEASE, Mistake, PROBES, Request, World};

impl World {
    /// The store does what the instance waits for.
    pub(crate) fn serve(&mut self, n: usize, mistake: Mistake) {
        let request = self.instances[n]
            .waiting
            .as_ref()
            .map(|w| w.request.clone());
        if let Some(request) = request {
            self.grant(&request, mistake);
            let view = self.view();
            if let Some(waiting) = &mut self.instances[n].waiting {
                waiting.answer = Some(view);
            }
        }
    }

    /// The store does what no instance waits for any more.
    pub(crate) fn serve_late(&mut self, n: usize, mistake: Mistake) {
        if let Some(request) = self.instances[n].late.take() {
            self.grant(&request, mistake);
        }
    }

    /// The store grants what no instance waits for any more.
    pub(crate) fn serve_late_ask(&mut self, n: usize) {
        if let Some(lease) = self.instances[n].late_ask.take() {
            self.touch(|record, now| record.lease(&lease, PROBES, LEASE, now));
        }
    }

    fn grant(&mut self, request: &Request, mistake: Mistake) {
        let before = self.view().epoch;
        self.do_it(request, mistake);
        self.broken.epoch_back |= self.view().epoch < before;
    }

    fn do_it(&mut self, request: &Request, mistake: Mistake) {
        match request {
            Request::Report(report) => self.merge(report.clone(), mistake),
            Request::Change(change) => {
                let mut change = change.clone();
                let based_on = change.expected;
                if mistake == Mistake::ChangeWithoutLooking {
                    change.expected = self.view().epoch;
                }
                if self.touch(|record, now| record.change(&change, now)) {
                    let wins = self.won.entry((self.lives, based_on)).or_default();
                    *wins += 1;
                    self.broken.two_winners |= *wins > 1;
                }
            }
            Request::Restore(known) => self.restore(known, mistake),
            Request::Settle(lease, epoch, success) => {
                self.touch(|record, now| record.settle(lease, *epoch, *success, now));
            }
        }
    }

    fn restore(&mut self, known: &BreakerView, mistake: Mistake) {
        let over = known.state == FleetState::Open && known.remaining_ms == 0;
        let newer = known.epoch > self.view().epoch;
        match mistake {
            Mistake::RestoreOverNewer => self.record = BreakerRecord::default(),
            Mistake::RestoreWithoutEnd if over && newer => {
                let mut endless = known.clone();
                endless.remaining_ms = u64::MAX / 4;
                self.touch(|record, now| record.restore(&endless, now));
                return;
            }
            _ => {}
        }
        self.touch(|record, now| record.restore(known, now));
    }

    fn merge(&mut self, mut report: Report, mistake: Mistake) {
        self.merges += u64::from(mistake == Mistake::ReportWithoutSequence);
        match mistake {
            Mistake::ReportWithoutSequence => report.sequence = 1_000 + self.merges,
            Mistake::ReportOfAnyEpoch => report.epoch = self.view().epoch,
            _ => {}
        }
        self.touch(|record, now| record.report(&report, now));
        let view = self.view();
        let made = self.calls.get(&view.epoch).copied().unwrap_or_default();
        self.broken.counted_twice |= view.window.total() > made;
    }

    pub(crate) fn serve_ask(&mut self, n: usize, mistake: Mistake) {
        let Some((lease, None)) = self.instances[n].asking.clone() else {
            return;
        };
        let budget = match mistake {
            Mistake::LeaseWithoutBudget => u32::MAX,
            _ => PROBES,
        };
        let answer = self.touch(|record, now| record.lease(&lease, budget, LEASE, now));
        if let LeaseAnswer::Granted { epoch } = answer {
            self.out
                .insert(Arc::clone(&lease), (epoch, self.now + LEASE, self.lives));
            self.count_probes(epoch);
        }
        let view = self.view();
        self.instances[n].asking = Some((lease, Some((answer, view))));
    }

    fn count_probes(&mut self, epoch: u64) {
        let (now, lives) = (self.now, self.lives);
        let out = self
            .out
            .values()
            .filter(|(of, until, life)| *of == epoch && *until > now && *life == lives)
            .count() as u64;
        self.broken.probes_over_budget |= out + self.view().probes.total() > u64::from(PROBES);
    }

    /// One step on the record. A new epoch is pushed to every live instance.
    pub(super) fn touch<T>(&mut self, step: impl FnOnce(&mut BreakerRecord, u64) -> T) -> T {
        let shown = self.shown();
        let before = self.record.view(shown).epoch;
        let done = step(&mut self.record, shown);
        let view = self.view();
        if view.epoch != before {
            let newest = self
                .verdicts
                .last_key_value()
                .map_or(0, |(epoch, _)| *epoch);
            let known = self.verdicts.insert(view.epoch, view.state);
            self.broken.one_epoch_two_verdicts |= known.is_some_and(|state| state != view.state);
            self.broken.epoch_reused |= known.is_none() && view.epoch < newest;
            for one in self
                .instances
                .iter_mut()
                .filter(|one| one.alive && !one.closing)
            {
                one.push = Some(view.clone());
            }
        }
        done
    }
}
