//! Which instances are live: what a store offers for that, and what is known of it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use super::{instance::instance_id, store::StoreFuture};

/// A store that counts the live instances of a fleet, by the store's own clock.
pub trait MemberStore: fmt::Debug + Send + Sync + 'static {
    /// Notes that `instance` is live for `ttl` from now on; zero: it leaves. Returns how many instances are live.
    fn heartbeat<'a>(&'a self, instance: &'a str, ttl: Duration) -> StoreFuture<'a, u64>;
}

/// This process' membership.
pub(super) struct Membership {
    members: Arc<dyn MemberStore>,
    instance: Arc<str>,
    /// Zero: not known.
    live: AtomicU64,
    /// Whether the last heartbeat was answered.
    answered: AtomicBool,
    started: AtomicBool,
}

impl Membership {
    pub(super) fn new(members: Arc<dyn MemberStore>) -> Self {
        Self {
            members,
            instance: instance_id(None),
            live: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            started: AtomicBool::new(false),
        }
    }

    pub(super) fn live(&self) -> Option<u64> {
        Some(self.live.load(Relaxed)).filter(|live| *live > 0)
    }

    /// Whether this is the first call: only one heartbeat is to run.
    pub(super) fn start(&self) -> bool {
        !self.started.swap(true, AcqRel)
    }

    pub(super) fn members(&self) -> &dyn MemberStore {
        &*self.members
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    pub(super) fn saw(&self, live: u64) {
        self.live.store(live.max(1), Relaxed);
        self.answered.store(true, Relaxed);
    }

    pub(super) fn missed(&self) {
        self.answered.store(false, Relaxed);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }
}
