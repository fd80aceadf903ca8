//! Work under a claim: runs in a task of its own, under a lease that is renewed, and ends with a recorded outcome.

use std::{any::Any, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::{JoinError, JoinHandle},
    time::Instant,
};
use tracing::instrument::{Instrument, WithSubscriber};

use super::{
    attempt::{Attempt, CURRENT, HeldClaim},
    heartbeat::Heartbeat,
    key::Fingerprint,
    outcome::{Outcomes, Recorded},
    reconcile::{InDoubt, Reconciled},
    record::{Claim, Previous, Takeover},
    settlement::{Decided, Settlement},
    shared::{Counted, Shared},
};
use crate::{
    admission,
    deadline::{self, Deadline},
    error::{Pattern, Reason},
    fleet::InProgress,
};

/// A granted claim and what its attempt needs.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// A shutdown waits for it, until the work has a task.
    pub(super) in_progress: Option<InProgress>,
    pub(super) key: Arc<str>,
    pub(super) print: Fingerprint,
    pub(super) claim: Arc<Claim>,
    /// `None`: without protection.
    pub(super) held: Option<HeldClaim>,
    pub(super) checkpoint: Option<Bytes>,
    /// The checkpoint as the store has it.
    pub(super) sealed_checkpoint: Option<Bytes>,
    pub(super) previous: Previous,
    /// Just before the claim that was granted.
    pub(super) asked: Instant,
    /// The handle's own store does not know of this claim, and is to be told the outcome.
    pub(super) replicate: bool,
}

/// How an attempt ended, for the caller.
pub(super) enum Ending<R> {
    /// The work's result, and what the record says of it.
    Result(R, Recorded),
    Panicked(Box<dyn Any + Send>),
    /// An earlier attempt had done the work.
    Reconciled(Bytes),
    /// The work was cancelled, is in doubt, or its outcome is held back.
    Rejected(Reason),
}

/// A caller that waits for the ending.
pub(super) struct Caller<R> {
    pub(super) sender: oneshot::Sender<Ending<R>>,
    pub(super) deadline: Option<Deadline>,
}

impl Worker {
    /// Starts the work. It goes on when the receiver is dropped, and holds the permits of the calls that it was started in; a
    /// shutdown of the handle waits for it.
    pub(super) fn start<R, O, W, Fut>(
        mut self: Box<Self>,
        outcomes: Arc<O>,
        work: W,
    ) -> oneshot::Receiver<Ending<R>>
    where
        R: Send + 'static,
        O: Outcomes<R>,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let deadline = deadline::current();
        let caller = Caller { sender, deadline };
        let shared = Arc::clone(&self.shared);
        let held = admission::held();
        let work = move |attempt| held.carry(async move { work(attempt).await });
        let in_progress = self.in_progress.take();
        let supervised = async move { self.supervise(outcomes, work, caller).await };
        let supervised = supervised.in_current_span().with_current_subscriber();
        shared.tasks.spawn(&Handle::current(), supervised);
        drop(in_progress);
        receiver
    }

    async fn supervise<R, O, W, Fut>(&self, outcomes: Arc<O>, work: W, caller: Caller<R>)
    where
        R: Send + 'static,
        O: Outcomes<R>,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let running = Counted::new(&self.shared.totals.running);
        let attempt = self.attempt();
        let mut heartbeat = Heartbeat::new(&attempt, self.asked);
        let (settlement, ending) = match self.reconcile(&attempt, &mut heartbeat).await {
            Err((ending, decided)) => (self.seal(decided, self.previous), ending),
            Ok(previous) => {
                let (ending, decided) = self.work(outcomes, work, attempt, &mut heartbeat).await;
                (self.seal(decided, previous), ending)
            }
        };
        let settling = self.settle(&settlement, Some((caller, ending)));
        heartbeat.during(settling).await;
        drop(running);
        if self.replicate {
            self.replicate(&settlement).await;
        }
    }

    fn attempt(&self) -> Attempt {
        Attempt::new(
            Arc::clone(&self.shared),
            Arc::clone(&self.key),
            self.held.clone(),
            self.previous,
            self.checkpoint.clone(),
            self.sealed_checkpoint.clone(),
        )
    }

    /// Runs the work in a task of its own: the lease is renewed even while the work blocks its thread.
    async fn work<R, O, W, Fut>(
        &self,
        outcomes: Arc<O>,
        work: W,
        attempt: Attempt,
        heartbeat: &mut Heartbeat,
    ) -> (Ending<R>, Decided)
    where
        R: Send + 'static,
        O: Outcomes<R>,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let max_bytes = self.shared.settings.max_outcome;
        let name = Arc::clone(&self.shared.name);
        let working = CURRENT.scope(attempt.clone(), async move {
            let result = work(attempt).await;
            let decided = Decided::about(&*outcomes, &result, max_bytes, &name);
            (result, decided)
        });
        // Boxed: the runtime's code for a task is compiled for each result, not for each handler.
        let working: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(working);
        let task = tokio::spawn(working.in_current_span().with_current_subscriber());
        match self.join(task, heartbeat).await {
            Ok((result, decided)) => (Ending::Result(result, Recorded::Pending), decided),
            Err(error) => (self.broken_off(error), Decided::Unknown),
        }
    }

    /// Waits for `task`, and cancels it at the maximum lease time, if it is to be, or when a shutdown has no time left.
    async fn join<T>(
        &self,
        mut task: JoinHandle<T>,
        heartbeat: &mut Heartbeat,
    ) -> Result<T, JoinError> {
        tokio::select! {
            biased;
            joined = &mut task => return joined,
            () = heartbeat.until_cancelled() => {}
            () = self.shared.tasks.overdue() => {}
        }
        task.abort();
        // It may have ended at the last moment, and takes some time to end if it blocks its thread.
        heartbeat.during(task).await
    }

    fn broken_off<R>(&self, error: JoinError) -> Ending<R> {
        let panicked = error.is_panic();
        tracing::error!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.shared.name,
            panicked,
            "the work was broken off"
        );
        match error.try_into_panic() {
            Ok(panic) => Ending::Panicked(panic),
            Err(_) if !self.shared.tasks.is_overdue() => Ending::Rejected(Reason::TimedOut),
            // The next attempt may begin at once, elsewhere.
            Err(_) if self.shared.takeover == Takeover::Any => {
                Ending::Rejected(Reason::ShuttingDown)
            }
            Err(_) => Ending::Rejected(Reason::OutcomeUnknown),
        }
    }

    /// Calls the reconcile hook, if there is one and the previous attempt is in doubt. `Ok`: run the work, with what is known
    /// of the previous attempt now.
    async fn reconcile<R>(
        &self,
        attempt: &Attempt,
        heartbeat: &mut Heartbeat,
    ) -> Result<Previous, (Ending<R>, Decided)> {
        let hook = match &self.shared.reconcile {
            Some(hook) if self.previous.is_in_doubt() => hook,
            _ => return Ok(self.previous),
        };
        let asked = hook(InDoubt {
            key: Arc::clone(&self.key),
            previous: self.previous,
            attempt: attempt.number(),
            fence: attempt.fence(),
            checkpoint: self.checkpoint.clone(),
        });
        let task = tokio::spawn(asked.in_current_span().with_current_subscriber());
        let found = self.join(task, heartbeat).await;
        match found.unwrap_or(Reconciled::Unknown) {
            Reconciled::NotDone => Ok(Previous::Released),
            Reconciled::Unknown => {
                Err((Ending::Rejected(Reason::OutcomeUnknown), Decided::Unknown))
            }
            Reconciled::Done(outcome) => {
                let plain = Some(outcome.clone());
                Err((
                    Ending::Reconciled(outcome),
                    Decided::Done { plain, ttl: None },
                ))
            }
        }
    }

    fn seal(&self, decided: Decided, previous: Previous) -> Settlement {
        decided
            .seal(&self.shared, &self.key, previous)
            .unwrap_or_else(|why| {
                self.warn(&why, "the outcome cannot be sealed, and is left unknown");
                Settlement::Unknown
            })
    }
}
