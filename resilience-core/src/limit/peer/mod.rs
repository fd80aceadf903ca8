//! What the servers that are called have said of *their* limits: not before then, no more than so many.
//!
//! A [`RateLimit`](super::RateLimit) holds this service to what its owner has decided. [`PeerLimits`] holds it to what
//! its peers ask for: after a "too many requests, come back in 30 seconds", calls to that peer are rejected here for 30
//! seconds, by whoever makes them, instead of being sent to be refused there. It knows no protocol: what a peer has
//! said is told to it by [`Pass::told`] (`resilience_http::client::PeerLimitsLayer` reads it out of `Retry-After` and
//! `RateLimit`).
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::limit::peer::{PeerLimits, Said};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let peers = PeerLimits::builder("partners").build()?;
//! let pass = peers.enter("api.test:443")?;
//! pass.told(Said::NotBefore(Duration::from_secs(30)));
//!
//! let rejected = peers.enter("api.test:443").unwrap_err();
//! assert!(rejected.retry_after().unwrap() > Duration::from_secs(29));
//! assert!(peers.enter("other.test:443").is_ok());
//! # Ok(()) }
//! ```
//!
//! # Between instances
//! With a [store](PeerLimitsBuilder::share) (the one for [shared limits](super::store::LimitStore), in Redis or in this
//! process), what one instance was told by a peer all of them keep to. The instance that was told writes it down at
//! once, and the first word counts: a second one about the same time changes nothing. The others look, in the
//! background, at the peers that they have called since the last look: one question per such peer and
//! [interval](PeerLimitsBuilder::refresh) (a second), none on the way of a call. So for about an interval others may
//! still send. What is left of a budget ([`Said::NoMoreThan`]) is not shared: each instance hears its own answers.
//!
//! It is a bucket of milliseconds: `until` of the subject is emptied by as many as the peer wants to be left alone
//! for, and fills with time; how long it takes to be full is how long there is to wait. `told` is a bucket of one token
//! that keeps a second instance from emptying it once more.
//!
//! The store being away costs nothing but that: each instance goes by what it hears itself.
//!
//! # Errors
//! [`Reason::RateLimited`] with the time to wait. It says nothing about the peer's health, and breakers ignore it.
//!
//! # Bounds
//! A peer cannot keep callers away for longer than [`longest`](PeerLimitsBuilder::longest). The number of peers is
//! bounded by [`Keyed`](crate::keyed::Keyed); if all that there is room for are to be left alone, further ones share one entry.
//!
//! # Cost
//! A look-up in a lock-free map and a few atomics per call; no allocation for a peer that is known, no lock, no store.

mod agent;
mod config;
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

pub use self::config::PeerLimitsBuilder;

use self::{agent::Bell, entry::Peer};
use crate::{
    clock::{Clock, Moment},
    error::{Pattern, Reason, Rejected},
    keyed::Registry,
    telemetry::{self, Reading, Source},
};

/// What a peer has said of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Said {
    /// Not before this time is over.
    NotBefore(Duration),
    /// No more than so many calls before this time is over. Calls that are under way count.
    NoMoreThan(u64, Duration),
}

/// What peers have said of their limits, as their caller holds it. Clones share it.
#[derive(Clone)]
pub struct PeerLimits {
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
    peers: Registry<String, Arc<Peer>>,
    /// Where a store is to be told.
    bell: Option<Bell>,
    rejected: AtomicU64,
}

impl PeerLimits {
    /// Starts a handle called `name`, as it appears in rejections, events and metrics, and in a store.
    pub fn builder(name: impl Into<Arc<str>>) -> PeerLimitsBuilder {
        PeerLimitsBuilder::new(name.into())
    }

    /// Lets a call to `peer` go, or not. Keep the pass until the answer is there.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] with the time to wait, if the peer has asked for that.
    pub fn enter(&self, peer: &str) -> Result<Pass, Rejected> {
        let core = &self.front.0;
        let now = core.clock.now();
        core.peers.with(
            peer,
            || now,
            |entry| {
                if let Some(bell) = &core.bell
                    && entry.wanted()
                {
                    bell.ring();
                }
                let entered = entry.enter(now).map(|()| Pass {
                    core: Arc::clone(core),
                    peer: Arc::clone(entry),
                });
                entered.map_err(|wait| core.reject(wait))
            },
        )
    }

    /// How long `peer` is to be left alone from now on; `None` if it may be called.
    #[must_use]
    pub fn wait_for(&self, peer: &str) -> Option<Duration> {
        let core = &self.front.0;
        let now = core.clock.now();
        core.peers.with(peer, || now, |entry| entry.closed_for(now))
    }

    /// How many peers are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.front.0.peers.len()
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

impl fmt::Debug for PeerLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLimits")
            .field("name", &self.name())
            .field("peers", &self.len())
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
        self.peers.sweep(self.now());
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
pub struct Pass {
    core: Arc<Core>,
    peer: Arc<Peer>,
}

impl Pass {
    /// Ends the call with what the peer has said of its limits.
    pub fn told(self, said: Said) {
        let Self { core, peer } = &self;
        let now = core.now();
        // This call is over: it has no part in what is left.
        let wait = match said {
            Said::NotBefore(wait) | Said::NoMoreThan(0, wait) => wait.min(core.longest),
            Said::NoMoreThan(calls, window) => {
                return peer.allow(calls, now + window.min(core.longest));
            }
        };
        if wait.is_zero() || !peer.close(now + wait) {
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
            peer.tell(wait);
            bell.ring();
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.peer.leave();
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").finish_non_exhaustive()
    }
}
