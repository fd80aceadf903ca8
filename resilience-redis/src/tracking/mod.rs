//! Reports of changes of cached values by Redis, for [`CacheStore::observe`].
//!
//! One server: the cache reads over a connection of its own that tracks what is read over it ([`session`]). An answer and a
//! message about its change may reach the caller in either order; an observer therefore compares what was true before the
//! question. The state of the connection is reported in order: a connection tracks before it is published; its loss is
//! reported before callers can use another one.
//!
//! Cluster: the client's connections come and go without a word, so that tracking on them is not possible. Beside them there
//! is one connection to each node, over which the node reports every change of a key of a cache ([`cluster`]). An answer and
//! a message come over different connections then, which makes no difference: see above.
//!
//! [`CacheStore::observe`]: resilience_core::cache::store::CacheStore::observe
//!
//! # References
//! [Client-side caching](https://redis.io/docs/latest/develop/reference/client-side-caching/) in the documentation of Redis.

#[cfg(feature = "cluster")]
mod cluster;
mod coverage;
mod observers;
mod session;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use arc_swap::ArcSwapOption;
use resilience_core::cache::store::Observer;
#[cfg(feature = "cluster")]
use tokio_util::sync::DropGuard;

use self::{
    coverage::Coverage,
    observers::Observers,
    session::{Kind, TrackingSession},
};
use crate::{connection::Connection, keys};

/// In keys.
const PATTERN: &str = "cache";

/// The observers of a process, and the connections over which Redis reports changes to them, while there are any. One for all
/// stores that are made from a [`Redis`](crate::Redis).
#[derive(Default)]
pub(crate) struct Tracking {
    current: ArcSwapOption<Current>,
    /// Number of observers so far. Locked while one is added or removed.
    joined: Mutex<u64>,
}

/// Observers, and the source of their reports.
struct Current {
    observers: Arc<Observers>,
    source: Source,
}

enum Source {
    /// A connection that everything is read over.
    Reads(Arc<Connection>),
    /// Connections beside those that are read over, in a Cluster. Dropping this closes them.
    #[cfg(feature = "cluster")]
    Nodes { _task: DropGuard },
}

/// Held by an observer; dropping it removes the observer.
struct Joined {
    tracking: Arc<Tracking>,
    number: u64,
}

impl Tracking {
    /// Tells `observer` of changes of keys under `{prefix:cache:`, until what is returned is dropped.
    pub(crate) fn observe(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        prefix: &str,
        observer: Weak<dyn Observer>,
    ) -> Arc<dyn Any + Send + Sync> {
        let mut joined = self.lock();
        *joined += 1;
        let current = self.current.load_full().unwrap_or_else(|| {
            let current = Arc::new(Current::start(connection, prefix));
            self.current.store(Some(Arc::clone(&current)));
            current
        });
        // Stored first: an observer that hears `restored` finds the connection that reports changes.
        current.observers.join(*joined, observer);
        Arc::new(Joined {
            tracking: Arc::clone(self),
            number: *joined,
        })
    }

    /// The connection for reads: the one that reports changes if there is one and it is up, or else `ordinary`. The
    /// loss of the former is reported before the latter is returned.
    pub(crate) fn reads(&self, ordinary: &Arc<Connection>) -> Arc<Connection> {
        match self.current.load().as_deref().map(|it| &it.source) {
            Some(Source::Reads(connection)) if connection.is_up() => Arc::clone(connection),
            _ => Arc::clone(ordinary),
        }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    fn start(connection: &Arc<Connection>, prefix: &str) -> Self {
        let observers = Arc::new(Observers::default());
        let kind = |keys| {
            Arc::new(Kind::new(
                &observers,
                connection.endpoint().clone(),
                keys,
                format!("{}:tracking", keys::family(prefix, PATTERN)),
            ))
        };
        #[cfg(feature = "cluster")]
        if connection.is_cluster() {
            // With the separator, so that the prefix of no other fleet begins with it.
            let keys = format!("{{{}:{PATTERN}:", keys::part(prefix));
            let following = cluster::follow(Arc::clone(connection), kind(Some(keys)));
            let source = Source::Nodes {
                _task: connection.spawn(following),
            };
            return Self { observers, source };
        }
        let member = observers.update(Coverage::add);
        let session = TrackingSession::new(&kind(None), member);
        let source = Source::Reads(Arc::new(connection.another_for(Arc::new(session))));
        Self { observers, source }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let _joined = self.tracking.lock();
        let was_last = self
            .tracking
            .current
            .load()
            .as_ref()
            .is_some_and(|current| current.observers.leave(self.number));
        if was_last {
            self.tracking.current.store(None);
        }
    }
}

impl fmt::Debug for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracking").finish_non_exhaustive()
    }
}
