//! Caches of single numbers, as each of those that are compared is used by its documentation.

use std::{future::Future, time::Duration};

use ::redis::{
    AsyncCommands, AsyncConnectionConfig, Client, aio::MultiplexedConnection, caching::CacheConfig,
};
use cached::{AsyncRedisCache, ConcurrentCachedAsync};
use foyer_memory::CacheBuilder;
use resilience_core::Cache;
use resilience_redis::Redis;

use crate::{HOUR, SOON, redis::RedisServer, until::eventually};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

/// What all of them do.
pub(crate) trait Shelf: Clone + Send + Sync + 'static {
    const NAME: &'static str;
    /// Whether instances share their values.
    const IS_SHARED: bool = true;
    const HAS_TTL: bool = true;

    /// An instance whose values live for `ttl`.
    fn open(server: &RedisServer, ttl: Duration) -> impl Future<Output = Self> + Send;

    /// The value of a key, by `load` if it is missing.
    fn get(
        &self,
        key: &str,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> impl Future<Output = Result<u64, Failed>> + Send;

    fn invalidate(&self, key: &str) -> impl Future<Output = ()> + Send;
}

pub(crate) type Ours = Cache<String, u64>;

impl Shelf for Ours {
    const NAME: &'static str = "this toolkit";

    async fn open(server: &RedisServer, ttl: Duration) -> Self {
        let redis = Redis::connect(&server.url()).expect("good settings");
        redis.ready(SOON).await.expect("the server runs");
        let cache = Cache::builder("peers").ttl(ttl).stale_if_error(HOUR);
        let cache = cache.store(redis.cache()).build().expect("good settings");
        let is_told = async || cache.snapshot().coherent;
        eventually("changes are told", SOON, is_told).await;
        cache
    }

    async fn get(
        &self,
        key: &str,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> Result<u64, Failed> {
        let got = self.get_or_load(key, || load).await;
        got.map_err(|_| Failed)?.as_deref().copied().ok_or(Failed)
    }

    async fn invalidate(&self, key: &str) {
        Self::invalidate(self, key).await.expect("an answer");
    }
}

/// With Redis' client-side caching switched on.
#[derive(Clone)]
pub(crate) struct Cached(AsyncRedisCache<String, u64>);

impl Shelf for Cached {
    const NAME: &'static str = "cached 4.1, AsyncRedisCache";

    async fn open(server: &RedisServer, ttl: Duration) -> Self {
        let cache = AsyncRedisCache::builder("peers")
            .ttl(ttl)
            .connection_string(&server.url())
            .client_side_caching(true)
            .build();
        Self(cache.await.expect("connects"))
    }

    async fn get(
        &self,
        key: &str,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> Result<u64, Failed> {
        let got = self
            .0
            .async_cache_try_get_or_set_with(key.to_owned(), || load);
        got.await.expect("an answer")
    }

    async fn invalidate(&self, key: &str) {
        let removed = self.0.async_cache_remove(&key.to_owned()).await;
        removed.expect("an answer");
    }
}

/// The client crate with its client-side cache, and cache-aside by hand.
#[derive(Clone)]
pub(crate) struct RedisClient {
    connection: MultiplexedConnection,
    ttl: Duration,
}

impl Shelf for RedisClient {
    const NAME: &'static str = "redis 1.8, client-side cache, cache-aside by hand";

    async fn open(server: &RedisServer, ttl: Duration) -> Self {
        let url = format!("{}/?protocol=resp3", server.url());
        let client = Client::open(url).expect("an address");
        let config = AsyncConnectionConfig::new().set_cache_config(CacheConfig::new());
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        Self {
            connection: connection.await.expect("connects"),
            ttl,
        }
    }

    async fn get(
        &self,
        key: &str,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> Result<u64, Failed> {
        let mut connection = self.connection.clone();
        let found: Option<u64> = connection.get(key).await.expect("an answer");
        if let Some(value) = found {
            return Ok(value);
        }
        let value = load.await?;
        let ttl = self.ttl.as_millis() as u64;
        let set = connection.pset_ex::<_, _, ()>(key, value, ttl).await;
        set.expect("an answer");
        Ok(value)
    }

    async fn invalidate(&self, key: &str) {
        let mut connection = self.connection.clone();
        let deleted = connection.del::<_, ()>(key).await;
        deleted.expect("an answer");
    }
}

/// The part of foyer that keeps values in memory, which fetches what is missing.
#[derive(Clone)]
pub(crate) struct Foyer(foyer_memory::Cache<String, u64>);

impl Shelf for Foyer {
    const NAME: &'static str = "foyer 0.22, in memory";
    const IS_SHARED: bool = false;
    const HAS_TTL: bool = false;

    async fn open(_: &RedisServer, _: Duration) -> Self {
        Self(CacheBuilder::new(10_000).build())
    }

    async fn get(
        &self,
        key: &str,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> Result<u64, Failed> {
        let got = self.0.get_or_fetch(key, || load).await;
        got.map(|entry| *entry.value()).map_err(|_| Failed)
    }

    async fn invalidate(&self, key: &str) {
        self.0.remove(key);
    }
}
