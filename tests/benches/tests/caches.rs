//! What caches do when it matters, ours beside the peers'. Ours is held to the answer; a peer's is printed as it is, so that the
//! README's table can be made again with newer versions:
//!
//! ```text
//! cargo test -p resilience-benches --test caches -- --nocapture
//! ```

use std::{
    fmt::Display,
    future::{Future, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::Cache;
use tokio::{
    runtime::Builder,
    sync::Notify,
    task::{JoinHandle, yield_now},
    time::{sleep, timeout},
};

const KEY: &str = "key";
const OLD: u64 = 1;
const NEW: u64 = 2;
const HOUR: Duration = Duration::from_secs(3600);
const BRIEF: Duration = Duration::from_millis(30);

#[derive(Clone, Debug, PartialEq)]
struct Failed;

/// What all of them do.
trait Peer: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    /// Whose values live for `ttl`.
    fn new(ttl: Duration) -> Self;

    /// The value of the key, by `load` if it is missing.
    fn get(
        &self,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> impl Future<Output = Result<u64, Failed>> + Send;

    fn invalidate(&self) -> impl Future<Output = ()> + Send;
}

impl Peer for Cache<String, u64> {
    const NAME: &'static str = "this toolkit";

    fn new(ttl: Duration) -> Self {
        let cache = Cache::builder("peers").ttl(ttl).stale_if_error(HOUR);
        cache.build().expect("good settings")
    }

    async fn get(
        &self,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> Result<u64, Failed> {
        let got = self.get_or_load(KEY, || load).await;
        got.map_err(|_| Failed)?.as_deref().copied().ok_or(Failed)
    }

    async fn invalidate(&self) {
        Self::invalidate(self, KEY).await.expect("no store");
    }
}

impl Peer for moka::future::Cache<&'static str, u64> {
    const NAME: &'static str = "moka 0.12, future";

    fn new(ttl: Duration) -> Self {
        let cache = moka::future::Cache::builder();
        cache.max_capacity(10_000).time_to_live(ttl).build()
    }

    async fn get(
        &self,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> Result<u64, Failed> {
        let got = self.try_get_with(KEY, load).await;
        got.map_err(|error| (*error).clone())
    }

    async fn invalidate(&self) {
        Self::invalidate(self, KEY).await;
    }
}

/// It has no time to live: an application removes what is over.
type QuickCache = Arc<quick_cache::sync::Cache<&'static str, u64>>;

impl Peer for QuickCache {
    const NAME: &'static str = "quick_cache 0.7";

    fn new(_: Duration) -> Self {
        Self::new(quick_cache::sync::Cache::new(10_000))
    }

    async fn get(
        &self,
        load: impl Future<Output = Result<u64, Failed>> + Send + 'static,
    ) -> Result<u64, Failed> {
        self.get_or_insert_async(&KEY, load).await
    }

    async fn invalidate(&self) {
        self.remove(KEY);
    }
}

type Ours = Cache<String, u64>;
type Moka = moka::future::Cache<&'static str, u64>;

fn say<P: Peer>(row: &str, what: impl Display) {
    println!("| {row} | {} | {what} |", P::NAME);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(future)
}

/// Starts a load of the old value, which ends after a notification.
async fn loading<P: Peer>(cache: &P) -> (JoinHandle<Result<u64, Failed>>, Arc<Notify>) {
    let (go_on, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (gate, first) = (Arc::clone(&go_on), Arc::clone(&begun));
    let cache = cache.clone();
    let load = async move {
        first.notify_one();
        gate.notified().await;
        Ok(OLD)
    };
    let loading = tokio::spawn(async move { cache.get(load).await });
    begun.notified().await;
    (loading, go_on)
}

#[test]
fn a_stampede_is_one_load() {
    async fn loads<P: Peer>() -> usize {
        let (cache, loads) = (P::new(HOUR), Arc::new(AtomicUsize::new(0)));
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let (cache, loads) = (cache.clone(), Arc::clone(&loads));
                let load = async move {
                    loads.fetch_add(1, SeqCst);
                    yield_now().await;
                    Ok(NEW)
                };
                tokio::spawn(async move { cache.get(load).await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.expect("no panic"), Ok(NEW));
        }
        loads.load(SeqCst)
    }
    let row = "loads by 100 callers who miss at once";
    let ours = block_on(loads::<Ours>());
    say::<Ours>(row, ours);
    assert_eq!(ours, 1);
    say::<Moka>(row, block_on(loads::<Moka>()));
    say::<QuickCache>(row, block_on(loads::<QuickCache>()));
}

#[test]
fn a_load_that_an_invalidation_overtook_is_not_cached() {
    async fn cached<P: Peer>() -> &'static str {
        let cache = P::new(HOUR);
        let (loading, go_on) = loading(&cache).await;
        cache.invalidate().await;
        go_on.notify_one();
        let _ = loading.await;
        match cache.get(ready(Ok(NEW))).await {
            Ok(OLD) => "the old value, until it expires",
            Ok(NEW) => "the new value",
            other => panic!("{other:?}"),
        }
    }
    let row = "a load began before an invalidation and ended after it; a call afterwards gets";
    let ours = block_on(cached::<Ours>());
    say::<Ours>(row, ours);
    assert_eq!(ours, "the new value");
    say::<Moka>(row, block_on(cached::<Moka>()));
    say::<QuickCache>(row, block_on(cached::<QuickCache>()));
}

#[test]
fn a_call_after_an_invalidation_does_not_share_a_load_from_before() {
    async fn got<P: Peer>() -> &'static str {
        let cache = P::new(HOUR);
        let (loading, go_on) = loading(&cache).await;
        cache.invalidate().await;
        let at_once = timeout(BRIEF, cache.get(ready(Ok(NEW)))).await;
        go_on.notify_one();
        let _ = loading.await;
        match at_once {
            Ok(Ok(NEW)) => "the new value",
            Ok(Ok(OLD)) => "the old value",
            Ok(other) => panic!("{other:?}"),
            Err(_) => "waits for that load, and gets the old value",
        }
    }
    let row = "a call after an invalidation, while a load from before it is in progress";
    let ours = block_on(got::<Ours>());
    say::<Ours>(row, ours);
    assert_eq!(ours, "the new value");
    say::<Moka>(row, block_on(got::<Moka>()));
    say::<QuickCache>(row, block_on(got::<QuickCache>()));
}

#[test]
fn a_stale_value_is_served_in_place_of_an_error() {
    async fn got<P: Peer>() -> &'static str {
        let cache = P::new(BRIEF);
        assert_eq!(cache.get(ready(Ok(OLD))).await, Ok(OLD));
        // Each has a clock of its own.
        sleep(BRIEF * 2).await;
        match cache.get(ready(Err(Failed))).await {
            Ok(OLD) => "the stale value",
            Err(Failed) => "the error",
            other => panic!("{other:?}"),
        }
    }
    let row = "a value has expired and its loader fails";
    let ours = block_on(got::<Ours>());
    say::<Ours>(row, ours);
    assert_eq!(ours, "the stale value");
    say::<Moka>(row, block_on(got::<Moka>()));
    say::<QuickCache>(row, "no time to live: the value is never loaded again");
}
