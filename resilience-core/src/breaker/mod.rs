//! Circuit breaker: stops calling what keeps failing, and finds out by a few probes when it is back.
//!
//! It is not a retry, a timeout or a limit on concurrency: it only decides, for each call, whether it is worth
//! making. Put it inside of the retry (each attempt is judged) and inside of the bulkhead (waiting for a place is
//! never held against the dependency).
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{CircuitBreaker, Reason, ServiceError, breaker::Window};
//! use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let breaker = CircuitBreaker::builder("payments")
//!     .window(Window::time(Duration::from_secs(10)))
//!     .minimum_calls(3)
//!     .failure_rate(0.5)
//!     .build()?;
//! let mut service = ServiceBuilder::new()
//!     .layer(breaker.layer())
//!     .service_fn(|_: &str| async { Err::<(), BoxError>("connection refused".into()) });
//!
//! for _ in 0..3 {
//!     let failed = service.ready().await?.call("pay").await.unwrap_err();
//!     assert_eq!(failed.to_string(), "connection refused");
//! }
//! let error = service.ready().await?.call("pay").await.unwrap_err();
//! let rejected = error.as_rejected().expect("not called");
//! assert_eq!(rejected.reason(), Reason::Open);
//! assert!(rejected.retry_after() > Some(Duration::from_secs(4)));
//! # Ok(())
//! # }
//! ```
//!
//! # States
//!
//! **Closed**: all calls pass and are judged over a window that slides ([`Window`]); too high a rate of failures or
//! of slow calls, or too many failures in a row, open it. **Open**: all calls are rejected, with the time left as
//! advice, for an interval that grows from trip to trip ([`OpenFor`]). **Half-open**: a bounded number of calls pass
//! as probes, and their rate of failures decides ([`HalfOpen`]). **Ramping up** (optional): the load comes back in
//! stages ([`RampUp`]). An operator may override all of it ([`Override`]).
//!
//! Each change of state starts a new generation. The result of a call that was admitted in an earlier generation
//! changes nothing.
//!
//! # What counts
//!
//! The layer's classifier ([`crate::classify`]) says what a result means. Ignored results change nothing and give
//! their probe back. A rejection raised by a layer further down is ignored, but for a timeout. A call that is
//! dropped before it ends counts as configured ([`Dropped`]); by a panic, as a failure. An error of the inner
//! service's `poll_ready` counts like a failed call.
//!
//! # Modes
//!
//! **Fail-fast**, the default: `poll_ready` is ready while the breaker is open, without asking the inner service,
//! and `call` rejects. It never makes a caller wait and never hands an error to `poll_ready`, which tower's `Buffer`
//! would die of. **Gate** ([`CircuitBreakerLayer::gate`]): `poll_ready` is pending while the breaker is open, which
//! is what `tower::balance` wants of an endpoint it should pass over.
//!
//! # Cost
//!
//! A call that a closed breaker lets through allocates nothing and takes no lock: one atomic load to get in, one
//! reading of the clock and one compare-and-swap on memory of the thread's own to get out (with
//! [`slow calls`](CircuitBreakerBuilder::slow_calls), two readings). A response future that is pending at first costs one more
//! reading, unless [`Dropped::Ignored`] is set. A breaker with a time window takes about 1.5 KiB of memory, plus 0.75
//! KiB per stripe (twice the cores, at most 32).
//!
//! # Without tower
//!
//! [`CircuitBreaker::acquire`] returns a [`Permit`] to hold while the work is done, and to settle with a verdict.
//!
//! # References
//!
//! M. Nygard, *Release It!*, 2nd ed., 2018, chapter 5; M. Fowler, *CircuitBreaker*, 2014
//! (<https://martinfowler.com/bliki/CircuitBreaker.html>).

mod announce;
mod builder;
mod call;
mod counters;
mod events;
pub mod fleet;
mod future;
mod half_open;
mod head;
mod judge;
mod keyed;
mod layer;
mod levels;
#[cfg(all(test, loom))]
mod loom_tests;
mod machine;
mod overrides;
mod packed_state;
mod readiness;
mod reading;
mod refusal;
mod rules;
mod service;
mod settings;
mod shared;
mod snapshot;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;
mod totals;
mod transitions;
mod view;
mod window;

use std::{fmt, sync::Arc, time::Duration};

pub use builder::CircuitBreakerBuilder;
pub use call::Permit;
pub use counters::Counts;
pub use events::{Cause, Event, Events, Missed};
pub use future::ResponseFuture;
pub use keyed::{KeyedCircuitBreaker, KeyedCircuitBreakerLayer, KeyedCircuitBreakerService};
pub use layer::{CircuitBreakerLayer, FailFast, Gate};
pub use overrides::{Override, OverrideInfo};
pub use service::CircuitBreakerService;
pub use settings::{Dropped, HalfOpen, OpenFor, RampUp, Window};
pub use snapshot::{BreakerSnapshot, Probes, Stage, State, Totals};

use self::{builder::Config, events::Hub, shared::Shared};
use crate::{
    classify, completion,
    error::Rejected,
    fleet::{StillRunning, StoreError},
    stripe::Striped,
    telemetry,
};

/// The handle of one breaker. Clones, layers and services made from it all share its state.
#[derive(Clone)]
pub struct CircuitBreaker {
    shared: Striped<Shared>,
}

impl CircuitBreaker {
    /// Starts the configuration of a breaker. Logs, metrics, events and rejections carry its name.
    pub fn builder(name: impl Into<Arc<str>>) -> CircuitBreakerBuilder {
        CircuitBreakerBuilder::new(name.into())
    }

    fn new(config: Config) -> Self {
        let hub = Arc::new(Hub::new(config.event_capacity));
        let shared = Shared::start(config, hub, None);
        telemetry::register(shared.shared());
        Self { shared }
    }

    /// A layer that guards a service with this breaker. All layers share it.
    pub fn layer(&self) -> CircuitBreakerLayer {
        CircuitBreakerLayer::new(self.clone(), classify::Standard, completion::OnResponse)
    }

    /// Acquires the permit for one call, for use without tower. Hold the [`Permit`] while the work is done, then
    /// [`settle`](completion::Guard::settle) it; dropped unsettled, it counts as [`Dropped`] says, by its age since this
    /// moment.
    ///
    /// Reads the clock, unless drops are ignored and slow calls are not watched.
    ///
    /// # Errors
    ///
    /// Rejects when the breaker would reject a call.
    ///
    /// ```
    /// use resilience_core::{CircuitBreaker, Verdict, completion::Guard};
    ///
    /// let breaker = CircuitBreaker::builder("cache").build()?;
    /// let mut call = breaker.acquire()?;
    /// let answer: Result<u32, ()> = Ok(7);
    /// call.settle(if answer.is_ok() { Verdict::Success } else { Verdict::transient() });
    /// assert_eq!(breaker.snapshot().counts.calls, 1);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn acquire(&self) -> Result<Permit, Rejected> {
        let mut call = match Permit::try_admit(&self.shared) {
            Ok(call) => call,
            Err(refusal) => Permit::admit_parked(&self.shared, &refusal)
                .ok_or_else(|| self.shared.reject(refusal))?,
        };
        call.begin();
        Ok(call)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// The state now. Steps that are due (the end of the open interval, of an override) are taken first.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// State and counts now. Steps that are due are taken first.
    #[must_use]
    pub fn snapshot(&self) -> BreakerSnapshot {
        self.shared.snapshot()
    }

    /// The events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.hub().subscribe()
    }

    /// Reads the state of the whole fleet. One round trip.
    ///
    /// # Errors
    ///
    /// When the store gives no answer within its time budget, or there is [none](CircuitBreakerBuilder::store).
    pub async fn fleet_view(&self) -> Result<fleet::BreakerView, StoreError> {
        match self.shared.member() {
            Some(member) => member.view().await,
            None => Err(StoreError::not_attached()),
        }
    }

    /// The fleet that shares this breaker, to set overrides for it, if it is [`shared`](CircuitBreakerBuilder::store).
    #[must_use]
    pub fn fleet(&self) -> Option<fleet::Fleet> {
        self.shared.member().cloned().map(fleet::Fleet::new)
    }

    /// Ends the background task of a fleet breaker: gives the probes back that this instance holds, reports its last
    /// calls and leaves the fleet. Waits for that for at most `within`. A breaker without a store has no such task.
    ///
    /// Calls go on by the local window. Cancel safe: the task ends all the same.
    ///
    /// # Errors
    ///
    /// [`StillRunning`] when it had not ended by then. It goes on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        match self.shared.member() {
            Some(member) => member.shutdown(within).await,
            None => Ok(()),
        }
    }

    /// Sets an override on this instance, in place of the one in force.
    pub fn set_override(&self, active_override: Override) {
        self.shared.set_override(active_override);
    }

    /// Clears the override in force, for this reason. False if there is none.
    pub fn clear_override(&self, reason: impl Into<Arc<str>>) -> bool {
        self.shared.clear_override(reason.into())
    }

    /// Closes the breaker with an empty window, and sets the open interval back to its first value, whatever the state is
    /// now. An override in force stays in force.
    ///
    /// Closes this instance only. A [`shared`](CircuitBreakerBuilder::store) breaker whose fleet is open or half-open
    /// returns to the fleet's state at its next report; [`Fleet::reset`](fleet::Fleet::reset) closes the fleet.
    pub fn reset(&self, reason: impl Into<Arc<str>>) {
        self.shared.reset(reason.into());
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}
