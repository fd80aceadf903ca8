//! The peers of the cache: the same value under the same keys, with room for as many and, where there is one, a time to live.

use std::sync::Arc;

use crate::subject::Subject;

use super::cache::{KEYS, ROOM, TTL, Value, in_turn, value};

pub(crate) const MOKA: &str = "moka future get";
pub(crate) const MOKA_LOAD: &str = "moka future try_get_with";
/// Without a time to live: it has none.
pub(crate) const QUICK_CACHE: &str = "quick_cache get";

pub(super) fn subjects() -> Vec<Subject> {
    let moka: &'static _ = Box::leak(Box::new(moka()));
    let quick: &'static _ = Box::leak(Box::new(quick()));
    vec![
        in_turn(MOKA, move |key| async move {
            let hit = moka.get(&key).await;
            hit.expect("it is cached")[0]
        })
        .on_two_cores(),
        in_turn(MOKA_LOAD, move |key| async move {
            let load = async { Err::<Arc<Value>, ()>(()) };
            let hit = moka.try_get_with_by_ref(&key, load).await;
            hit.expect("it is cached")[0]
        }),
        in_turn(QUICK_CACHE, move |key| {
            let hit = quick.get(&key);
            std::future::ready(hit.expect("it is cached")[0])
        })
        .on_two_cores(),
    ]
}

fn moka() -> moka::future::Cache<u64, Arc<Value>> {
    let cache = moka::future::Cache::builder()
        .max_capacity(ROOM as u64)
        .time_to_live(TTL)
        .build();
    crate::subject::runtime().block_on(async {
        for key in 0..KEYS {
            cache.insert(key, Arc::new(value(key))).await;
        }
        cache.run_pending_tasks().await;
    });
    cache
}

fn quick() -> quick_cache::sync::Cache<u64, Arc<Value>> {
    let cache = quick_cache::sync::Cache::new(ROOM);
    for key in 0..KEYS {
        cache.insert(key, Arc::new(value(key)));
    }
    cache
}
