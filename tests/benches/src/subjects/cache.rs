//! Hits of a cache in this process, called around the bare service. 10,000 keys in turn, but for the layer and one hot key.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use resilience_core::{Cache, Error, cache::LocalCache};
use tower::{ServiceBuilder, service_fn};

use crate::subject::{Failure, Request, Response, Subject, answer, key_in_turn};

pub(crate) const HIT: &str = "cache hit";
pub(crate) const PEEK: &str = "cache hit, borrowed";
pub(crate) const PEEK_ONE: &str = "cache hit, borrowed, one hot key";
pub(crate) const LAYER_HIT: &str = "cache hit of the layer";

/// Cached keys, and room for them in every part of a cache.
pub(crate) const KEYS: u64 = 10_000;
pub(crate) const ROOM: usize = 20_000;
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// What is cached: 64 bytes.
pub(crate) type Value = [u64; 8];

pub(crate) const fn value(key: u64) -> Value {
    [key; 8]
}

pub(crate) fn subjects() -> Vec<Subject> {
    let cache: &'static _ = Box::leak(Box::new(cache()));
    let layered = ServiceBuilder::new()
        .layer(responses().layer(|request: &Request| Some(request.0 % 16)))
        .service(service_fn(answer::<Error<Failure>>));
    vec![
        in_turn(HIT, move |key| async move {
            let load = || async { Err::<Value, Failure>(Failure) };
            let hit = cache.get_or_load(&key, load).await;
            hit.expect("it is cached").expect("there is a value")[0]
        })
        .on_two_cores(),
        in_turn(PEEK, move |key| {
            let hit = cache.peek_with(&key, |value| value[0]);
            std::future::ready(hit.expect("it is cached"))
        })
        .on_two_cores(),
        in_turn(PEEK_ONE, move |_| {
            let hit = cache.peek_with(&7, |value| value[0]);
            std::future::ready(hit.expect("it is cached"))
        })
        .on_two_cores(),
        Subject::new(LAYER_HIT, layered),
    ]
}

/// A cache that holds all keys. It lives as long as the program: a hit is measured, and not the clone of a handle.
fn cache() -> Cache<u64, Value> {
    let cache = Cache::builder("bench")
        .ttl(TTL)
        .local(LocalCache::entries(ROOM));
    let cache = cache.build().expect("a valid cache");
    crate::subject::runtime().block_on(async {
        for key in 0..KEYS {
            cache.put(&key, value(key)).await.expect("no store");
        }
    });
    cache
}

fn responses() -> Cache<u64, Response> {
    let cache = Cache::builder("bench").ttl(TTL);
    cache.build().expect("a valid cache")
}

/// A subject that is called with every key in turn; each caller begins with another one.
pub(crate) fn in_turn<F>(
    name: &'static str,
    call: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Subject
where
    F: Future<Output = u64> + Send + 'static,
{
    let callers = AtomicU64::new(0);
    Subject::made(name, move || {
        let call = call.clone();
        let mut n = callers.fetch_add(1, Relaxed) * KEYS / 2;
        service_fn(move |request: Request| {
            n += 1;
            let hit = call(key_in_turn(n, KEYS));
            async move {
                std::hint::black_box(hit.await);
                answer::<Failure>(request).await
            }
        })
    })
}
