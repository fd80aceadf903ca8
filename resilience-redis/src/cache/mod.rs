//! Cached values in Redis.
//!
//! The steps and their meaning are those of [`Record`](resilience_core::cache::record::Record); each is one script, one round
//! trip, on one key. A hit needs no script: it is a plain GET, or an MGET of several keys.
//!
//! | key | type | content | TTL |
//! |---|---|---|---|
//! | `{prefix:cache:NAME:KEY}` | string | packed head of 64 bytes: format, kind, hash of the key, version, when it was stored, how long it is fresh and kept, how long it took to load, and a lease, tombstone or write with its end; then tags with their generations; then the encoded value | how long the value is kept; without one, until the end of the lease, tombstone or write |
//! | `{prefix:cache:NAME}:tag:TAG` | string | generation, and when the tag was invalidated, in microseconds | twice as long as values are kept |
//! | `{prefix:cache:NAME}:reports` | hash | instance, its snapshot as JSON (its hot keys included) | 1 minute |
//! | `{prefix:cache:NAME}:reports:end` | zset | instance, until when its report counts (ms) | 1 minute |
//! | `{prefix:cache}:names` | zset | cache, last announced (ms) | 1 day |
//!
//! [`RedisCache::key`] returns the key of a value. A long one has a digest in place of its names. All tags of a cache are in one
//! slot of a Cluster, so that they are read in one round trip; every value has the tag of all values, so they would be no better
//! spread by name.
//!
//! # Time
//! Moments are in milliseconds on the server's clock. How old a value is that GET returned is judged by this process' estimate
//! of that clock, which every lease corrects; whether a value is loaded again, the script decides by the clock itself. An
//! estimate that is wrong, because the clock was just set or, on Cluster, because the nodes differ, thus costs a script, and
//! never a load. A value from the future, since the clock was set back, is stale.
//!
//! # What an answer proves
//! The answer to a script carries a nonce. The answer to a GET carries none, so that a hit costs no more than a bare GET: in its
//! place, the record has a hash of its key, and one of another key is not believed (see the [README](crate)). An answer
//! without a record proves nothing, and is a miss, which the script that grants leases checks. Of two answers to GETs of the same
//! key, each may be taken for the other's.
//!
//! # Values in memory
//! Every change is reported to a process that keeps values in memory: over a connection of its own, which tracks what is read over
//! it, or in a Cluster over one connection to each node. [`operations`] has the settings of Redis that matter, what they
//! cost, and how long a value may be old when connections fail.
//!
//! # Foreign values
//! A value of another type, in another format, or copied from another key counts as a miss, is reported by one event per
//! process, and is replaced by the next step that stores something.
//!
//! # Memory
//! A cache may live on a server that evicts: set `maxmemory-policy` to `allkeys-lru` or `allkeys-lfu`, on a server of its own,
//! because limits and idempotency records must not be evicted. An evicted value is a miss. An evicted tombstone lets loads
//! begin early that may read an old value from a replica of the database; one that began before the invalidation is refused all the
//! same. An evicted tag invalidates its values. A full server that evicts nothing refuses new values, and replaces known
//! ones; an invalidation is never refused.
//!
//! # Failover
//! Redis replicates after it has answered. An invalidation that was answered just before the master failed may be unknown to
//! the replica that takes over. So each cache repeats its changes of the last 30 seconds when the connection returns; until
//! then, or if the process that made the change is gone as well, a value from before it may be served for as long as it is kept.
//!
//! # Size
//! A hit is sent as it is. In scripts, Redis' Lua hashes every byte of a value, when it is stored and when a lease returns a
//! stale one: about 2 us of the server per kilobyte. Compress values of more than about ten kilobytes.
//!
//! # References
//! Redis: [scripting](https://redis.io/docs/latest/develop/programmability/eval-intro/), [key
//! eviction](https://redis.io/docs/latest/develop/reference/eviction/).
//!
//! ```no_run
//! use resilience_core::cache::CacheStore;
//! use resilience_redis::Redis;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Redis::connect("redis://redis.internal:6379")?.cache();
//! let values = store.get("products", &["apple", "pear"]).await?;
//! println!("{} of 2 are cached", values.iter().flatten().count());
//! # Ok(()) }
//! ```

#[doc = include_str!("operations.md")]
pub mod operations {}
mod reads;
mod reports;
mod steps;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    any::Any,
    fmt,
    sync::{Arc, Weak, atomic::AtomicBool},
    time::Duration,
};

use redis::Value;
use resilience_core::{
    cache::{
        CacheStore,
        record::{Entry, Fill, Generation, Lease, Leased, Stored, Token},
        store::{Observer, StoreError, StoreFuture, Subject, validate},
    },
    fleet::StoreHandle,
};
use tokio::time::Instant;

pub use self::reports::CacheReport;
use self::steps::{
    BEGIN_WRITE, END_WRITE, EXTEND, FILL, GENERATIONS, INVALIDATE, INVALIDATE_TAG, LEASE, PUT,
    RELEASE,
};
use crate::{
    connection::Connection, error::CommandError, keys, script::Script, store::StoreContext,
};

/// In keys.
const PATTERN: &str = "cache";

/// The cached values of one Redis and prefix. Made by [`Redis::cache`](crate::Redis::cache); cheap to clone.
#[derive(Clone)]
pub struct RedisCache {
    context: StoreContext,
    /// Whether a foreign value was reported.
    reported: Arc<AtomicBool>,
}

/// A key, and the hash that its record has.
struct Key {
    key: String,
    hash: u64,
}

impl RedisCache {
    pub(crate) fn new(context: StoreContext) -> Self {
        Self {
            context,
            reported: Arc::default(),
        }
    }

    /// The key that holds the value of `key` in the cache called `name`: to look at, or to delete.
    #[must_use]
    pub fn key(&self, name: &str, key: &str) -> String {
        keys::subject_tag(&self.context.prefix, PATTERN, name, key)
    }

    /// The names of all caches that the fleets on this Redis used within the last day, sorted.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        self.context.names(PATTERN).await
    }

    fn connection(&self) -> Arc<Connection> {
        self.context.cache_connection()
    }

    /// The key of a tag.
    fn tag(&self, name: &str, tag: &str) -> String {
        let mut key = keys::tag(&self.context.prefix, PATTERN, name);
        key.push_str(":tag:");
        key.push_str(&keys::bounded_part(tag));
        key
    }

    fn checked(&self, name: &str, key: &str) -> Result<Key, StoreError> {
        validate::key(key)?;
        let key = self.key(name, key);
        let hash = keys::hash(&key);
        Ok(Key { key, hash })
    }

    /// Runs a step on one key.
    async fn step<T>(
        &self,
        script: &Script,
        key: &str,
        args: &[&[u8]],
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let answer = script.run(&self.connection(), &[key], args).await;
        let answer = answer.map_err(|error| self.context.of_key(error))?;
        read(answer).ok_or_else(|| wire::unexpected("no answer of the script"))
    }
}

impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl CacheStore for RedisCache {
    /// One command; on Cluster one per key, sent together. There, one shard without an answer fails the whole.
    fn get<'a>(
        &'a self,
        name: &'a str,
        keys: &'a [&'a str],
    ) -> StoreFuture<'a, Vec<Option<Entry>>> {
        Box::pin(async move {
            match keys {
                [] => Ok(Vec::new()),
                [key] => Ok(vec![self.get_one(name, key).await?]),
                keys if self.is_sharded() => {
                    let all = keys.iter().map(|key| self.get_one(name, key));
                    futures_util::future::try_join_all(all).await
                }
                keys => self.get_all(name, keys).await,
            }
        })
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        lease: &'a Lease,
    ) -> StoreFuture<'a, Leased> {
        Box::pin(async move {
            validate::lease(lease)?;
            let Key { key, hash } = self.checked(name, key)?;
            let (asked, sent) = (wire::lease(hash, lease), Instant::now());
            let read = |answer| wire::leased(answer, hash);
            let (leased, micros) = self.step(&LEASE, &key, &[&asked], read).await?;
            self.connection().clock().shows(micros);
            self.context.shown(sent, micros);
            Ok(leased)
        })
    }

    fn fill<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored> {
        Box::pin(async move {
            validate::fill(fill)?;
            let Key { key, hash } = self.checked(name, key)?;
            let value = wire::value(hash, token, fill);
            self.step(&FILL, &key, &[&value], |it| wire::stored(&it))
                .await
        })
    }

    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        lease_ms: u64,
    ) -> StoreFuture<'a, Stored> {
        Box::pin(async move {
            validate::ms("lease", lease_ms)?;
            let Key { key, hash } = self.checked(name, key)?;
            let lease = wire::head(hash, 0, Some(token), lease_ms);
            self.step(&EXTEND, &key, &[&lease], |it| wire::stored(&it))
                .await
        })
    }

    fn release<'a>(&'a self, name: &'a str, key: &'a str, token: Token) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let Key { key, hash } = self.checked(name, key)?;
            let lease = wire::head(hash, 0, Some(token), 0);
            self.step(&RELEASE, &key, &[&lease], |it| wire::done(&it))
                .await
        })
    }

    fn put<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        version: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored> {
        Box::pin(async move {
            validate::fill(fill)?;
            let Key { key, hash } = self.checked(name, key)?;
            let value = wire::value(hash, version, fill);
            self.step(&PUT, &key, &[&value], |it| wire::stored(&it))
                .await
        })
    }

    fn invalidate<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            validate::ms("tombstone", tombstone_ms)?;
            let Key { key, hash } = self.checked(name, key)?;
            let tombstone = wire::head(hash, 0, None, tombstone_ms);
            self.step(&INVALIDATE, &key, &[&tombstone], |it| wire::done(&it))
                .await
        })
    }

    fn begin_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        write_ms: u64,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            validate::ms("write", write_ms)?;
            let Key { key, hash } = self.checked(name, key)?;
            let write = wire::head(hash, 0, Some(token), write_ms);
            self.step(&BEGIN_WRITE, &key, &[&write], |it| wire::done(&it))
                .await
        })
    }

    fn end_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: Option<&'a Fill>,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, Stored> {
        Box::pin(async move {
            fill.map_or(Ok(()), validate::fill)?;
            validate::ms("tombstone", tombstone_ms)?;
            let Key { key, hash } = self.checked(name, key)?;
            let tombstone = wire::head(hash, 0, Some(token), tombstone_ms);
            let value = fill.map(|fill| wire::value(hash, token, fill));
            let args: [&[u8]; 2] = [&tombstone, value.as_deref().unwrap_or_default()];
            let args = &args[..1 + usize::from(value.is_some())];
            self.step(&END_WRITE, &key, args, |it| wire::stored(&it))
                .await
        })
    }

    fn generations<'a>(
        &'a self,
        name: &'a str,
        tags: &'a [&'a str],
        keep_ms: u64,
    ) -> StoreFuture<'a, Vec<Generation>> {
        Box::pin(async move {
            validate::ms("keep", keep_ms)?;
            tags.iter().try_for_each(|tag| validate::tag(tag))?;
            if tags.is_empty() {
                return Ok(Vec::new());
            }
            let keys: Vec<String> = tags.iter().map(|tag| self.tag(name, tag)).collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let keep = keep_ms.to_string();
            let args = [keep.as_bytes()];
            let answer = GENERATIONS.run(&self.connection(), &keys, &args).await;
            let answer = answer.map_err(|error| self.context.of_key(error))?;
            wire::generations(&answer, tags.len())
                .ok_or_else(|| wire::unexpected("not one generation per tag"))
        })
    }

    fn invalidate_tag<'a>(
        &'a self,
        name: &'a str,
        tag: &'a str,
        keep_ms: u64,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            validate::ms("keep", keep_ms)?;
            validate::tag(tag)?;
            let (key, keep) = (self.tag(name, tag), keep_ms.to_string());
            self.step(&INVALIDATE_TAG, &key, &[keep.as_bytes()], |it| {
                wire::done(&it)
            })
            .await
        })
    }

    /// With the first observer of a [`Redis`](crate::Redis), connections begin over which it reports changes, and end with
    /// the last one.
    fn observe(&self, observer: Weak<dyn Observer>) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.context.observe(observer))
    }

    fn id(&self, name: &str, subject: Subject<'_>) -> u64 {
        keys::hash(&match subject {
            Subject::Key(key) => self.key(name, key),
            Subject::Tag(tag) => self.tag(name, tag),
        })
    }

    fn announce<'a>(&'a self, name: &'a str) -> Option<StoreFuture<'a, ()>> {
        Some(Box::pin(async move {
            let entered = self.context.enter(PATTERN, &[name]).await;
            Ok(entered.map(drop)?)
        }))
    }

    fn report<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        snapshot: &'a str,
        ttl: Duration,
    ) -> Option<StoreFuture<'a, ()>> {
        Some(Box::pin(async move {
            Ok(self.note(name, instance, snapshot, ttl).await?)
        }))
    }

    fn is_sharded(&self) -> bool {
        self.context.connection.is_cluster()
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.context.handle)
    }
}
