//! The fleet as the checker sees it: one record, a few instances, and what is on its way between them.
//!
//! [`BreakerRecord`], [`Policy`] and [`BreakerLedger`] are the ones that run in production. What is abstract here is the rest: an
//! instance calls and asks whenever the verdict that it knows lets it, and its task does one thing at a time, as the
//! real one does. Every message may be lost, late, or delivered twice, in any order.
//!
//! Here are the state and its environment; `instance` has the steps of the instances, `store` those of the store.

mod instance;
mod store;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use resilience_core::breaker::fleet::{
    BreakerLedger, BreakerRecord, BreakerView, Change, Counts, FleetState, LeaseAnswer, LocalPhase,
    Policy, Report,
};

/// Milliseconds of one step of time: more than there are changes of state in one.
pub(crate) const TICK: u64 = 1_000;
/// For how long the fleet stays open, and a probe is leased.
pub(crate) const OPEN: u64 = 2 * TICK;
pub(crate) const LEASE: u64 = TICK;
pub(crate) const PROBES: u32 = 2;
/// By how much the store's clock is set, or behind on the server that takes over: far more than anything lasts.
const STEP: u64 = 100 * TICK;

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
    /// An instance that ends gracefully keeps its probes.
    LeaveWithProbes,
    /// An instance that ends gracefully does not say so.
    LeaveUnsaid,
}

/// What an instance wants of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Report(Report),
    Change(Change),
    Restore(BreakerView),
    Settle(Arc<str>, u64, Option<bool>),
}

/// A request that its instance waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    /// The answer, on its way back.
    pub(crate) answer: Option<BreakerView>,
}

/// A lease that is asked for, and the answer.
type Asking = (Arc<str>, Option<(LeaseAnswer, BreakerView)>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    pub(crate) alive: bool,
    /// It was asked to end: it asks for nothing more, and gives back what it holds.
    pub(crate) closing: bool,
    /// Its last report is sent.
    said_so: bool,
    /// Number of processes under its name before it.
    lives: u8,
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
    pub(crate) left_probes: bool,
    pub(crate) left_live: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// The time that passes, of the instances and of what they measure.
    pub(crate) now: u64,
    /// How far the store's clock was set back.
    back: u64,
    pub(crate) record: BreakerRecord,
    /// The record as a replica has it.
    replica: BreakerRecord,
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
    /// Probes that no instance can give back: they end by themselves.
    stray: usize,
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
    /// Times that the store's clock is set back, or another server takes over whose clock is behind.
    pub(crate) steps_back: u8,
    /// Times that the store's clock is set forward again.
    pub(crate) steps_forward: u8,
    /// Times that a replica takes over, with a record that may be older, and a clock that is behind.
    pub(crate) failovers: u8,
    /// Instances that are asked to end.
    pub(crate) closes: u8,
    /// Processes that are started in place of those that have ended.
    pub(crate) starts: u8,
}

impl World {
    /// A fleet that has just started.
    pub(crate) fn new(size: usize, budget: Budget) -> Self {
        Self {
            now: TICK,
            back: 0,
            record: BreakerRecord::default(),
            replica: BreakerRecord::default(),
            instances: (0..size).map(|n| Instance::new(n, 0)).collect(),
            broken: Broken::default(),
            verdicts: BTreeMap::from([(0, FleetState::Closed)]),
            won: BTreeMap::new(),
            calls: BTreeMap::new(),
            out: BTreeMap::new(),
            lives: 0,
            frozen: false,
            merges: 0,
            stray: 0,
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
        self.record.view(self.shown())
    }

    /// What the store's clock shows.
    pub(super) const fn shown(&self) -> u64 {
        self.now + STEP - self.back
    }

    pub(crate) const fn is_set_back(&self) -> bool {
        self.back > 0
    }

    pub(crate) const fn set_back(&mut self) {
        self.back = STEP;
    }

    pub(crate) const fn set_forward(&mut self) {
        self.back = 0;
    }

    pub(crate) fn epoch_of(&self, n: usize) -> u64 {
        self.instances[n].ledger.known().epoch
    }

    pub(crate) fn state_of(&self, n: usize) -> FleetState {
        self.instances[n].ledger.known().state
    }

    /// The store forgets everything. That takes longer than it has had changes within one step of time.
    pub(crate) fn flush(&mut self) {
        self.record = BreakerRecord::default();
        self.now += TICK;
        self.lives += 1;
    }

    /// The replica gets the record as it is now.
    pub(crate) fn replicate(&mut self) {
        self.replica = self.record.clone();
    }

    /// The replica takes over.
    pub(crate) fn fail_over(&mut self) {
        self.record = self.replica.clone();
        self.back = STEP;
        self.now += TICK;
        self.lives += 1;
    }

    /// A process takes the place of one that has ended, under its name.
    pub(crate) fn start(&mut self, n: usize) {
        let one = &mut self.instances[n];
        let (late, late_ask) = (one.late.take(), one.late_ask.take());
        self.instances[n] = Instance {
            late,
            late_ask,
            ..Instance::new(n, self.instances[n].lives + 1)
        };
    }

    pub(crate) fn crash(&mut self, n: usize) {
        self.stray += self.probes_of(n);
        let one = &mut self.instances[n];
        one.alive = false;
        // What is under way may still arrive.
        one.late = one.waiting.take().and_then(|waiting| match waiting.answer {
            None => Some(waiting.request),
            Some(_) => None,
        });
        one.push = None;
        one.asking = one.asking.take().filter(|(_, answer)| answer.is_none());
        one.held.clear();
    }
}

impl Instance {
    fn new(n: usize, lives: u8) -> Self {
        let voter = Arc::from(["a", "b", "c"][n]);
        let name = match lives {
            0 => Arc::clone(&voter),
            _ => format!("{voter}{lives}").into(),
        };
        Self {
            alive: true,
            closing: false,
            said_so: false,
            lives,
            ledger: BreakerLedger::new(name, voter),
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
        }
    }
}
