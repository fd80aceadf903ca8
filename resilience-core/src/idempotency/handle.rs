//! The handle: work under a key, without tower.

use std::{fmt, future::Future, panic::resume_unwind, sync::Arc};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{
    Attempt, IdempotencyBuilder, IdempotencyLayer, IdempotencySnapshot, Json, Outcome, Outcomes,
    Recorded, Source,
    claim::Admission,
    key::Key,
    record::{Completion, Loss, RecordView, StoreResolution, WriteOutcome},
    shared::{Shared, ms},
    store::StoreError,
    worker::{Ended, Finished},
};
use crate::error::{Error, Reason, Rejected};

/// Work that takes effect once per key, as its owner holds it. Clones share store, settings and counts.
#[derive(Clone)]
pub struct Idempotency {
    pub(super) shared: Arc<Shared>,
}

/// What an operator, or a reconciling job, has found out about work whose outcome nobody knew.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Resolution {
    /// It was done, with this result, as the codec encodes it.
    Done(Bytes),
    /// It was done; there is no result to replay.
    DoneWithoutResult,
    /// It was not done: the next caller does it.
    NotDone,
}

impl Idempotency {
    /// Starts a handle called `name`, as it appears in rejections, events, metrics and the names of the records.
    pub fn builder(name: impl Into<Arc<str>>) -> IdempotencyBuilder {
        IdempotencyBuilder::new(name.into())
    }

    /// A layer that takes the key of each request from `key`: `None` lets a request pass as if the layer were not there.
    /// Answers are recorded by [`Json`] unless [`IdempotencyLayer::outcomes`] says otherwise.
    pub fn layer<F>(&self, key: F) -> IdempotencyLayer<F> {
        IdempotencyLayer::new(self.clone(), key)
    }

    /// Does `work`, unless it was done before under `key`: then its recorded result is the answer. `Ok` is recorded as
    /// JSON; an error gives the key back, so that the next caller does the work ([`run_with`](Self::run_with) decides
    /// otherwise).
    ///
    /// `work` runs in a task of its own, without the caller's [deadline](crate::deadline) and inside its span: dropping
    /// this future does not stop it. A panic of `work` is passed on to the caller.
    ///
    /// # Errors
    /// [`Error::Service`] is `work`'s own. Rejections:
    ///
    /// | reason | what it means |
    /// |---|---|
    /// | [`InFlight`](Reason::InFlight) | somebody else is at work; retry after what is left of their lease |
    /// | [`KeyReused`](Reason::KeyReused) | the key belongs to other work |
    /// | [`OutcomeUnknown`](Reason::OutcomeUnknown) | nobody knows whether the work was done |
    /// | [`StoreUnreachable`](Reason::StoreUnreachable) | nothing was done |
    /// | [`Superseded`](Reason::Superseded) | the work was done, but somebody else holds the key: ask again for their outcome |
    /// | [`TimedOut`](Reason::TimedOut) | the work was cancelled at the ceiling |
    /// | [`OutcomeNotKept`](Reason::OutcomeNotKept), [`OutcomeUnreadable`](Reason::OutcomeUnreadable) | done before, and the result cannot be shown |
    pub async fn run<T, E, W, Fut>(
        &self,
        key: impl Into<Key>,
        work: W,
    ) -> Result<Outcome<T>, Error<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let outcome = self.run_with(key, Json::new(), work).await?;
        match (outcome.value, outcome.source) {
            (Ok(_), Source::Fresh(Recorded::Lost)) => {
                Err(self.shared.reject(Reason::Superseded, None).into())
            }
            (Ok(value), source) => Ok(Outcome::new(value, source)),
            (Err(error), _) => Err(Error::Service(error)),
        }
    }

    /// The same for results of any type, with `outcomes` to decide what becomes of them. A result that was refused by
    /// the store comes with [`Recorded::Lost`].
    ///
    /// # Errors
    /// As [`run`](Self::run), but for those of `work` and for `Superseded`.
    pub async fn run_with<R, O, W, Fut>(
        &self,
        key: impl Into<Key>,
        outcomes: O,
        work: W,
    ) -> Result<Outcome<R>, Rejected>
    where
        R: Send + 'static,
        O: Outcomes<R>,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let (key, outcomes) = (key.into(), Arc::new(outcomes));
        match self.shared.admit(&key, || ()).await? {
            Admission::Replay { outcome, age } => {
                self.shared
                    .decoded(&*outcomes, outcome, Source::Replayed { age })
            }
            Admission::Work(worker) => {
                let told = worker.start(Arc::clone(&outcomes), work);
                self.shared.finished(told, &*outcomes).await
            }
        }
    }

    /// What the store knows of `key`; nothing, if it is new or forgotten.
    ///
    /// # Errors
    /// If the store gives no answer.
    pub async fn get(&self, key: impl Into<Key>) -> Result<Option<RecordView>, StoreError> {
        let stored = key.into().stored();
        let look = self.shared.store.get(&self.shared.name, &stored);
        self.shared.within_budget(&self.shared.store, look).await
    }

    /// Settles work whose outcome is unknown, or whose lease has ended, as of the attempt under `fence`
    /// ([`RecordView::fence`]). False if that is not (or no longer) how it stands.
    ///
    /// # Errors
    /// If the store gives no answer.
    pub async fn resolve(
        &self,
        key: impl Into<Key>,
        fence: u64,
        finding: Resolution,
    ) -> Result<bool, StoreError> {
        let (shared, stored) = (&self.shared, key.into().stored());
        let plain = match finding {
            Resolution::NotDone => {
                return self
                    .resolved(&stored, fence, &StoreResolution::Release)
                    .await;
            }
            Resolution::Done(outcome) => Some(outcome),
            Resolution::DoneWithoutResult => None,
        };
        let (associated_data, ttl_ms) = (shared.associated_data(&stored), ms(shared.settings.ttl));
        let sealed = shared
            .settings
            .sealing
            .seal(plain.as_deref(), ttl_ms, &associated_data);
        let outcome = sealed.map_err(|why| StoreError::new(why.to_string(), false))?;
        let completion = Completion { outcome, ttl_ms };
        self.resolved(&stored, fence, &StoreResolution::Done(completion))
            .await
    }

    async fn resolved(
        &self,
        stored: &str,
        fence: u64,
        resolution: &StoreResolution,
    ) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let step = shared
            .store
            .resolve(&shared.name, stored, fence, resolution);
        let kept = shared.within_budget(&shared.store, step).await?;
        Ok(!matches!(
            kept,
            WriteOutcome::Lost(Loss::Taken | Loss::Over | Loss::Gone)
        ))
    }

    /// What has been counted so far.
    #[must_use]
    pub fn snapshot(&self) -> IdempotencySnapshot {
        self.shared.totals.snapshot()
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

impl Shared {
    pub(super) fn decoded<R>(
        &self,
        outcomes: &impl Outcomes<R>,
        outcome: Bytes,
        source: Source,
    ) -> Result<Outcome<R>, Rejected> {
        let value = outcomes.decode(outcome);
        let value = value.map_err(|why| self.unreadable(&why))?;
        Ok(Outcome::new(outcomes.mark(value, &source), source))
    }

    pub(super) async fn finished<R>(
        &self,
        told: oneshot::Receiver<Finished<R>>,
        outcomes: &impl Outcomes<R>,
    ) -> Result<Outcome<R>, Rejected> {
        let Ok(Finished { ended, recorded }) = told.await else {
            // The runtime is shutting down: the lease will end.
            return Err(self.reject(Reason::OutcomeUnknown, None));
        };
        match ended {
            Ended::Result(result) => {
                let source = Source::Fresh(recorded);
                Ok(Outcome::new(outcomes.mark(result, &source), source))
            }
            Ended::Reconciled(outcome) => self.decoded(outcomes, outcome, Source::Reconciled),
            Ended::Panicked(panic) => resume_unwind(panic),
            Ended::Cancelled => Err(self.reject(Reason::TimedOut, None)),
            Ended::StillUnknown => Err(self.reject(Reason::OutcomeUnknown, None)),
        }
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}
