//! What the handle of a cache shows.

use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use super::{CacheKey, counters::CacheTotals, local::Local, shared::Shared};
use crate::{
    error::Pattern,
    telemetry::{self, Metric, Reading, Source},
};

/// The state of a [`Cache`](super::Cache) at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CacheSnapshot {
    /// Name of the handle.
    pub name: String,
    /// Values that this process holds, including some that are no longer used.
    pub entries: usize,
    /// Their weight.
    pub weight: u64,
    /// Loads in progress.
    pub loading: usize,
    /// Keys and tags whose invalidation the store does not have yet.
    pub pending_invalidations: usize,
    /// Whether the store is available; `true` without one.
    pub available: bool,
    /// Whether the store reports changes at present; `true` without one.
    pub coherent: bool,
    /// The most requested keys, by an estimate of their requests since the handle was built; most first.
    pub hot_keys: Vec<HotKey>,
    /// Counts since the handle was built.
    #[serde(flatten)]
    pub totals: CacheTotals,
}

/// A key that is requested often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HotKey {
    /// The key, as it is displayed.
    pub key: String,
    /// About how often it was requested: too high by at most a 128th of all requests, if they were counted exactly; one in 64
    /// is.
    pub requests: u64,
}

impl<K: CacheKey, V: Send + Sync + 'static> Shared<K, V> {
    pub(super) fn snapshot(&self) -> CacheSnapshot {
        let hot = self.hot_keys.top(HOT_KEYS).into_iter();
        let remote = self.remote.as_ref();
        CacheSnapshot {
            name: self.name.to_string(),
            entries: self.local.as_ref().map_or(0, Local::len),
            weight: self.local.as_ref().map_or(0, Local::weight),
            loading: self.loads.snapshot().in_flight,
            pending_invalidations: remote.map_or(0, |remote| remote.pending.len()),
            available: remote.is_none_or(|remote| remote.client.is_available()),
            coherent: self.coherence.is_told(),
            hot_keys: hot
                .map(|(key, requests)| HotKey {
                    key: key.to_string(),
                    requests,
                })
                .collect(),
            totals: CacheTotals {
                hits_local: self.hits.sum(),
                unusable: remote.map_or(0, |remote| remote.unusable.load(Relaxed)),
                store_errors: remote.map_or(0, |remote| remote.client.errors()),
                evictions: self.local.as_ref().map_or(0, Local::evictions),
                ..self.totals.snapshot()
            },
        }
    }
}

/// Hot keys in a snapshot.
const HOT_KEYS: usize = 10;

impl<K, V> Source for Shared<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    fn pattern(&self) -> Pattern {
        Pattern::Cache
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read_named(&self, out: &mut dyn FnMut(&'static Metric, &str, u64)) {
        self.labels.read(&self.hot_keys, |label, requests| {
            out(&telemetry::CACHE_HOT_KEY_REQUESTS, label, requests);
        });
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
        let remote = self.remote.as_ref();
        let local = self.local.as_ref();
        let mut row = |metric, attribute, value| {
            out(Reading {
                metric,
                attribute,
                value,
            });
        };
        row(&telemetry::CACHE_REQUESTS, "hit_local", self.hits.sum());
        let errors = remote.map_or(0, |it| it.client.errors());
        row(&telemetry::CACHE_STORE_ERRORS, "", errors);
        let unusable = remote.map_or(0, |it| it.unusable.load(Relaxed));
        row(&telemetry::CACHE_UNUSABLE, "", unusable);
        row(
            &telemetry::CACHE_EVICTIONS,
            "",
            local.map_or(0, Local::evictions),
        );
        row(
            &telemetry::CACHE_ENTRIES,
            "",
            local.map_or(0, Local::len) as u64,
        );
        row(
            &telemetry::CACHE_COHERENT,
            "",
            u64::from(self.coherence.is_told()),
        );
        let is_degraded = remote.is_some_and(|it| !it.client.is_available());
        row(
            &telemetry::FLEET_DEGRADED,
            Pattern::Cache.as_str(),
            u64::from(is_degraded),
        );
    }
}
