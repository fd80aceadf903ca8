//! What the servers that are called have said of *their* limits: not before then, no more than so many.
//!
//! A [`RateLimit`](super::RateLimit) holds this service to what its owner has decided. [`UpstreamLimits`] holds it to what
//! its peers ask for: after a "too many requests, come back in 30 seconds", calls to that peer are rejected here for 30
//! seconds, by whoever makes them, instead of being sent to be refused there. It knows no protocol: what a peer has
//! said is told to it by [`Permit::observe`] (`resilience_http::client::UpstreamLimitsLayer` reads it out of `Retry-After` and
//! `RateLimit`).
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::limit::upstream::{UpstreamLimits, Advertised};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let upstreams = UpstreamLimits::builder("partners").build()?;
//! let pass = upstreams.enter("api.test:443")?;
//! pass.observe(Advertised::RetryAfter(Duration::from_secs(30)));
//!
//! let rejected = upstreams.enter("api.test:443").unwrap_err();
//! assert!(rejected.retry_after().unwrap() > Duration::from_secs(29));
//! assert!(upstreams.enter("other.test:443").is_ok());
//! # Ok(()) }
//! ```
//!
//! # Between instances
//! With a [store](UpstreamLimitsBuilder::store) (the one for [shared limits](super::store::LimitStore), in Redis or in this
//! process), what one instance was told by a peer all of them keep to. The instance that was told writes it down at
//! once, and the first word counts: a second one about the same time changes nothing. The others look, in the
//! background, at the peers that they have called since the last look: one question per such peer and
//! [interval](UpstreamLimitsBuilder::refresh) (a second), none on the way of a call. So for about an interval others may
//! still send. What is left of a budget ([`Advertised::Remaining`]) is not shared: each instance hears its own answers.
//!
//! It is a bucket of milliseconds: `until` of the subject is emptied by as many as the peer wants to be left alone
//! for, and fills with time; how long it takes to be full is how long there is to wait. `observe` is a bucket of one token
//! that keeps a second instance from emptying it once more.
//!
//! The store being away costs nothing but that: each instance goes by what it hears itself.
//!
//! # Errors
//! [`Reason::RateLimited`] with the time to wait. It says nothing about the peer's health, and breakers ignore it.
//!
//! # Bounds
//! A peer cannot keep callers away for longer than [`longest`](UpstreamLimitsBuilder::longest). The number of peers is
//! bounded by [`Keyed`](crate::keyed::Keyed); if all that there is room for are to be left alone, further ones share one entry.
//!
//! # Cost
//! A look-up in a lock-free map and a few atomics per call; no allocation for a peer that is known, no lock, no store.

mod admission;
mod agent;
mod builder;
mod entry;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use self::builder::UpstreamLimitsBuilder;

use self::{agent::Bell, entry::Upstream};
use crate::{
    clock::{Clock, Moment},
    error::{Pattern, Reason, Rejected},
    keyed::Registry,
    telemetry::{self, Reading, Source},
};

/// What a peer has said of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advertised {
    /// Not before this time is over.
    RetryAfter(Duration),
    /// No more than so many calls before this time is over. Calls that are under way count.
    Remaining(u64, Duration),
}

/// What peers have said of their limits, as their caller holds it. Clones share it.
#[derive(Clone)]
pub struct UpstreamLimits {
    front: Arc<Front>,
}

/// What all clones hold; the agent holds the core only.
struct Front(Arc<Core>);

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(bell) = &self.0.bell {
            bell.close();
        }
    }
}

struct Core {
    name: Arc<str>,
    clock: Clock,
    longest: Duration,
    upstreams: Registry<String, Arc<Upstream>>,
    /// Where a store is to be told.
    bell: Option<Bell>,
    rejected: AtomicU64,
}

impl UpstreamLimits {
    /// Starts a handle called `name`, as it appears in rejections, events and metrics, and in a store.
    pub fn builder(name: impl Into<Arc<str>>) -> UpstreamLimitsBuilder {
        UpstreamLimitsBuilder::new(name.into())
    }

    /// Lets a call to `upstream` go, or not. Keep the pass until the answer is there.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] with the time to wait, if the peer has asked for that.
    pub fn enter(&self, upstream: &str) -> Result<Permit, Rejected> {
        let core = &self.front.0;
        let now = core.clock.now();
        core.upstreams.with(
            upstream,
            || now,
            |entry| {
                if let Some(bell) = &core.bell
                    && entry.wanted()
                {
                    bell.ring();
                }
                let entered = entry.enter(now).map(|()| Permit {
                    core: Arc::clone(core),
                    upstream: Arc::clone(entry),
                });
                entered.map_err(|wait| core.reject(wait))
            },
        )
    }

    /// How long `upstream` is to be left alone from now on; `None` if it may be called.
    #[must_use]
    pub fn wait_for(&self, upstream: &str) -> Option<Duration> {
        let core = &self.front.0;
        let now = core.clock.now();
        core.upstreams
            .with(upstream, || now, |entry| entry.closed_for(now))
    }

    /// How many peers are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.front.0.upstreams.len()
    }

    /// Whether no peer is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls rejected so far.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.front.0.rejected.load(Relaxed)
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.front.0.name
    }
}

impl fmt::Debug for UpstreamLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamLimits")
            .field("name", &self.name())
            .field("upstreams", &self.len())
            .finish_non_exhaustive()
    }
}

impl Core {
    #[cold]
    fn reject(&self, wait: Duration) -> Rejected {
        self.rejected.fetch_add(1, Relaxed);
        let (pattern, reason) = (Pattern::RateLimit, Reason::RateLimited);
        tracing::debug!(
            target: "resilience",
            pattern = pattern.as_str(),
            name = &*self.name,
            reason = reason.as_str(),
            ?wait,
            "rejected: its peer wants to be left alone"
        );
        Rejected::new(pattern, reason, Arc::clone(&self.name)).with_retry_after(wait)
    }

    fn now(&self) -> Moment {
        self.clock.now()
    }
}

impl Source for Core {
    fn pattern(&self) -> Pattern {
        Pattern::RateLimit
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.upstreams.sweep(self.now());
        out(Reading {
            metric: &telemetry::LIMIT_REJECTIONS,
            attribute: Reason::RateLimited.as_str(),
            value: self.rejected.load(Relaxed),
        });
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

/// A call that may be made, until its answer is there. Dropped, it says nothing about the peer.
#[must_use = "a call is under way for as long as its pass lives"]
pub struct Permit {
    core: Arc<Core>,
    upstream: Arc<Upstream>,
}

impl Permit {
    /// Ends the call with what the peer has said of its limits.
    pub fn observe(self, advertised: Advertised) {
        let Self { core, upstream } = &self;
        let now = core.now();
        // This call is over: it has no part in what is left.
        let wait = match advertised {
            Advertised::RetryAfter(wait) | Advertised::Remaining(0, wait) => wait.min(core.longest),
            Advertised::Remaining(calls, window) => {
                return upstream.allow(calls, now + window.min(core.longest));
            }
        };
        if wait.is_zero() || !upstream.close(now + wait) {
            return;
        }
        tracing::info!(
            target: "resilience",
            pattern = Pattern::RateLimit.as_str(),
            name = &*core.name,
            ?wait,
            "a peer wants to be left alone"
        );
        if let Some(bell) = &core.bell {
            upstream.tell(wait);
            bell.ring();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.upstream.leave();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
