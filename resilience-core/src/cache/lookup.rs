//! What a call asks for, and what it gets.

use std::{sync::Arc, time::Duration};

/// What a cache returned for a key.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lookup<V> {
    /// The value; `None`: there is none.
    pub value: Option<Arc<V>>,
    /// Whether it may be out of date.
    pub freshness: Freshness,
    /// Where it came from.
    pub level: Level,
    /// Time since it was loaded.
    pub age: Duration,
}

impl<V> Clone for Lookup<V> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            ..*self
        }
    }
}

/// Whether a value may be out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Freshness {
    /// Within its time to live, and not invalidated.
    Fresh,
    /// Beyond its time to live; it is being loaded again
    /// ([`stale_while_revalidate`](super::CacheBuilder::stale_while_revalidate)), or the load takes longer than the soft
    /// [timeout](super::CacheBuilder::load_timeout).
    Stale,
    /// Beyond its time to live; loading it again failed, or failed just now
    /// ([`stale_if_error`](super::CacheBuilder::stale_if_error)).
    StaleOnError,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// This process.
    Local,
    /// The store.
    Store,
    /// The loader, by this call or one that it shared.
    Loaded,
}

/// How one call uses the cache.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::cache::CallOptions;
///
/// let after_my_write = CallOptions::new().refresh();
/// let good_enough = CallOptions::new().max_stale(Duration::from_secs(30));
/// # let _ = (after_my_write, good_enough);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct CallOptions {
    pub(super) max_stale: Option<Duration>,
    pub(super) refresh: bool,
    pub(super) bypass: bool,
}

impl CallOptions {
    /// As the cache is set.
    pub const fn new() -> Self {
        Self {
            max_stale: None,
            refresh: false,
            bypass: false,
        }
    }

    /// Serves what this process holds for up to `max_stale` after the connection to the store was lost, in place of the
    /// cache's own [`max_stale`](super::CacheBuilder::max_stale).
    pub const fn max_stale(mut self, max_stale: Duration) -> Self {
        self.max_stale = Some(max_stale);
        self
    }

    /// Loads the value, whatever is cached, and caches it. Calls that come meanwhile share the load.
    ///
    /// If the load fails, its error is returned, also within
    /// [`stale_if_error`](super::CacheBuilder::stale_if_error): what the call asks for is what it was not satisfied with, and a value
    /// from before a write of its own must not be taken for the one after. What is cached stays, and serves other
    /// calls; a caller that would rather have it than an error repeats the call without this option.
    pub const fn refresh(mut self) -> Self {
        self.refresh = true;
        self
    }

    /// Calls the loader and nothing else: nothing is read from the cache, and nothing is stored.
    pub const fn bypass(mut self) -> Self {
        self.bypass = true;
        self
    }
}
