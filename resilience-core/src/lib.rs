//! Resilience patterns as composable tower layers, for services whose dependencies are slow, down or answer twice.
//!
//! | module | what it does |
//! |---|---|
//! | [`deadline`] | one time limit for a call, visible to every layer and service below it |
//! | [`retry`] | more attempts, within a budget and the deadline, for requests that may be repeated |
//! | [`breaker`] | stops calling a dependency that keeps failing, and detects by a few probes when it has recovered; alone, or [with a fleet](breaker::fleet) |
//! | [`bulkhead`] | bounds the calls in flight, with an optional bounded queue |
//! | [`limit`] | bounds the calls per time, exactly |
//! | [`cache`] | values kept in the process and in a store that a fleet shares; one load for all who ask |
//! | [`idempotency`] | repeated requests take effect once |
//! | [`stream`] | events between services: published once, handled in order per key, taking effect once |
//! | [`coalesce`] | callers that ask for one key at a time share one call |
//! | [`fallback`], [`shed`] | a response in place of a failed one; rejection of calls that would wait |
//! | [`execute`], [`error::wrap`] | closures as requests; services with a plain error in a typed stack |
//! | [`completion`], [`cost`], [`codec`], [`sealing`] | when a call is over; what a request costs; values as bytes, compressed and encrypted for a store |
//! | [`classify`] | what a result says about the dependency: one verdict for the whole stack |
//! | [`error`](mod@error) | the error of every layer |
//! | [`order`] | what a stack consists of, and orders that defeat themselves |
//! | [`keyed`] | a breaker or bulkhead per host, tenant or shard, bounded |
//! | [`sql`] | what error codes of databases say; for users of sqlx more, by features |
//! | [`telemetry`] | events and metrics |
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{Bulkhead, CircuitBreaker, Retry, Timeout, execute};
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let timeout = Timeout::new("stock", Duration::from_secs(2))?;
//! let retry = Retry::builder("stock").max_attempts(3).build()?;
//! let bulkhead = Bulkhead::builder("stock").max_concurrent(32).build()?;
//! let breaker = CircuitBreaker::builder("stock").build()?;
//!
//! // Outermost first. Around any tower service; here around closures.
//! let stock = execute::guard(
//!     ServiceBuilder::new()
//!         .layer(timeout.layer())
//!         .layer(retry.layer())
//!         .layer(bulkhead.layer())
//!         .layer(breaker.layer()),
//! );
//! let left = stock.call_idempotent(|| async { Ok::<_, std::io::Error>(7) }).await?;
//! assert_eq!(left, 7);
//! assert_eq!(breaker.snapshot().totals.successes, 1);
//! # Ok(()) }
//! ```
//!
//! # What holds for every layer
//!
//! - **One shape.** `X::builder(name)..build()` makes a handle, `.store(..)` attaches a store, `.layer()` makes a layer and
//!   `.keyed(..)` a family by key. `name()`, `snapshot()` (serializable) and, of breakers, `events()` read the handle,
//!   `fleet_view().await` what a fleet shares (of breakers, bulkheads and regions; a rate limit is read per subject, by
//!   `peek`); `shutdown(within)` ends its background task. A handle that starts one, which is one with a store, is built
//!   within a tokio runtime (elsewhere an error), all others anywhere, also in a `LazyLock`. The handles are at the root of
//!   the crate.
//! - **State lives in the handle.** `breaker.layer()` any number of times: all layers, services and clones share that
//!   one breaker. The handle also reads state and takes overrides.
//! - **Errors do not nest.** A layer's error type is that of the service it wraps ([`ServiceError`]); a layer that rejects
//!   a call makes a [`Rejected`]. [`Error`] is the ready-made type, tower's `BoxError` works as it is.
//! - **A rejection is never evidence against the dependency.** A rejection by a layer further down does not trip
//!   a breaker, costs no budget and is not retried. A timeout does count: the dependency had its time.
//! - **Nothing leaks.** A permit, probe or budget that a call holds is given back when its future is dropped, and when
//!   it panics. Nothing is reserved for an idle clone. Work that goes on without its call can
//!   [carry](admission::carry) the call's permits.
//! - **Time can be tested.** Under `tokio::time::pause` every layer follows tokio's clock ([example](clock#time-in-tests)).
//! - **A call that passes** allocates nothing, takes no lock and boxes no future.
//!
//! # The order of layers
//!
//! Outermost first: fallback, deadline for the whole call, coalescing, retry, bulkhead, circuit breaker, deadline for one attempt.
//! The retry is above the guards, so that every attempt passes them again; the bulkhead is above the breaker, so that a
//! wait in the local queue is not counted against the dependency. Other orders work and have other effects; an outage
//! is detected in each of them.
//!
//! # Features
//!
//! On by default are `idempotency`, `cache` and `stream`, the only parts that need digests and JSON, with the `sealing` of what the
//! first two store. A user of the other patterns, who sets `default-features = false`, compiles 39 crates instead of 58 (`cargo tree -e normal`).
//!
//! Off by default: `otel`: `telemetry::export`. `compress`, `encrypt`: recorded outcomes of idempotency keys and cached values, at
//! rest. `messagepack`: a codec of cached values.
//! `sqlx`: classification of sqlx errors, transactions and pools that survive cancellation.
//! `sqlx-postgres`, `sqlx-sqlite`: that, and `sql::inbox` in that database. `testing`: `conformance`, suites for stores
//! and layers of your own.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod admission;
mod backoff;
pub mod breaker;
pub mod bulkhead;
#[cfg(feature = "cache")]
pub mod cache;
pub mod classify;
pub mod clock;
pub mod coalesce;
#[cfg(any(feature = "cache", feature = "stream"))]
pub mod codec;
pub mod completion;
#[cfg(all(feature = "testing", not(loom)))]
pub mod conformance;
pub mod cost;
pub mod deadline;
pub mod error;
pub mod execute;
pub mod fallback;
pub mod fleet;
#[cfg(feature = "idempotency")]
pub mod idempotency;
pub mod keyed;
pub mod limit;
pub mod order;
pub mod retry;
#[cfg(any(feature = "cache", feature = "idempotency"))]
pub mod sealing;
#[cfg(all(test, not(loom)))]
mod shape_tests;
pub mod shed;
pub mod sql;
#[cfg(feature = "stream")]
pub mod stream;
pub(crate) mod stripe;
pub(crate) mod sync;
pub mod telemetry;
#[cfg(all(test, not(loom)))]
pub(crate) mod test_counts;
#[cfg(all(test, not(loom)))]
pub(crate) mod test_log;
mod verdict;
#[cfg(feature = "stream")]
pub mod write_behind;

pub use breaker::CircuitBreaker;
pub use bulkhead::{Bulkhead, fleet::FleetBulkhead};
#[cfg(feature = "cache")]
pub use cache::Cache;
pub use classify::Classify;
pub use clock::{Clock, Moment};
pub use coalesce::Coalesce;
pub use deadline::{Deadline, Timeout};
pub use error::{Error, InvalidConfig, Pattern, Reason, Rejected, ServiceError};
pub use fallback::Fallback;
pub use fleet::{FleetOptions, OnOutage};
#[cfg(feature = "idempotency")]
pub use idempotency::Idempotency;
pub use keyed::Keyed;
pub use limit::{
    Quota, RateLimit, fleet::FleetRateLimit, regions::RegionalLimits, upstream::UpstreamLimits,
};
pub use retry::{Retry, RetryBudget};
pub use shed::LoadShed;
#[cfg(feature = "sqlx-postgres")]
pub use sql::inbox::PgInbox;
#[cfg(feature = "sqlx-sqlite")]
pub use sql::inbox::SqliteInbox;
#[cfg(all(feature = "sqlx-postgres", feature = "stream"))]
pub use sql::outbox::PgOutbox;
#[cfg(all(feature = "sqlx-sqlite", feature = "stream"))]
pub use sql::outbox::SqliteOutbox;
#[cfg(feature = "stream")]
pub use stream::{Consumer, Producer};
pub use verdict::Verdict;
#[cfg(feature = "stream")]
pub use write_behind::WriteBehind;
