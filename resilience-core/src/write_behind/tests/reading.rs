use super::*;
use crate::{
    FleetOptions, OnOutage,
    write_behind::{ReadError, tests::unreliable::Unreliable},
};

#[tokio::test(start_paused = true)]
async fn a_read_loads_only_what_is_sunk() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database).build().unwrap();
    let load = async |key: &str| {
        let loaded = carts.read_or_load(key, async || Ok::<_, ReadError>(database.get(key)));
        loaded.await.unwrap()
    };
    assert_eq!(load("a").await, None);
    carts.write("a", &1).await.unwrap();
    assert_eq!(load("a").await, Some(1));
    carts.flush(secs(10)).await.unwrap();
    assert_eq!(load("a").await, Some(1));
    carts.delete("a").await.unwrap();
    assert_eq!(load("a").await, None, "the database still has it");
    assert_eq!(database.get("a"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn without_the_store_reads_fail_or_load_by_choice() {
    let store = Unreliable::new();
    let closed = WriteBehind::<u64>::builder("carts", store.clone())
        .build()
        .unwrap();
    let open = FleetOptions::new().on_outage(OnOutage::FailOpen);
    let open = WriteBehind::<u64>::builder("carts", store.clone())
        .fleet(open)
        .build()
        .unwrap();
    store.refuse(true);
    let failed = closed
        .read_or_load("a", async || Ok::<_, ReadError>(Some(7)))
        .await;
    assert!(matches!(failed, Err(ReadError::Store(_))), "{failed:?}");
    let loaded = open
        .read_or_load("a", async || Ok::<_, ReadError>(Some(7)))
        .await;
    assert!(matches!(loaded, Ok(Some(7))), "{loaded:?}");
}

#[cfg(feature = "cache")]
#[tokio::test(start_paused = true)]
async fn a_cache_in_front_reads_through_and_its_invalidation_drops_nothing() {
    use crate::Cache;

    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.down(true);
    let carts = sinking(&store, &database).build().unwrap();
    let loads = database.clone();
    let through = carts.through(move |key: String| {
        let database = loads.clone();
        async move { Ok::<_, ReadError>(database.get(&key)) }
    });
    let cache: Cache<String, u64> = Cache::builder("carts").loader(through).build().unwrap();
    let write = async |value| {
        let written = cache.write("a", value, || carts.write("a", &value));
        written.await.unwrap();
    };
    write(1).await;
    assert_eq!(cache.fetch("a").await.unwrap().as_deref(), Some(&1));
    // Whatever the cache forgets is loaded from what is not sunk.
    cache.invalidate("a").await.unwrap();
    assert_eq!(carts.read("a").await.unwrap().unwrap().value(), Some(&1));
    assert_eq!(cache.fetch("a").await.unwrap().as_deref(), Some(&1));
    write(2).await;
    assert_eq!(cache.fetch("a").await.unwrap().as_deref(), Some(&2));
    database.down(false);
    carts.flush(secs(120)).await.unwrap();
    cache.invalidate("a").await.unwrap();
    assert_eq!(cache.fetch("a").await.unwrap().as_deref(), Some(&2));
    assert_eq!(database.get("a"), Some(2));
}
