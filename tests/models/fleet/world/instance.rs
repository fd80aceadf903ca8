//! What an instance does, and what comes back to it.

use std::sync::Arc;

use resilience_core::breaker::fleet::{
    BreakerLedger, BreakerView, Change, Counts, FleetState, LeaseAnswer, LocalPhase, LocalState,
    Policy, ViewAge,
};

use super::{Instance, Mistake, OPEN, PROBES, Request, TICK, Waiting, World};

/// What an instance does.
impl World {
    pub(crate) fn may_call(&self, n: usize) -> bool {
        self.passes(n) && !self.instances[n].closing
    }

    pub(crate) fn passes(&self, n: usize) -> bool {
        matches!(self.local(n), LocalPhase::Passing | LocalPhase::Recovered)
    }

    /// An open time of its own that is over leads to probes of its own.
    pub(crate) fn local(&self, n: usize) -> LocalPhase {
        let one = &self.instances[n];
        match one.local {
            LocalPhase::Open if one.open_until <= self.now => LocalPhase::Probing,
            local => local,
        }
    }

    /// The question for a probe was not answered: the instance probes alone.
    pub(crate) fn lose_ask(&mut self, n: usize) {
        let alone = self.instances[n].local == LocalPhase::Following;
        let frozen = self.frozen;
        let one = &mut self.instances[n];
        let Some((lease, answer)) = one.asking.take() else {
            return;
        };
        if frozen && answer.is_none() {
            one.late_ask = Some(lease);
        }
        if alone {
            one.local = LocalPhase::Probing;
        }
    }

    /// The instance's own probes have passed or failed.
    pub(crate) fn end_own(&mut self, n: usize, ok: bool) {
        let now = self.now;
        let one = &mut self.instances[n];
        if ok {
            one.local = LocalPhase::Recovered;
        } else {
            one.local = LocalPhase::Open;
            one.open_until = now + OPEN;
        }
    }

    pub(crate) fn reset_one(&mut self, n: usize) {
        self.instances[n].local = LocalPhase::Passing;
    }

    pub(crate) fn call(&mut self, n: usize, ok: bool) {
        let epoch = self.epoch_of(n);
        let one = &mut self.instances[n];
        if ok {
            one.totals.success += 1;
        } else {
            one.totals.failure += 1;
        }
        one.failing = !ok;
        *self.calls.entry(epoch).or_default() += 1;
    }

    pub(crate) fn report(&mut self, n: usize) {
        let now = self.now;
        let one = &mut self.instances[n];
        let standing = LocalState {
            totals: one.totals,
            failing: one.failing,
            bucket_ms: TICK,
            live_ms: 4 * TICK,
            state: None,
        };
        let report = one.ledger.next_report(&standing, now);
        one.wait_for(Request::Report(report));
    }

    pub(crate) fn may_ask(&self, n: usize) -> bool {
        let one = &self.instances[n];
        let half_open = one.local == LocalPhase::Following && one.open_until <= self.now;
        half_open && !one.closing && one.asking.is_none() && one.held.len() < PROBES as usize
    }

    pub(crate) fn ask(&mut self, n: usize) {
        let one = &mut self.instances[n];
        one.asked += 1;
        let lease = format!("{n}-{}-{}", one.lives, one.asked);
        one.asking = Some((lease.into(), None));
    }

    /// A probe comes back to the instance that holds it.
    pub(crate) fn end_probe(&mut self, n: usize, success: Option<bool>) {
        if let Some((lease, epoch)) = self.instances[n].held.pop_first() {
            self.out.remove(&lease);
            self.instances[n].wait_for(Request::Settle(lease, epoch, success));
        }
    }
}

/// How an instance ends gracefully, as its task does.
impl World {
    pub(crate) fn close(&mut self, n: usize) {
        let one = &mut self.instances[n];
        one.closing = true;
        one.push = None;
    }

    /// The next step of the end: gives the probes back, then says that it leaves.
    pub(crate) fn end_gracefully(&mut self, n: usize, mistake: Mistake) {
        let keeps = mistake == Mistake::LeaveWithProbes;
        if !self.instances[n].held.is_empty() && !keeps {
            return self.end_probe(n, None);
        }
        let one = &mut self.instances[n];
        let standing = LocalState {
            totals: one.totals,
            failing: false,
            bucket_ms: TICK,
            live_ms: 0,
            state: None,
        };
        let report = one.ledger.last_report(Some(&standing));
        match report {
            Some(report) if !one.said_so && mistake != Mistake::LeaveUnsaid => {
                one.said_so = true;
                one.wait_for(Request::Report(report));
            }
            _ => self.leave(n),
        }
    }

    /// Everything is written. What the store still has of it is counted.
    fn leave(&mut self, n: usize) {
        let one = &mut self.instances[n];
        one.alive = false;
        one.held.clear();
        // A probe that is granted now is not given back.
        self.stray += usize::from(one.asking.is_some());
        if let Some((lease, None)) = one.asking.take() {
            one.late_ask = Some(lease);
        }
        let (view, living) = (self.view(), self.living());
        let probes: usize = living.iter().map(|n| self.probes_of(*n)).sum();
        self.broken.left_probes |= view.leased as usize > probes + self.stray;
        let living = living.len() as u64;
        self.broken.left_live |= view.live > living || view.failing > living;
    }

    /// Probes that it holds, that it gives back, and the one that it may be about to get.
    pub(super) fn probes_of(&self, n: usize) -> usize {
        let one = &self.instances[n];
        let waiting = one.waiting.as_ref().map(|waiting| &waiting.request);
        let settled = |request: Option<&Request>| matches!(request, Some(Request::Settle(..)));
        let on_the_way = usize::from(settled(waiting)) + usize::from(settled(one.late.as_ref()));
        one.held.len() + on_the_way + usize::from(one.asking.is_some())
    }

    pub(crate) fn living(&self) -> Vec<usize> {
        let alive = |n: &usize| self.instances[*n].alive;
        (0..self.instances.len()).filter(alive).collect()
    }
}

/// What comes back to an instance.
impl World {
    /// The answer that the instance waits for arrives.
    pub(crate) fn deliver(&mut self, n: usize, mistake: Mistake, policy: &Policy) {
        let Some(Waiting {
            request,
            answer: Some(view),
        }) = self.instances[n].waiting.take()
        else {
            return;
        };
        if self.instances[n].closing {
            return;
        }
        match request {
            Request::Report(_) => {
                self.instances[n].ledger.reported();
                self.see(n, &view, mistake, policy);
            }
            Request::Change(change) if view.epoch > change.expected => {
                self.see(n, &view, mistake, policy);
            }
            Request::Change(_) => {}
            Request::Restore(_) => {
                if self.instances[n].ledger.view_age(&view) != ViewAge::Stale {
                    self.see(n, &view, mistake, policy);
                }
            }
            Request::Settle(..) => self.see(n, &view, mistake, policy),
        }
    }

    pub(crate) fn deliver_ask(&mut self, n: usize, mistake: Mistake, policy: &Policy) {
        let Some((lease, Some((answer, view)))) = self.instances[n].asking.take() else {
            return;
        };
        if let LeaseAnswer::Granted { epoch } = answer {
            self.instances[n].held.insert(lease, epoch);
        }
        if self.instances[n].closing {
            return;
        }
        self.see(n, &view, mistake, policy);
    }

    pub(crate) fn hear(&mut self, n: usize, mistake: Mistake, policy: &Policy) {
        if let Some(view) = self.instances[n].push.take() {
            self.see(n, &view, mistake, policy);
        }
    }

    /// No answer came. `sent`: the store may have done it, or may still do it.
    pub(crate) fn give_up(&mut self, n: usize, sent: bool) {
        let now = self.now;
        let one = &mut self.instances[n];
        let Some(Waiting { request, answer }) = one.waiting.take() else {
            return;
        };
        if sent && answer.is_none() {
            one.late = Some(request.clone());
        }
        if let Request::Report(report) = request {
            one.ledger.not_reported(report, sent, now);
        }
    }

    /// As the task does: adopt what is newer, bring back what was lost, propose what is due.
    fn see(&mut self, n: usize, view: &BreakerView, mistake: Mistake, policy: &Policy) {
        let now = self.now;
        let before = self.epoch_of(n);
        let local = self.local(n);
        let one = &mut self.instances[n];
        if one.ledger.view_age(view) == ViewAge::Stale {
            if mistake != Mistake::AdoptWhatIsOlder {
                let left = one.open_until.saturating_sub(now);
                let lost = one.ledger.lost(left, now);
                return one.wait_for(Request::Restore(lost));
            }
            let name = Arc::from(["a", "b", "c"][n]);
            one.ledger = BreakerLedger::new(Arc::clone(&name), name);
        }
        if one.ledger.view_age(view) == ViewAge::Newer {
            one.failing = false;
        }
        if one.obeys(view, local, mistake) {
            one.follow(view, local, now);
        }
        one.ledger.adopt(&kept(view), one.totals, now);
        let local = match mistake {
            Mistake::KeepToItself => LocalPhase::Passing,
            _ => self.local(n),
        };
        let one = &mut self.instances[n];
        let lasting = |to: FleetState| match to {
            FleetState::Open => OPEN,
            FleetState::RampUp(_) => TICK,
            _ => 0,
        };
        let change = one
            .ledger
            .propose(policy, view, local, |proposal| lasting(proposal.to));
        if let Some(change) = change {
            one.wait_for(Request::Change(Change {
                cause: String::new(),
                ..change
            }));
        }
        self.broken.epoch_back |= self.epoch_of(n) < before;
        // What it knows already tells it nothing.
        let known = self.epoch_of(n);
        let one = &mut self.instances[n];
        one.push = one.push.take().filter(|view| view.epoch != known);
    }
}

impl Instance {
    fn wait_for(&mut self, request: Request) {
        self.waiting = Some(Waiting {
            request,
            answer: None,
        });
    }

    fn obeys(&self, view: &BreakerView, local: LocalPhase, mistake: Mistake) -> bool {
        match mistake {
            Mistake::KeepToItself => self.ledger.view_age(view) == ViewAge::Newer,
            _ => self.ledger.must_obey(view, local),
        }
    }

    /// Its machine does what the verdict says.
    fn follow(&mut self, view: &BreakerView, local: LocalPhase, now: u64) {
        let own = match local {
            LocalPhase::Open if self.ledger.view_age(view) == ViewAge::Same => self.open_until,
            _ => 0,
        };
        (self.local, self.open_until) = match view.state {
            FleetState::Open => (LocalPhase::Following, own.max(now + view.remaining_ms)),
            FleetState::HalfOpen => (LocalPhase::Following, own),
            FleetState::RampUp(_) => (LocalPhase::Passing, now + view.remaining_ms),
            FleetState::Closed => (LocalPhase::Passing, 0),
        };
    }

    pub(crate) const fn is_free(&self) -> bool {
        self.alive && self.waiting.is_none()
    }
}

/// The part of a view that an instance keeps beyond the moment: fewer states to tell apart.
fn kept(view: &BreakerView) -> BreakerView {
    BreakerView {
        window: Counts::default(),
        live: 0,
        failing: 0,
        leased: 0,
        probes: Counts::default(),
        ..view.clone()
    }
}
