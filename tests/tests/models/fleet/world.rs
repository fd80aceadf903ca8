//! The fleet as the checker sees it: one record, a few instances, and what is on its way between them.
//!
//! [`BreakerRecord`], [`Policy`] and [`BreakerLedger`] are the ones that run in production. What is abstract here is the rest: an
//! instance calls and asks whenever the verdict that it knows lets it, and its task does one thing at a time, as the
//! real one does. Every message may be lost, late, or delivered twice; the order is whatever the checker likes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use resilience_core::breaker::fleet::{
    BreakerLedger, BreakerRecord, BreakerView, Change, Counts, FleetState, LeaseAnswer, LocalPhase,
    LocalState, Policy, Report, ViewAge,
};

/// Milliseconds of one step of time: more than there are changes of state in one.
pub(crate) const TICK: u64 = 1_000;
/// For how long the fleet stays open, and a probe is leased.
pub(crate) const OPEN: u64 = 2 * TICK;
pub(crate) const LEASE: u64 = TICK;
pub(crate) const PROBES: u32 = 2;

pub(crate) fn policy(stages: u8) -> Policy {
    Policy {
        failure_ppm: Some(500_000),
        slow_ppm: None,
        minimum_calls: 2,
        min_instances: 2,
        quorum_ppm: 100_000,
        probes: PROBES,
        probe_failure_ppm: 500_000,
        max_half_open: Duration::from_millis(3 * TICK),
        stages,
        stage: Duration::from_millis(TICK),
        stable_after: Duration::from_millis(60 * TICK),
    }
}

/// A mistake to build in, to see that the checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// A change is made whatever the epoch it is based on.
    ChangeWithoutLooking,
    /// A restore overwrites what is newer.
    RestoreOverNewer,
    /// An open state whose time is over is restored without an end.
    RestoreWithoutEnd,
    /// A repeated report is merged again.
    ReportWithoutSequence,
    /// A report counts whatever the epoch its calls were made under.
    ReportOfAnyEpoch,
    /// Probes are granted without counting them.
    LeaseWithoutBudget,
    /// One failing instance is enough.
    QuorumOfOne,
    /// An instance takes the last thing that it hears for what holds.
    AdoptWhatIsOlder,
    /// An instance that left the verdict while the store was frozen says and does nothing about it.
    KeepToItself,
}

/// What an instance wants of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Report(Report),
    Change(Change),
    Restore(BreakerView),
    Settle(Arc<str>, u64, Option<bool>),
}

/// A wish that its instance waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Waiting {
    pub(crate) wish: Request,
    /// The answer, on its way back.
    pub(crate) answer: Option<BreakerView>,
}

/// A lease that is asked for, and the answer.
type Asking = (Arc<str>, Option<(LeaseAnswer, BreakerView)>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    pub(crate) alive: bool,
    ledger: BreakerLedger,
    totals: Counts,
    failing: bool,
    /// The state of its own machine beside the verdict.
    local: LocalPhase,
    /// Until when its own machine keeps the open state, the fleet's or its own.
    open_until: u64,
    pub(crate) waiting: Option<Waiting>,
    /// Given up by the instance, but not gone: the store may still get it.
    pub(crate) late: Option<Request>,
    /// Asks for a probe: the lease, and the answer on its way back.
    pub(crate) asking: Option<Asking>,
    /// A lease that the instance no longer waits for, but that the store may still grant.
    pub(crate) late_ask: Option<Arc<str>>,
    pub(crate) push: Option<BreakerView>,
    /// Probes that it holds, and their epochs.
    pub(crate) held: BTreeMap<Arc<str>, u64>,
    asked: u32,
}

/// What must never be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) two_winners: bool,
    pub(crate) one_epoch_two_verdicts: bool,
    pub(crate) epoch_reused: bool,
    pub(crate) epoch_back: bool,
    pub(crate) probes_over_budget: bool,
    pub(crate) counted_twice: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) record: BreakerRecord,
    pub(crate) instances: Vec<Instance>,
    pub(crate) broken: Broken,
    /// By epoch: the state that it stands for.
    verdicts: BTreeMap<u64, FleetState>,
    /// Changes that won, by the life of the record and the epoch that they were based on.
    won: BTreeMap<(u8, u64), u8>,
    /// Calls that were judged under each epoch.
    calls: BTreeMap<u64, u64>,
    /// Probes out: their epoch, when they expire, and the life of the record that granted them.
    out: BTreeMap<Arc<str>, (u64, u64, u8)>,
    lives: u8,
    /// The store takes requests and does nothing.
    pub(crate) frozen: bool,
    merges: u64,
    pub(crate) budget: Budget,
}

/// How much of what may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) calls: u8,
    pub(crate) reports: u8,
    pub(crate) asks: u8,
    pub(crate) ticks: u8,
    /// Lost requests and answers.
    pub(crate) losses: u8,
    /// Requests delivered twice.
    pub(crate) repeats: u8,
    pub(crate) crashes: u8,
    pub(crate) flushes: u8,
    /// Times that the store freezes.
    pub(crate) freezes: u8,
    /// Results of probes that instances send without the fleet.
    pub(crate) own_probes: u8,
    /// Resets of one instance by hand.
    pub(crate) resets: u8,
}

impl World {
    /// A fleet that has just started.
    pub(crate) fn new(size: usize, budget: Budget) -> Self {
        let name = |n: usize| Arc::from(["a", "b", "c"][n]);
        let instance = |n| Instance {
            alive: true,
            ledger: BreakerLedger::new(name(n), name(n)),
            totals: Counts::default(),
            failing: false,
            local: LocalPhase::Passing,
            open_until: 0,
            waiting: None,
            late: None,
            asking: None,
            late_ask: None,
            push: None,
            held: BTreeMap::new(),
            asked: 0,
        };
        Self {
            now: TICK,
            record: BreakerRecord::default(),
            instances: (0..size).map(instance).collect(),
            broken: Broken::default(),
            verdicts: BTreeMap::from([(0, FleetState::Closed)]),
            won: BTreeMap::new(),
            calls: BTreeMap::new(),
            out: BTreeMap::new(),
            lives: 0,
            frozen: false,
            merges: 0,
            budget,
        }
    }

    /// As above, but every instance knows that the fleet has opened, and that its time is over.
    pub(crate) fn opened(size: usize, budget: Budget) -> Self {
        let mut world = Self::new(size, budget);
        let change = Change {
            expected: 0,
            to: FleetState::Open,
            lasting_ms: OPEN,
            trips: 1,
            by: "a".into(),
            cause: String::new(),
        };
        world.touch(|record, now| record.change(&change, now));
        for n in 0..size {
            world.hear(n, Mistake::None, &policy(0));
        }
        world.now += OPEN;
        world
    }

    pub(crate) fn view(&self) -> BreakerView {
        self.record.view(self.now)
    }

    pub(crate) fn epoch_of(&self, n: usize) -> u64 {
        self.instances[n].ledger.known().epoch
    }

    pub(crate) fn state_of(&self, n: usize) -> FleetState {
        self.instances[n].ledger.known().state
    }

    // --- what an instance does

    pub(crate) fn may_call(&self, n: usize) -> bool {
        self.passes(n)
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
        };
        let report = one.ledger.next_report(&standing, now);
        one.wait_for(Request::Report(report));
    }

    pub(crate) fn may_ask(&self, n: usize) -> bool {
        let one = &self.instances[n];
        let half_open = one.local == LocalPhase::Following && one.open_until <= self.now;
        half_open && one.asking.is_none() && one.held.len() < PROBES as usize
    }

    pub(crate) fn ask(&mut self, n: usize) {
        let one = &mut self.instances[n];
        one.asked += 1;
        one.asking = Some((format!("{n}-{}", one.asked).into(), None));
    }

    /// A probe comes back to the instance that holds it.
    pub(crate) fn end_probe(&mut self, n: usize, success: Option<bool>) {
        if let Some((lease, epoch)) = self.instances[n].held.pop_first() {
            self.out.remove(&lease);
            self.instances[n].wait_for(Request::Settle(lease, epoch, success));
        }
    }

    // --- what the store does

    /// The store does what the instance waits for.
    pub(crate) fn serve(&mut self, n: usize, mistake: Mistake) {
        let wish = self.instances[n].waiting.as_ref().map(|w| w.wish.clone());
        if let Some(wish) = wish {
            self.grant(&wish, mistake);
            let view = self.view();
            if let Some(waiting) = &mut self.instances[n].waiting {
                waiting.answer = Some(view);
            }
        }
    }

    /// The store does what no instance waits for any more.
    pub(crate) fn serve_late(&mut self, n: usize, mistake: Mistake) {
        if let Some(wish) = self.instances[n].late.take() {
            self.grant(&wish, mistake);
        }
    }

    /// The store grants what no instance waits for any more.
    pub(crate) fn serve_late_ask(&mut self, n: usize) {
        if let Some(lease) = self.instances[n].late_ask.take() {
            self.touch(|record, now| record.lease(&lease, PROBES, LEASE, now));
        }
    }

    fn grant(&mut self, wish: &Request, mistake: Mistake) {
        let before = self.view().epoch;
        self.do_it(wish, mistake);
        self.broken.epoch_back |= self.view().epoch < before;
    }

    fn do_it(&mut self, wish: &Request, mistake: Mistake) {
        match wish {
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

    /// One step on the record. A new epoch is pushed to everybody.
    fn touch<T>(&mut self, step: impl FnOnce(&mut BreakerRecord, u64) -> T) -> T {
        let before = self.record.view(self.now).epoch;
        let done = step(&mut self.record, self.now);
        let view = self.view();
        if view.epoch != before {
            let newest = self
                .verdicts
                .last_key_value()
                .map_or(0, |(epoch, _)| *epoch);
            let known = self.verdicts.insert(view.epoch, view.state);
            self.broken.one_epoch_two_verdicts |= known.is_some_and(|state| state != view.state);
            self.broken.epoch_reused |= known.is_none() && view.epoch < newest;
            for one in self.instances.iter_mut().filter(|one| one.alive) {
                one.push = Some(view.clone());
            }
        }
        done
    }

    // --- what comes back to an instance

    /// The answer that the instance waits for arrives.
    pub(crate) fn deliver(&mut self, n: usize, mistake: Mistake, policy: &Policy) {
        let Some(Waiting {
            wish,
            answer: Some(view),
        }) = self.instances[n].waiting.take()
        else {
            return;
        };
        match wish {
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
        let Some(Waiting { wish, answer }) = one.waiting.take() else {
            return;
        };
        if sent && answer.is_none() {
            one.late = Some(wish.clone());
        }
        if let Request::Report(report) = wish {
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

    // --- environment

    /// The store forgets everything. That takes longer than it has had changes within one step of time.
    pub(crate) fn flush(&mut self) {
        self.record = BreakerRecord::default();
        self.now += TICK;
        self.lives += 1;
    }

    pub(crate) fn crash(&mut self, n: usize) {
        let one = &mut self.instances[n];
        one.alive = false;
        // What is under way may still arrive.
        one.late = one.waiting.take().and_then(|waiting| match waiting.answer {
            None => Some(waiting.wish),
            Some(_) => None,
        });
        one.push = None;
        one.asking = one.asking.take().filter(|(_, answer)| answer.is_none());
        one.held.clear();
    }
}

impl Instance {
    fn wait_for(&mut self, wish: Request) {
        self.waiting = Some(Waiting { wish, answer: None });
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
