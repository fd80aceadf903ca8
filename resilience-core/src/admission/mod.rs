//! Admission: one layer for every policy that decides before a call and holds something during it.
//!
//! A policy implements [`Admit`]: for each request it returns [`Ok`] with a permit, or a wait or a
//! rejection ([`Refused`]). [`AdmissionLayer`] does the rest: readiness, the wait, the permit's
//! life, the end of the call. The bulkhead, the rate limit, their fleet versions and the limits of
//! upstream servers are policies; other crates can add their own.
//!
//! It is not for layers that judge calls (a circuit breaker) or repeat them (a retry).
//!
//! ```
//! use std::future::Ready;
//! use resilience_core::{
//!     Pattern, Reason, Rejected, Verdict,
//!     admission::{Admission, AdmissionLayer, Admit, Permit, Refused},
//!     completion::Guard,
//! };
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! /// Admits requests of up to a size.
//! #[derive(Clone)]
//! struct UpTo(usize);
//!
//! struct NoPermit;
//!
//! impl Guard for NoPermit {
//!     fn settle(&mut self, _: Verdict) {}
//! }
//! impl Permit for NoPermit {}
//!
//! impl Admit<Vec<u8>> for UpTo {
//!     type Permit = NoPermit;
//!     type Wait = Ready<Result<NoPermit, Rejected>>; // never waits
//!
//!     fn admit(&self, request: &Vec<u8>) -> Admission<NoPermit, Self::Wait> {
//!         if request.len() <= self.0 {
//!             return Ok(NoPermit);
//!         }
//!         let rejected = Rejected::new(Pattern::RateLimit, Reason::TooCostly, "uploads");
//!         Err(Refused::no(rejected))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(AdmissionLayer::new(UpTo(3)))
//!     .service(service_fn(|body: Vec<u8>| async move { Ok::<_, Rejected>(body.len()) }));
//! assert_eq!(service.clone().oneshot(vec![0; 3]).await, Ok(3));
//! assert!(service.oneshot(vec![0; 4]).await.is_err());
//! # }
//! ```
//!
//! # Readiness
//! The service is ready when the inner one is. A call that waits takes a clone of the inner service
//! that was *not* polled ready, and drives it to readiness once it is admitted; a call that waits
//! or is rejected releases the readiness of the inner service it was called on. So nothing further
//! down is reserved by a call that waits. This is why the inner service has to be `Clone`.
//!
//! # Cancellation and panics
//! A dropped call drops its wait, its inner future and its permit, in this order. A permit that was
//! granted and whose call was never started is dropped without [`Permit::started`].
//!
//! # Work that outlives its call
//! A call that is dropped (its client has hung up, its deadline is over) does not stop what it has
//! spawned. [`carry`] (for a task), [`carry_fn`] (for a thread) and [`held`] (for all else) let such
//! work hold the permits around it until it ends, so that a limit on calls is a limit on work.
//!
//! # Cost
//! A call that is admitted at once allocates nothing and boxes nothing. One that waits allocates
//! twice, one that is rejected once.

mod carry;
mod future;
mod keyed;
mod layer;
mod portable;
mod queue;
mod service;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    future::Future,
    mem,
    task::{Context, Poll},
};

pub(crate) use self::queue::QueueSettings;
pub use self::{
    carry::{Carry, HeldPermits, carry, carry_fn, held},
    future::ResponseFuture,
    keyed::PerKey,
    layer::AdmissionLayer,
    portable::Portable,
    service::AdmissionService,
};

use crate::{completion::Guard, error::Rejected};

/// Policy that decides, before a call, whether it may start. Cheap to clone; clones share its state.
pub trait Admit<Req>: Clone {
    /// Held during the call; dropping it gives back what it holds.
    type Permit: Permit;
    /// Ends with the permit, or with a rejection when the wait was in vain. Dropping it ends the
    /// wait.
    type Wait: Future<Output = Result<Self::Permit, Rejected>>;

    /// Decides about `request`, without waiting.
    ///
    /// # Errors
    /// When the call may not start now.
    fn admit(&self, request: &Req) -> Admission<Self::Permit, Self::Wait>;
}

/// A permit, or a reason why there is none now.
pub type Admission<P, W> = Result<P, Box<Refused<W>>>;

/// Outcome of a call that may not start now. Boxed in an [`Admission`], so that an admitted call does
/// not carry the space for it.
#[derive(Debug)]
pub enum Refused<W> {
    /// The call waits for a permit.
    Wait(W),
    /// The call is rejected.
    No(Rejected),
}

impl<W> Refused<W> {
    /// Makes the call wait.
    #[cold]
    pub fn wait(wait: W) -> Box<Self> {
        Box::new(Self::Wait(wait))
    }

    /// Rejects the call.
    #[cold]
    #[must_use]
    pub fn no(rejected: Rejected) -> Box<Self> {
        Box::new(Self::No(rejected))
    }
}

/// Takes the service that was polled ready, and leaves a fresh clone in its place.
///
/// For a call that needs the readiness itself, or, dropping the result, for one that is not made: what the service
/// reserved when it was polled ready is released.
#[inline]
pub fn take_ready<S: Clone>(service: &mut S) -> S {
    let fresh = service.clone();
    mem::replace(service, fresh)
}

/// Guard that a call holds from its admission to its end.
pub trait Permit: Guard {
    /// Notes that the inner service was called, so that what was paid for the call is spent. A permit
    /// that is dropped before gives back all of it. Default: does nothing.
    #[inline(always)]
    fn started(&mut self) {}

    /// Enters a scope in which the code of the call is run and polled, e.g. a task-local value. It
    /// ends when the returned value is dropped. A permit that work may hold beyond its call enters
    /// its [`Portable`] part. Default: no scope.
    #[inline(always)]
    fn enter(&mut self) -> impl Sized {}

    /// Completes when the permit is revoked: the call is dropped and ends with this rejection. Polled
    /// before each poll of the call. Default: never completes.
    #[inline(always)]
    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Rejected> {
        let _ = cx;
        Poll::Pending
    }
}
