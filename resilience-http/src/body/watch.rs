//! Progress of a guarded body, and the guards that wait for its end.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use resilience_core::{Verdict, completion::Guard, deadline::Deadline};
use tokio::time::Instant;

use super::policy::{PartialRead, Policy};

/// How a body ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Whole,
    Broken,
    /// The reader dropped it.
    Dropped {
        /// How long the reader had been waiting for data, if it was waiting.
        waited: Option<Duration>,
        too_late: bool,
    },
}

/// The guard of one layer, and that layer's verdict on the head.
pub(super) struct HeldGuard {
    guard: Box<dyn Guard + Send>,
    head: Verdict,
    policy: Policy,
}

impl HeldGuard {
    pub(super) fn new(
        policy: Policy,
        head: Verdict,
        mut guard: impl Guard + Send + 'static,
    ) -> Self {
        // A failed head is final, and settled now. The permit stays held: the server is still
        // sending.
        if head.is_failure() {
            guard.settle(head);
        }
        Self {
            guard: Box::new(guard),
            head,
            policy,
        }
    }

    pub(super) fn name(&self) -> Option<Arc<str>> {
        self.guard.name().cloned()
    }

    fn settle(mut self, end: End) {
        self.guard.settle(self.verdict(end));
    }

    fn verdict(&self, end: End) -> Verdict {
        let (waited, too_late) = match end {
            End::Whole => return self.head,
            End::Broken => return Verdict::transient(),
            End::Dropped { waited, too_late } => (waited, too_late),
        };
        match self.policy.partial_read {
            PartialRead::Ignored => Verdict::Ignored,
            PartialRead::Failed => Verdict::transient(),
            PartialRead::AsHead => {
                let bound = self.policy.stalled_after;
                match waited {
                    Some(waited) if too_late || waited >= bound => Verdict::transient(),
                    _ => self.head,
                }
            }
        }
    }
}

/// The guards of one body. Shared with the response's extensions, where outer layers find it.
#[derive(Default)]
pub(super) struct GuardSet(Mutex<State>);

enum State {
    Open(Vec<HeldGuard>),
    Ended(End),
}

impl Default for State {
    fn default() -> Self {
        Self::Open(Vec::new())
    }
}

impl GuardSet {
    /// Keeps a guard until the end, or settles it if the body has ended.
    pub(super) fn add(&self, held: HeldGuard) {
        let end = match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Open(all) => return all.push(held),
            State::Ended(end) => *end,
        };
        held.settle(end);
    }

    /// Ends the body; the first end counts. Guards are settled and dropped outside of the lock.
    fn end(&self, end: End) {
        let all = match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Ended(_) => return,
            open => std::mem::replace(open, State::Ended(end)),
        };
        if let State::Open(all) = all {
            all.into_iter().for_each(|held| held.settle(end));
        }
    }
}

/// Progress of one body. Dropping it ends the body as dropped, unless it has ended.
pub(super) struct Watch {
    guards: Arc<GuardSet>,
    name: Arc<str>,
    deadline: Option<Deadline>,
    progress: Progress,
    late: bool,
}

#[derive(Clone, Copy)]
enum Progress {
    /// The reader has received all data so far.
    Idle,
    /// Inside the inner body's `poll_frame`: a body dropped here has panicked.
    Polling(Option<Instant>),
    /// The reader has been waiting for data since then.
    Waiting(Instant),
}

impl Watch {
    pub(super) fn new(guards: Arc<GuardSet>, name: Arc<str>, deadline: Option<Deadline>) -> Self {
        Self {
            guards,
            name,
            deadline,
            progress: Progress::Idle,
            late: false,
        }
    }

    pub(super) fn polling(&mut self) {
        self.progress = match self.progress {
            Progress::Waiting(since) => Progress::Polling(Some(since)),
            _ => Progress::Polling(None),
        };
    }

    pub(super) fn waiting(&mut self) {
        self.progress = match self.progress {
            Progress::Polling(Some(since)) => Progress::Waiting(since),
            _ => Progress::Waiting(Instant::now()),
        };
    }

    pub(super) fn progress(&mut self) {
        self.progress = Progress::Idle;
    }

    /// Whether this is the second frame after the deadline. The first passes: it may be the last
    /// frame of the body, and have arrived in time, which only the next poll can tell.
    pub(super) fn late_again(&mut self) -> bool {
        let late = self.deadline.is_some_and(Deadline::is_past);
        std::mem::replace(&mut self.late, late)
    }

    pub(super) fn whole(&mut self) {
        self.progress = Progress::Idle;
        self.guards.end(End::Whole);
    }

    pub(super) fn broken(&mut self) {
        self.progress = Progress::Idle;
        self.guards.end(End::Broken);
    }

    pub(super) fn dropped(&mut self) {
        let waited = match self.progress {
            Progress::Idle => None,
            Progress::Waiting(since) => Some(since.elapsed()),
            Progress::Polling(_) => return self.broken(),
        };
        // Another timer may have fired for the same deadline, and timers and clocks differ by up to
        // a tick.
        let tick = Duration::from_millis(1);
        let too_late = self.deadline.is_some_and(|end| end.remaining() < tick);
        self.guards.end(End::Dropped { waited, too_late });
    }

    pub(super) const fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    pub(super) const fn name(&self) -> &Arc<str> {
        &self.name
    }

    #[cfg(feature = "client")]
    pub(super) const fn guards(&self) -> &Arc<GuardSet> {
        &self.guards
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.dropped();
    }
}

impl fmt::Debug for GuardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardSet").finish_non_exhaustive()
    }
}
