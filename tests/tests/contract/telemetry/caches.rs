//! Caches, as metrics tell of them.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use resilience_core::{
    Cache,
    cache::{
        CacheBuilder, CacheStore, InProcessCache, Loaded, LocalCache, RefreshEarly,
        record::{Fill, Lease, Token},
    },
    conformance::layer::Driven,
};

const HOUR: u64 = 3_600_000;

fn builder(name: &'static str, store: &InProcessCache) -> CacheBuilder<u32, u32> {
    Cache::builder(name)
        .ttl(Duration::from_millis(HOUR))
        .store(store.clone())
}

/// Loads, refreshes, evictions, errors, and a caller that waits for as long as what is returned is kept.
pub(crate) async fn everything_happens_to_a_cache(
    name: &'static str,
) -> impl std::any::Any + use<> {
    let store = InProcessCache::new();
    let cache = builder(name, &store)
        .refresh_early(RefreshEarly::Threshold(1e-9))
        .build()
        .unwrap();
    let seven = || async { Ok::<u32, std::io::Error>(7) };
    cache.get_or_load(&1, seven).await.unwrap();
    tokio::task::yield_now().await;
    assert!(cache.get(&1).await.is_some());
    // It is not new any more: it is loaded again in the background.
    tokio::time::sleep(Duration::from_millis(10)).await;
    cache.get_or_load(&1, seven).await.unwrap();
    cache.invalidate(&1).await.unwrap();

    let foreign = Fill {
        body: Some(Bytes::from_static(b"?")),
        fresh_ms: HOUR,
        keep_ms: HOUR,
        load_ms: 0,
        tags: [].into(),
    };
    let put = store.put(name, "2", Token::random(), &foreign);
    put.await.unwrap();
    assert!(cache.get(&2).await.is_none());
    let for_ever = Loaded::new(7).ttl(Duration::from_secs(50 * 366 * 86_400));
    assert!(cache.put(&3, for_ever).await.is_err());

    let small = builder(name, &store).local(LocalCache::entries(1));
    let small = small.hot_key_metrics(20).build().unwrap();
    // One request in 64 is counted, at random.
    while small.snapshot().hot_keys.is_empty() {
        small.get(&300).await;
    }
    for key in 100..200 {
        small.put(&key, 7).await.unwrap();
        small.get(&key).await;
    }

    let lease = Lease {
        token: Token::random(),
        lease_ms: HOUR,
        renew: None,
    };
    store.lease(name, "4", &lease).await.unwrap();
    let waiting = cache.clone();
    let mut waits = Driven::new(async move {
        let load = || pending::<Result<u32, std::io::Error>>();
        waiting.get_or_load(&4, load).await.map(drop)
    });
    assert!(!waits.poll());
    (cache, small, waits)
}
