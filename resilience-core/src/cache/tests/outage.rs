//! A store that is away, slow, or forgets.

use std::{
    any::Any,
    collections::HashMap,
    sync::{
        Mutex, Weak,
        atomic::{AtomicBool, AtomicU64},
    },
};

use super::*;
use crate::{
    FleetOptions,
    cache::{
        CacheStore, CallOptions, Level,
        record::{Entry, Fill, Generation, Lease, Leased, Stored, Token},
        store::{Observer, StoreError, StoreFuture, Subject},
    },
};

/// A store whose answers can be held back or refused. It tells of changes for as long as it is up.
#[derive(Clone, Debug)]
struct Shaky {
    inner: InProcessCache,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    hangs: AtomicBool,
    fails: AtomicBool,
    /// Number of next answers that are lost, of steps that are done.
    loses: AtomicU64,
    steps: AtomicU64,
    observers: Mutex<Vec<Weak<dyn Observer>>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl Shaky {
    fn new() -> Self {
        Self {
            inner: InProcessCache::new(),
            state: Arc::default(),
        }
    }

    fn set(&self, which: impl Fn(&State) -> &AtomicBool, on: bool) {
        which(&self.state).store(on, SeqCst);
        for observer in self
            .state
            .observers
            .lock()
            .unwrap()
            .iter()
            .filter_map(Weak::upgrade)
        {
            if on {
                observer.lost()
            } else {
                observer.restored()
            }
        }
    }

    fn step<'a, T: Send + 'a>(&'a self, step: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        Box::pin(async move {
            self.state.steps.fetch_add(1, SeqCst);
            if self.state.hangs.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.state.fails.load(SeqCst) {
                return Err(StoreError::new("refused", false));
            }
            let answer = step.await;
            let one_less = |left: u64| left.checked_sub(1);
            if self
                .state
                .loses
                .fetch_update(SeqCst, SeqCst, one_less)
                .is_ok()
            {
                return Err(StoreError::new("lost", true));
            }
            answer
        })
    }
}

impl CacheStore for Shaky {
    fn get<'a>(
        &'a self,
        name: &'a str,
        keys: &'a [&'a str],
    ) -> StoreFuture<'a, Vec<Option<Entry>>> {
        self.step(self.inner.get(name, keys))
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        lease: &'a Lease,
    ) -> StoreFuture<'a, Leased> {
        self.step(Box::pin(
            async move { self.inner.lease(name, key, lease).await },
        ))
    }

    fn fill<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored> {
        self.step(Box::pin(async move {
            self.inner.fill(name, key, token, fill).await
        }))
    }

    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        lease_ms: u64,
    ) -> StoreFuture<'a, Stored> {
        self.step(Box::pin(async move {
            self.inner.extend(name, key, token, lease_ms).await
        }))
    }

    fn release<'a>(&'a self, name: &'a str, key: &'a str, token: Token) -> StoreFuture<'a, ()> {
        self.step(Box::pin(async move {
            self.inner.release(name, key, token).await
        }))
    }

    fn put<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        version: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored> {
        self.step(Box::pin(async move {
            self.inner.put(name, key, version, fill).await
        }))
    }

    fn invalidate<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, ()> {
        self.step(Box::pin(async move {
            self.inner.invalidate(name, key, tombstone_ms).await
        }))
    }

    fn begin_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        write_ms: u64,
    ) -> StoreFuture<'a, ()> {
        self.step(Box::pin(async move {
            self.inner.begin_write(name, key, token, write_ms).await
        }))
    }

    fn end_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: Option<&'a Fill>,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, Stored> {
        self.step(Box::pin(async move {
            self.inner
                .end_write(name, key, token, fill, tombstone_ms)
                .await
        }))
    }

    fn generations<'a>(
        &'a self,
        name: &'a str,
        tags: &'a [&'a str],
        keep_ms: u64,
    ) -> StoreFuture<'a, Vec<Generation>> {
        self.step(Box::pin(async move {
            self.inner.generations(name, tags, keep_ms).await
        }))
    }

    fn invalidate_tag<'a>(
        &'a self,
        name: &'a str,
        tag: &'a str,
        keep_ms: u64,
    ) -> StoreFuture<'a, ()> {
        self.step(Box::pin(async move {
            self.inner.invalidate_tag(name, tag, keep_ms).await
        }))
    }

    fn observe(&self, observer: Weak<dyn Observer>) -> Option<Arc<dyn Any + Send + Sync>> {
        self.state.observers.lock().unwrap().push(observer.clone());
        self.inner.observe(observer)
    }

    fn id(&self, name: &str, subject: Subject<'_>) -> u64 {
        self.inner.id(name, subject)
    }
}

fn shaky(
    set: impl Fn(CacheBuilder<String, String>) -> CacheBuilder<String, String>,
) -> (Strings, Strings, Shaky) {
    let store = Shaky::new();
    let make = || {
        let fleet = FleetOptions::new().budget(SECOND / 10);
        set(builder().store(store.clone()).fleet(fleet))
            .build()
            .unwrap()
    };
    (make(), make(), store)
}

/// Waits until the store has every invalidation.
async fn all_repeated(cache: &Strings) {
    let done = async {
        while cache.snapshot().pending_invalidations > 0 {
            tokio::time::sleep(SECOND / 10).await;
        }
    };
    let done = tokio::time::timeout(SECOND * 10, done).await;
    done.expect("they are repeated");
}

fn away() -> [fn(&State) -> &AtomicBool; 2] {
    [|state| &state.hangs, |state| &state.fails]
}

#[tokio::test(start_paused = true)]
async fn without_its_store_calls_go_on_with_the_loader_and_nothing_hangs() {
    for which in away() {
        let (cache, _, store) = shaky(|it| it);
        cache.put("a", "1".to_owned()).await.unwrap();
        value(&cache, "a").await;
        store.set(which, true);
        let (truth, started) = (Truth::default(), tokio::time::Instant::now());
        for _ in 0..20 {
            let got = cache.get_or_load("a", truth.load("2")).await.unwrap();
            assert_eq!(got.as_deref().map(String::as_str), Some("2"));
        }
        // Three budgets until the store counts as unavailable.
        assert!(started.elapsed() <= SECOND, "{:?}", started.elapsed());
        let snapshot = cache.snapshot();
        assert!(!snapshot.available && !snapshot.coherent);
        store.set(which, false);
        let back = async {
            while !cache.snapshot().available {
                tokio::time::sleep(SECOND / 10).await;
            }
        };
        tokio::time::timeout(SECOND * 10, back)
            .await
            .expect("it is back");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_process_holds_serves_without_word_from_the_store_within_max_stale_only() {
    let (cache, other, store) = shaky(|it| it.max_stale(SECOND * 5));
    cache.put("a", "1".to_owned()).await.unwrap();
    assert_eq!(value(&other, "a").await.as_deref(), Some("1"));
    store.set(|state| &state.fails, true);
    pass(SECOND * 4).await;
    assert_eq!(value(&other, "a").await.as_deref(), Some("1"));
    let strict = CallOptions::new().max_stale(Duration::ZERO);
    let truth = Truth::default();
    for (options, level) in [(CallOptions::new(), Level::Local), (strict, Level::Loaded)] {
        let none = |_| async { Ok::<_, Down>(HashMap::<String, String>::new()) };
        let found = other.load_many_with(&["a".to_owned()], options, none).await;
        assert_eq!(found.lookups["a"].level, level);
    }
    let got = other.load_with("a", strict, truth.load("2")).await.unwrap();
    assert_eq!(got.level, Level::Loaded);
    pass(SECOND * 5).await;
    assert_eq!(value(&other, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_that_the_store_does_not_get_is_repeated_and_this_process_does_not_read_the_old_value()
 {
    for which in away() {
        let (cache, other, store) = shaky(|it| it.tombstone(Duration::ZERO));
        cache.put("a", "1".to_owned()).await.unwrap();
        value(&other, "a").await;
        store.set(which, true);
        assert!(cache.invalidate("a").await.is_err());
        assert_eq!(cache.snapshot().pending_invalidations, 1);
        store.set(which, false);
        // The store has the old value for a moment.
        assert_eq!(value(&cache, "a").await, None);
        all_repeated(&cache).await;
        assert_eq!(value(&other, "a").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_the_store_does_not_get_is_repeated_and_nothing_old_is_read_meanwhile() {
    let (cache, other, store) = shaky(|it| it);
    let tagged = crate::cache::Loaded::new("1".to_owned()).tag("red");
    cache.put("a", tagged).await.unwrap();
    store.set(|state| &state.fails, true);
    assert!(cache.invalidate_tag("red").await.is_err());
    store.set(|state| &state.fails, false);
    assert_eq!(value(&cache, "a").await, None);
    all_repeated(&cache).await;
    assert_eq!(value(&other, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_invalidation_is_completed() {
    let (cache, other, store) = shaky(|it| it);
    cache.put("a", "1".to_owned()).await.unwrap();
    value(&other, "a").await;
    store.state.hangs.store(true, SeqCst);
    let mut dropped = tokio_test::task::spawn(cache.invalidate("a"));
    tokio_test::assert_pending!(dropped.poll());
    drop(dropped);
    store.state.hangs.store(false, SeqCst);
    pass(SECOND * 5).await;
    pass(SECOND * 5).await;
    assert_eq!(value(&other, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_changes_nothing() {
    for lost in 0..4 {
        let (cache, other, store) = shaky(|it| it);
        let truth = Truth::default();
        let before = store.state.steps.load(SeqCst);
        store.state.loses.store(u64::from(lost > 0), SeqCst);
        cache.get_or_load("a", truth.load("1")).await.unwrap();
        settle().await;
        assert!(store.state.steps.load(SeqCst) > before);
        pass(SECOND * 5).await;
        other.get_or_load("a", truth.load("1")).await.unwrap();
        settle().await;
        for cache in [&cache, &other] {
            assert_eq!(value(cache, "a").await.as_deref(), Some("1"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_or_a_change_is_made_whatever_the_store_does_and_the_old_value_is_not_served_after()
{
    let cases = away().map(|which| [(which, true), (which, false)]);
    for (which, is_write) in cases.into_iter().flatten() {
        let (cache, other, store) = shaky(|it| it.tombstone(Duration::ZERO));
        cache.put("a", "1".to_owned()).await.unwrap();
        value(&other, "a").await;
        store.set(which, true);
        let save = || async { Ok::<_, Down>(7) };
        let saved = if is_write {
            cache.write("a", "2".to_owned(), save).await
        } else {
            cache.change("a".to_owned(), save).await
        };
        assert_eq!(saved, Ok(7));
        settle().await;
        store.set(which, false);
        for _ in 0..20 {
            pass(SECOND / 2).await;
        }
        assert_eq!(value(&other, "a").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_without_an_answer_leaves_an_invalidation() {
    let (cache, other, store) = shaky(|it| it.tombstone(Duration::ZERO));
    cache.put("a", "1".to_owned()).await.unwrap();
    store.state.loses.store(1, SeqCst);
    assert!(cache.put("a", "2".to_owned()).await.is_err());
    assert_eq!(value(&other, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn both_the_store_and_the_truth_away_stale_values_serve_only_as_far_as_allowed() {
    let (cache, _, store) = shaky(|it| it.stale_if_error(SECOND * 100).max_stale(SECOND * 80));
    cache.put("a", "1".to_owned()).await.unwrap();
    value(&cache, "a").await;
    store.set(|state| &state.fails, true);
    pass(SECOND * 61).await;
    let truth = Truth::default();
    let got = cache.get_or_load("a", truth.fail()).await.unwrap();
    assert_eq!(got.as_deref().map(String::as_str), Some("1"));
    pass(SECOND * 20).await;
    assert!(cache.get_or_load("a", truth.fail()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_what_must_be_written() {
    let (cache, other, store) = shaky(|it| it);
    cache.put("a", "1".to_owned()).await.unwrap();
    value(&other, "a").await;
    store.set(|state| &state.fails, true);
    assert!(cache.invalidate("a").await.is_err());
    assert!(cache.shutdown(SECOND).await.is_err());
    store.set(|state| &state.fails, false);
    cache.shutdown(SECOND * 10).await.unwrap();
    assert_eq!(value(&other, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_past_a_store_that_did_not_answer_once_is_not_held_as_if_changes_were_told()
{
    let (cache, other, store) = shaky(|it| it);
    store.state.loses.store(1, SeqCst);
    let truth = Truth::default();
    cache.get_or_load("a", truth.load("1")).await.unwrap();
    assert!(cache.snapshot().coherent);
    other.put("a", "2".to_owned()).await.unwrap();
    assert_eq!(value(&cache, "a").await.as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_just_before_a_failover_is_invalidated_again() {
    let (cache, other, store) = shaky(|it| it.tombstone(Duration::ZERO));
    cache.put("a", "1".to_owned()).await.unwrap();
    let before = store
        .inner
        .get("things", &["a"])
        .await
        .unwrap()
        .pop()
        .flatten()
        .unwrap();
    cache.invalidate("a").await.unwrap();
    store.set(|state| &state.fails, true);
    // The successor does not have the invalidation.
    let fill = Fill {
        body: before.body,
        fresh_ms: before.fresh_ms,
        keep_ms: before.keep_ms,
        load_ms: 0,
        tags: before.tags,
    };
    store
        .inner
        .put("things", "a", before.version, &fill)
        .await
        .unwrap();
    store.set(|state| &state.fails, false);
    settle().await;
    assert_eq!(value(&other, "a").await, None);
    assert_eq!(value(&cache, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn more_invalidations_than_can_be_remembered_drop_everything() {
    let (cache, other, store) = shaky(|it| it.tombstone(Duration::ZERO));
    for key in ["kept", "last"] {
        cache.put(key, "1".to_owned()).await.unwrap();
        value(&other, key).await;
    }
    store.set(|state| &state.fails, true);
    for n in 0..=10_000 {
        assert!(cache.invalidate(&n.to_string()).await.is_err());
    }
    assert!(cache.invalidate("last").await.is_err());
    assert!(cache.snapshot().pending_invalidations <= 10_003);
    store.set(|state| &state.fails, false);
    all_repeated(&cache).await;
    for key in ["kept", "last"] {
        assert_eq!(value(&other, key).await, None);
    }
}
