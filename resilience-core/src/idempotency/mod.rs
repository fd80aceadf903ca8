//! Idempotency keys: work that is asked for more than once takes effect once, across instances.
//!
//! A caller gives its request a key. The first to bring a key does the work, under a lease, and its outcome is recorded;
//! whoever brings the key again, at any instance, gets that outcome. Who comes while the work is going on is refused or
//! [waits](IdempotencyBuilder::wait).
//!
//! ```
//! use resilience_core::idempotency::{Fingerprint, Idempotency, Key};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let payments = Idempotency::builder("payments").build()?; // records in this process; a shared store is one line
//!
//! let key = || Key::new("order-7").scope("tenant-3").fingerprint(Fingerprint::of([b"20.00 EUR".as_slice()]));
//! let charge = |attempt: resilience_core::idempotency::Attempt| async move {
//!     // What is called gets a key too, the same in every attempt, and the fence, if it can check it.
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
//! # What "once" means
//! No record can make an effect elsewhere happen exactly once: a process that crashes after the effect and before its
//! record leaves work that may have been done. What holds is this:
//! - as long as the store keeps its records, no two attempts run at once unless one has lost its lease, and that one is
//!   told ([`Attempt::lost`]) and has its outcome refused;
//! - an outcome that is reported as [stored](Recorded::Stored) is what everybody gets;
//! - an attempt after a crash knows that it is one ([`Attempt::previous`]), where the last one was
//!   ([`Attempt::checkpoint`]), and calls others with the same [child keys](Attempt::child_key);
//! - each attempt has a [fence](Attempt::fence) that is higher than that of every one before it, so that whatever can
//!   compare two numbers can refuse the older.
//!
//! # Records
//! [`record`] is the state machine of one key, pure, and the reference that every [store](IdempotencyStore) is held to.
//! [`InProcessIdempotency`] is the store for a single process. Outcomes are bytes, by [`Outcomes`] ([`Json`], or your own), and
//! may be made smaller and unreadable on their way ([`Sealing`]). They are bounded, and so is how long they are kept.
//!
//! `inbox` (features `sqlx-postgres`, `sqlx-sqlite`) keeps the record in the SQL transaction that does the work.
//!
//! # Errors
//! [`Rejected`](crate::Rejected), with the reasons that [`Idempotency::run`] lists. While the store cannot be reached,
//! calls are refused, unless [`Unreachable`] says otherwise.
//!
//! # Cancellation and panics
//! The work runs in a task of its own: a caller that goes away does not stop it, and nor does its
//! [deadline](crate::deadline), which the work does not see. A caller that goes away before the store has answered
//! leaves no claim behind; one that waits leaves its place. A panic is passed on to the caller, and leaves the outcome
//! [unknown](Disposition::Unknown), unless [`on_panic`](IdempotencyBuilder::on_panic) says otherwise.
//!
//! # Readiness
//! As the service below. A call that waits for somebody else's outcome holds nothing below, and drives a clone of the
//! service to readiness if it is left with the work.
//!
//! # Order
//! Outside of the retry and of everything that guards a dependency, so that one logical call has one key. Inside what
//! authenticates, which knows the scope.
//!
//! # Cost
//! Work: two round trips, two tasks and a few allocations. A replay: one round trip, or none with a
//! [cache](IdempotencyBuilder::cache). A request without a key costs nothing.
//!
#![doc = include_str!("comparison.md")]

mod attempt;
mod builder;
mod cache;
mod claim;
mod handle;
mod heartbeat;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
pub mod inbox;
mod key;
mod layer;
mod memory;
mod outcome;
pub mod record;
#[cfg(all(test, not(loom)))]
mod record_tests;
mod shared;
pub mod store;
#[cfg(all(test, not(loom)))]
mod tests;
mod worker;

pub use self::{
    attempt::{Attempt, CheckpointFailed},
    builder::{IdempotencyBuilder, InDoubt, Reconciled, Unreachable},
    handle::{Idempotency, Resolution},
    key::{Fingerprint, Key},
    layer::{Attach, IdempotencyLayer, IdempotencyService, NoAttach, ResponseFuture},
    memory::InProcessIdempotency,
    outcome::{
        ByError, CodecError, Disposition, Json, OnError, Outcome, Outcomes, Recorded, Released,
        Source,
    },
    shared::IdempotencySnapshot,
    store::{Changes, IdempotencyStore},
};
#[cfg(feature = "encrypt")]
pub use crate::sealing::Keyring;
pub use crate::sealing::{Opened, SealFailed, Sealing, Unreadable};
