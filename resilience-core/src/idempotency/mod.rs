//! Idempotency keys: work that is requested more than once takes effect once, across instances.
//!
//! A caller gives its request a key. The first request with a key runs the work under a lease, and its outcome is
//! recorded; later requests with the same key, at any instance, get that outcome. Requests that arrive while the work is
//! in progress are rejected or [wait](IdempotencyBuilder::wait).
//!
//! ```
//! use resilience_core::{Idempotency, idempotency::{Fingerprint, Key}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let payments = Idempotency::builder("payments").build()?; // records in this process; a shared store is one line
//!
//! let key = || Key::new("order-7").scope("tenant-3").fingerprint(Fingerprint::of([b"20.00 EUR".as_slice()]));
//! let charge = |attempt: resilience_core::idempotency::Attempt| async move {
//!     // For the calls that the work makes: a key that is the same in every attempt, and the fence.
//!     let (_key, _fence) = (attempt.child_key("charge"), attempt.fence());
//!     Ok::<_, std::io::Error>(String::from("receipt 1"))
//! };
//! let first = payments.run(key(), charge).await?;
//! let again = payments.run(key(), |_| async { Ok::<_, std::io::Error>(String::from("receipt 2")) }).await?;
//! assert_eq!((first.replayed(), &*again.value), (None, "receipt 1"));
//! assert!(again.replayed().is_some());
//! # Ok(()) }
//! ```
//!
//! # Guarantees
//! No record can make an effect elsewhere happen exactly once: a process that crashes after the effect and before the
//! record leaves work that may have been done. As long as the store keeps its records:
//! - no two attempts run at once, unless one has lost its lease; that one is [told](Attempt::lost) and its outcome is
//!   refused;
//! - an outcome that is reported as [stored](Recorded::Stored) is what every later caller gets;
//! - an attempt after a crash knows that it is one ([`Attempt::previous`]) and how far the last one came
//!   ([`Attempt::checkpoint`]), and calls others with the same [child keys](Attempt::child_key);
//! - each attempt has a [fence](Attempt::fence) that is higher than that of every earlier one, so that a system that
//!   compares the two can reject the older.
//!
//! # Records
//! [`record`] is the pure state machine of one key, and the reference for every [store](IdempotencyStore).
//! [`InProcessIdempotency`] is the store for a single process. Outcomes are bytes, encoded by [`Outcomes`] ([`Json`], or a
//! codec of your own), and optionally compressed and encrypted ([`Sealing`]). Their size and lifetime are bounded.
//!
//! `sql::inbox` (features `sqlx-postgres`, `sqlx-sqlite`) keeps the record in the SQL transaction that does the work.
//!
//! # Errors
//! [`Rejected`], with the reasons that [`Idempotency::run`] lists. While the store is unavailable, calls
//! are rejected, unless the outage policy says otherwise ([`fleet`](IdempotencyBuilder::fleet)).
//!
//! # Cancellation and panics
//! The work runs in a task of its own: dropping the caller's future does not stop it, and nor does the caller's
//! [deadline](crate::deadline), which the work does not see. It ends by itself, or is cancelled at
//! [`max_lease_time`](IdempotencyBuilder::max_lease_time), 10 minutes by default. Until then it holds the caller's permits
//! of bulkheads around it ([`carry`](crate::admission::carry)). A caller that is dropped before the store has answered leaves no
//! claim behind; one that waits leaves its place. A panic is passed on to the caller, and leaves the outcome
//! [unknown](Disposition::Unknown). [`Idempotency::shutdown`] waits for attempts in progress.
//!
//! # Unknown outcomes
//! A process that dies, a panic and a cancelled attempt leave it unknown whether the work took effect. What happens to the
//! key depends on what a second run would do, which only its author knows: [`IdempotencyBuilder::effect`], with the table of
//! [`Effect`]. By default such work is never done again.
//!
//! # Outcomes without a record
//! A store that does not answer when the work is done leaves an outcome that may be lost with this process. By default the
//! caller waits for the record, and does not get an outcome without one: [`IdempotencyBuilder::on_unrecorded`], with the
//! table of [`OnUnrecorded`].
//!
//! # Readiness
//! That of the inner service. A call that waits for another attempt's outcome holds nothing below, and drives a clone of the
//! service to readiness if it has to run the work after all.
//!
//! # Order
//! Outside of the retry and of everything that guards a dependency, so that one logical call has one key. Inside
//! authentication, which knows the scope, and inside the bulkhead that limits the work: work of callers that have gone
//! counts there too.
//!
//! # Cost
//! Work: two round trips, two tasks and a few allocations. A replay: one round trip, or none with a
//! [cache](IdempotencyBuilder::cache). A request without a key costs nothing.
//!
//! # References
//! [draft-ietf-httpapi-idempotency-key-header](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/);
//! Helland, [Idempotence Is Not a Medical Condition](https://queue.acm.org/detail.cfm?id=2187821) (ACM Queue, 2012);
//! Gray and Cheriton, [Leases](https://doi.org/10.1145/74851.74870) (SOSP 1989); fencing tokens: Kleppmann,
//! [How to do distributed locking](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html) (2016).
//!
#![doc = include_str!("comparison.md")]

mod abandoned;
mod announce;
mod attempt;
mod builder;
mod cache;
mod claim;
mod effect;
mod heartbeat;
pub(crate) mod key;
mod layer;
mod lossless;
mod memory;
mod outcome;
mod reconcile;
pub mod record;
mod settings;
mod settle;
mod settlement;
mod shared;
mod snapshot;
pub mod store;
#[cfg(all(test, not(loom)))]
mod tests;
mod unrecorded;
mod worker;

use std::{fmt, future::Future, panic::resume_unwind, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

pub use self::{
    attempt::{Attempt, CheckpointFailed},
    builder::IdempotencyBuilder,
    effect::Effect,
    key::{Fingerprint, Key},
    layer::{Attach, IdempotencyLayer, IdempotencyService, NoAttach, ResponseFuture},
    memory::InProcessIdempotency,
    outcome::{
        ByError, CodecError, Disposition, Json, OnError, Outcome, Outcomes, Recorded, Released,
        Source,
    },
    reconcile::{InDoubt, Reconciled, Resolution},
    snapshot::IdempotencySnapshot,
    store::IdempotencyStore,
    unrecorded::OnUnrecorded,
};
use self::{
    claim::Admission,
    record::{Completion, Loss, RecordView, StoreResolution, WriteOutcome},
    settings::ms,
    shared::Shared,
    store::StoreError,
    worker::Ending,
};
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
pub(crate) use self::{outcome::to_json, shared::fresh_owner, store::RecordClient};
#[cfg(feature = "encrypt")]
pub use crate::sealing::Keyring;
pub use crate::sealing::{Opened, SealFailed, Sealing, Unreadable};
use crate::{
    error::{Error, Reason, Rejected},
    fleet::StillRunning,
};

/// Work that takes effect once per key. Clones share store, settings and counts.
#[derive(Clone)]
pub struct Idempotency {
    shared: Arc<Shared>,
}

impl Idempotency {
    /// Starts a builder for a handle called `name`, as it appears in rejections, events, metrics and the names of the
    /// records.
    pub fn builder(name: impl Into<Arc<str>>) -> IdempotencyBuilder {
        IdempotencyBuilder::new(name.into())
    }

    /// Makes a layer that takes the key of each request from `key`; requests without one (`None`) pass unchanged. Responses
    /// are recorded by [`Json`] unless [`IdempotencyLayer::outcomes`] says otherwise.
    pub fn layer<F>(&self, key: F) -> IdempotencyLayer<F> {
        IdempotencyLayer::new(self.clone(), key)
    }

    /// Runs `work`, unless it was done before under `key`: then returns its recorded result. `Ok` is recorded as JSON; an
    /// error gives the key back, so that the next caller runs the work ([`run_with`](Self::run_with) decides otherwise).
    ///
    /// `work` runs in a task of its own, without the caller's [deadline](crate::deadline) and inside its span: dropping
    /// this future does not stop it. A panic of `work` is passed on to the caller.
    ///
    /// # Errors
    /// [`Error::Service`] is `work`'s own. Rejections:
    ///
    /// | reason | meaning |
    /// |---|---|
    /// | [`InFlight`](Reason::InFlight) | another attempt is in progress, and did not end while this caller waited; `retry_after` is the rest of its lease |
    /// | [`KeyReused`](Reason::KeyReused) | the key belongs to other work |
    /// | [`OutcomeUnknown`](Reason::OutcomeUnknown) | it is not known whether the work was done ([`Effect`]) |
    /// | [`Unrecorded`](Reason::Unrecorded) | the work was done, and its outcome could not be recorded in time; it is replayed once it is ([`OnUnrecorded`]) |
    /// | [`StoreUnreachable`](Reason::StoreUnreachable) | the store is unavailable; nothing was done |
    /// | [`ShuttingDown`](Reason::ShuttingDown) | the handle is shutting down; nothing was done, or another attempt may begin at once |
    /// | [`Superseded`](Reason::Superseded) | the work was done, but another attempt holds the key: call again for its outcome |
    /// | [`TimedOut`](Reason::TimedOut) | the work was cancelled at the maximum lease time |
    /// | [`OutcomeNotKept`](Reason::OutcomeNotKept), [`OutcomeUnreadable`](Reason::OutcomeUnreadable) | the work was done before, and its result cannot be replayed |
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
        let Outcome { value, source } = self.accept(outcome)?;
        let value = value.map_err(Error::Service)?;
        Ok(Outcome::new(value, source))
    }

    /// Runs `work` as [`run`](Self::run) does, for results of any type: `outcomes` decides what is recorded. A result that
    /// the store refused is returned with [`Recorded::Lost`]; [`accept`](Self::accept) turns it into a rejection.
    ///
    /// # Errors
    /// As [`run`](Self::run), except for those of `work` and `Superseded`.
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
                let ending = worker.start(Arc::clone(&outcomes), work);
                self.shared.ended(ending, &*outcomes).await
            }
        }
    }

    /// Rejects a success that the store refused to record ([`Recorded::Lost`]), since another attempt's outcome counts;
    /// returns every other outcome unchanged.
    ///
    /// # Errors
    /// [`Reason::Superseded`].
    pub fn accept<T, E>(
        &self,
        outcome: Outcome<Result<T, E>>,
    ) -> Result<Outcome<Result<T, E>>, Rejected> {
        if outcome.value.is_ok() && outcome.source == Source::Fresh(Recorded::Lost) {
            return Err(self.shared.reject(Reason::Superseded, None));
        }
        Ok(outcome)
    }

    /// Reads the record of `key`; `None` if the key is new or its record has expired.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable or fails.
    pub async fn get(&self, key: impl Into<Key>) -> Result<Option<RecordView>, StoreError> {
        let (name, stored) = (&self.shared.name, key.into().stored());
        let read = self.shared.store.call(|store| store.get(name, &stored));
        read.await
    }

    /// Settles work whose outcome is unknown, or whose lease has ended, as of the attempt under `fence`
    /// ([`RecordView::fence`]). False if the record is no longer in that state.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails or has no answer in time.
    pub async fn resolve(
        &self,
        key: impl Into<Key>,
        fence: u64,
        resolution: Resolution,
    ) -> Result<bool, StoreError> {
        let (shared, stored) = (&self.shared, key.into().stored());
        let plain = match resolution {
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
            .sealing()
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
        let name = &self.shared.name;
        let step = self
            .shared
            .store
            .attempt(|store| store.resolve(name, stored, fence, resolution));
        Ok(!matches!(
            step.await?,
            WriteOutcome::Lost(Loss::Taken | Loss::Over | Loss::Gone)
        ))
    }

    /// Drains the handle, for at most `within`. New calls, and those that wait for another attempt, are rejected with
    /// [`ShuttingDown`](Reason::ShuttingDown); attempts in progress, also those of callers that are gone, are waited for until
    /// their outcomes are recorded; claims without an answer are given back. What has not ended when a tenth of the time is left (at most 2 s) is
    /// cancelled: its checkpoint is kept, and its outcome is unknown ([`Effect`]).
    ///
    /// [`StoreHandle::shutdown`](crate::fleet::StoreHandle::shutdown) does the same for all handles of a store. Await it beside
    /// the graceful shutdown of the server. Cancel safe: the attempts go on, and new calls are rejected all the same.
    ///
    /// # Errors
    /// [`StillRunning`] when some had not ended by then: the store does not answer, or the work blocks its thread. They go on
    /// in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.shared.tasks.shutdown(within).await
    }

    /// Returns the counts of this handle since it was built.
    #[must_use]
    pub fn snapshot(&self) -> IdempotencySnapshot {
        self.shared.snapshot()
    }

    /// The name that the handle was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

impl Shared {
    fn decoded<R>(
        &self,
        outcomes: &impl Outcomes<R>,
        outcome: Bytes,
        source: Source,
    ) -> Result<Outcome<R>, Rejected> {
        let value = outcomes.decode(outcome);
        let value = value.map_err(|why| self.unreadable(&why))?;
        Ok(Outcome::new(outcomes.mark(value, &source), source))
    }

    async fn ended<R>(
        &self,
        ending: oneshot::Receiver<Ending<R>>,
        outcomes: &impl Outcomes<R>,
    ) -> Result<Outcome<R>, Rejected> {
        let Ok(ending) = ending.await else {
            // The runtime is shutting down: the lease will end.
            return Err(self.reject(Reason::OutcomeUnknown, None));
        };
        match ending {
            Ending::Result(result, recorded) => {
                let source = Source::Fresh(recorded);
                Ok(Outcome::new(outcomes.mark(result, &source), source))
            }
            Ending::Reconciled(outcome) => self.decoded(outcomes, outcome, Source::Reconciled),
            Ending::Panicked(panic) => resume_unwind(panic),
            Ending::Rejected(Reason::ShuttingDown) => Err(self.shutting_down()),
            Ending::Rejected(reason) => Err(self.reject(reason, None)),
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
