//! Tracks rate limits advertised by upstream servers and enforces them locally.
//!
//! A [`RateLimit`](super::RateLimit) enforces the limits that the owner of this service configures; [`UpstreamLimits`] those
//! of the servers it calls: after a "too many requests, come back in 30 seconds", all calls to that server are rejected
//! here for 30 seconds, instead of being sent to be rejected there. It knows no protocol: what a server has advertised is
//! passed to [`Permit::observe`] (`resilience_http::client::UpstreamLimitsLayer` reads it out of `Retry-After` and
//! `RateLimit`).
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{UpstreamLimits, limit::upstream::Advertised};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let upstreams = UpstreamLimits::builder("partners").build()?;
//! let permit = upstreams.enter("api.test:443")?;
//! permit.observe(Advertised::RetryAfter(Duration::from_secs(30)));
//!
//! let rejected = upstreams.enter("api.test:443").unwrap_err();
//! assert!(rejected.retry_after().unwrap() > Duration::from_secs(29));
//! assert!(upstreams.enter("other.test:443").is_ok());
//! # Ok(()) }
//! ```
//!
//! # Between instances
//! With a [store](UpstreamLimitsBuilder::store) (the one for [fleet limits](super::store::LimitStore), in Redis or in this
//! process), all instances keep to what one of them was told. The instance that was told writes it at once, and the first
//! write counts: a second one at about the same time changes nothing. The others read, in the background, about the
//! servers that they have called since the last time: one round trip per such server and
//! [interval](UpstreamLimitsBuilder::refresh) (a second), none on the path of a call. So for about an interval others may
//! still send. [`Advertised::Remaining`] is not shared: each instance keeps to its own answers.
//!
//! It is a bucket of milliseconds: `until` of the subject is emptied by the length of the pause, and fills with time; the
//! time until it is full is the time to wait. `told` is a bucket of one token that keeps a second instance from emptying
//! the first once more.
//!
//! # When the store is unavailable
//! Each instance keeps to what it was told itself, which is what [`OnOutage::Local`](crate::fleet::OnOutage::Local) means
//! here; there is no other policy. What was not written is written when the store is available again, unless the pause is
//! over by then. Calls never wait for the store.
//!
//! # Errors
//! [`Reason::RateLimited`] with the time to wait. It says nothing about the health of the server, and breakers ignore it.
//!
//! # Bounds
//! A server cannot keep callers away for longer than [`longest`](UpstreamLimitsBuilder::longest). The number of servers is
//! bounded by [`Keyed`](crate::keyed::Keyed); while all of them are closed, further ones share one entry.
//!
//! # Cost
//! A lookup in a lock-free map and a few atomics per call; no allocation for a known server, no lock, no store.
//!
//! # References
//! `Retry-After`: [RFC 9110, section 10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3); `RateLimit`:
//! [draft-ietf-httpapi-ratelimit-headers](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/).

mod agent;
mod builder;
mod entry;
mod layer;
mod settings;
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

use serde::Serialize;

pub use self::{builder::UpstreamLimitsBuilder, layer::ByUpstream};

use self::entry::Upstream;
use super::store::LimitStore;
use crate::{
    clock::{Clock, Moment},
    error::{Pattern, Reason, Rejected},
    fleet::{AgentHandle, StillRunning, StoreClient, Waker},
    keyed::Registry,
    order::{self, Part},
    telemetry::{self, Reading, Scope, Source},
};

/// A limit that an upstream server has advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advertised {
    /// No call before this time is over.
    RetryAfter(Duration),
    /// At most this number of calls before this time is over. Calls in flight count.
    Remaining(u64, Duration),
}

/// State of [`UpstreamLimits`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UpstreamLimitsSnapshot {
    /// Servers that are known.
    pub upstreams: usize,
    /// Calls rejected so far.
    pub rejected: u64,
    /// Whether there is a store, and it is unavailable: each instance keeps to what it was told itself.
    pub degraded: bool,
}

/// The limits that upstream servers have advertised. Clones share them.
#[derive(Clone)]
pub struct UpstreamLimits {
    front: Arc<Front>,
}

/// The part that all clones hold; the agent holds the core only.
struct Front {
    core: Arc<Core>,
    agent: Option<AgentHandle>,
}

struct Core {
    name: Arc<str>,
    clock: Clock,
    longest: Duration,
    upstreams: Registry<String, Arc<Upstream>>,
    /// The store, and what wakes the agent that talks to it.
    store: Option<(StoreClient<dyn LimitStore>, Waker)>,
    rejected: AtomicU64,
}

impl UpstreamLimits {
    /// Starts the builder of a handle called `name`, as it appears in rejections, events and metrics, and in a store.
    pub fn builder(name: impl Into<Arc<str>>) -> UpstreamLimitsBuilder {
        UpstreamLimitsBuilder::new(name.into())
    }

    /// Admits a call to `upstream`, or rejects it. Keep the permit until the response is there.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] with the time to wait, when the server has asked for that.
    pub fn enter(&self, upstream: &str) -> Result<Permit, Rejected> {
        let core = &self.front.core;
        let now = core.clock.now();
        core.upstreams.with(
            upstream,
            || now,
            |entry| {
                if let Some((_, agent)) = &core.store
                    && entry.wanted()
                {
                    agent.wake();
                }
                let entered = entry.enter(now).map(|()| Permit {
                    core: Arc::clone(core),
                    upstream: Arc::clone(entry),
                });
                entered.map_err(|wait| core.reject(wait))
            },
        )
    }

    /// The time until `upstream` may be called; `None` if it may be called now.
    #[must_use]
    pub fn wait_for(&self, upstream: &str) -> Option<Duration> {
        let core = &self.front.core;
        let now = core.clock.now();
        core.upstreams
            .with(upstream, || now, |entry| entry.closed_for(now))
    }

    /// The state of the handle now.
    #[must_use]
    pub fn snapshot(&self) -> UpstreamLimitsSnapshot {
        let core = &self.front.core;
        UpstreamLimitsSnapshot {
            upstreams: core.upstreams.len(),
            rejected: core.rejected.load(Relaxed),
            degraded: core.is_degraded(),
        }
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.front.core.name
    }

    /// Ends the background task, if there is one: writes to the store what was not written yet, and waits for that, for
    /// at most `within`. The handle stays usable, but shares nothing any more.
    ///
    /// # Errors
    /// [`StillRunning`] when it was not done by then. It goes on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        match &self.front.agent {
            Some(agent) => agent.shutdown(within).await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for UpstreamLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        order::policy_part(|| Part::new(Pattern::RateLimit, self.name()).set("upstream", true));
        f.debug_struct("UpstreamLimits")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

impl Core {
    #[cold]
    fn reject(&self, wait: Duration) -> Rejected {
        let scope = Scope::new(Pattern::RateLimit, &self.name);
        scope.count_and_reject(&self.rejected, Reason::RateLimited, Some(wait))
    }

    fn is_degraded(&self) -> bool {
        let store = self.store.as_ref();
        store.is_some_and(|(client, _)| !client.is_available())
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
        if self.store.is_some() {
            out(Reading {
                metric: &telemetry::FLEET_DEGRADED,
                attribute: Pattern::RateLimit.as_str(),
                value: self.is_degraded().into(),
            });
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

/// Permit of a call, held until its response is there. Dropping it says nothing about the server.
#[must_use = "a call is in flight for as long as its permit lives"]
pub struct Permit {
    core: Arc<Core>,
    upstream: Arc<Upstream>,
}

impl Permit {
    /// Ends the call with what the server has advertised.
    pub fn observe(self, advertised: Advertised) {
        let Self { core, upstream } = &self;
        let now = core.now();
        // This call is over: it does not count towards what is left.
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
            "upstream limit advertised"
        );
        if let Some((_, agent)) = &core.store {
            upstream.mark_unwritten();
            agent.wake();
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
