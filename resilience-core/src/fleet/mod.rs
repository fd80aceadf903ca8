//! What every pattern needs to share state between instances: store errors, time budgets, health, the outage policy,
//! background tasks.
//!
//! A fleet is the set of instances that share one store. Each pattern has a store trait of its own
//! ([`BreakerStore`](crate::breaker::fleet::BreakerStore), [`LimitStore`](crate::limit::store::LimitStore), ..); this
//! module is what they have in common, so that a store that hangs, flaps or loses its data is survived in the same
//! way, and reported in the same words, everywhere.
//!
//! | what | where |
//! |---|---|
//! | [`StoreFuture`], [`StoreError`] | what the methods of every store trait return |
//! | [`IntoStore`] | what the `.store(..)` method of every builder takes |
//! | [`FleetOptions`] | the builder part for instance name, time budget, heartbeat and outage policy |
//! | [`OnOutage`] | what happens to calls while the store is unavailable |
//! | [`Subscription`], [`Pushed`] | messages from a store, latest value only |
//! | [`StoreHandle`], [`MemberStore`] | one process' use of one store: background tasks, orderly shutdown, heartbeat |
//! | [`RecordClock`] | the time of a record, which a store's clock does not set back |
//!
//! # Health
//! A store is unavailable after three failures in a row: errors, or no answer within the budget. From then on
//! new questions (claims, decisions, reports, probe requests) fail at once, without waiting for the budget, and one
//! background task asks the store until it answers, with jittered backoff from 25 ms to 1 s. Steps that complete, give
//! back or acknowledge are never skipped: they are repeated until they are too late to matter.
//!
//! # Shares
//! While the store is unavailable, the instances of a limit or a bulkhead with [`OnOutage::Local`] each take a share. The
//! shares are known once another heartbeat was answered an interval after the first one: by then all other instances
//! have counted this one. Before that, an instance takes its part of
//! [`expected_instances`](FleetOptions::expected_instances), or rejects calls if that is not set. More live instances count
//! at once, fewer after two intervals. When the store is available again, an instance reports what it admitted, and keeps
//! within its share for two seconds and a budget more, in which the others do the same.
//!
//! # Events
//! One `WARN` event `store unavailable` when the store becomes unavailable, with the reason and the policy in
//! force, and one `INFO` event `store available` when it answers again, both with `pattern` and `name`.
//!
//! # Shutdown
//! Handles that run a task have a `shutdown` method. [`StoreHandle::shutdown`] ends all tasks of a store, in order: no new
//! work begins, work in progress ends or is cancelled, what must be written is written.

mod agent;
mod client;
mod handle;
mod health;
mod heartbeat;
mod instance;
mod live;
mod membership;
mod options;
mod outage;
mod store;
mod subscription;
mod time;

pub use self::{
    handle::{StillRunning, StoreHandle},
    membership::MemberStore,
    options::FleetOptions,
    outage::OnOutage,
    store::{IntoStore, StoreError, StoreFuture},
    subscription::{Pushed, Subscription},
    time::RecordClock,
};

#[cfg(feature = "idempotency")]
pub(crate) use self::handle::InProgress;
#[cfg(any(feature = "idempotency", feature = "stream"))]
pub(crate) use self::time::at_most;
pub(crate) use self::{
    agent::{Agent, AgentHandle, Waker, spawn},
    client::{Probe, StoreClient, retry_delays},
    handle::HandleTasks,
    heartbeat::join,
    instance::instance_id,
    options::{FleetDefaults, FleetSettings, required, runtime},
    store::into_store,
    time::{certain_until, jittered, millis},
};
