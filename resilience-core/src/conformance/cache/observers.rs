//! Reports of changes.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use super::{HOUR, NAME, SOON, fill, get, granted, hour, invalidate, put, stale, value};
use crate::{
    cache::{
        CacheStore,
        record::Token,
        store::{Observer, Subject},
    },
    conformance::eventually,
};

#[derive(Default)]
struct Reports {
    changed: Mutex<Vec<u64>>,
    cleared: AtomicUsize,
    lost: AtomicUsize,
    restored: AtomicUsize,
}

impl Reports {
    fn take(&self, id: u64) -> bool {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = changed.len();
        changed.retain(|it| *it != id);
        changed.len() < before
    }

    fn is_restored(&self) -> bool {
        self.restored.load(SeqCst) > self.lost.load(SeqCst)
    }
}

impl Observer for Reports {
    fn changed(&self, id: u64) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.push(id);
    }

    fn cleared(&self) {
        self.cleared.fetch_add(1, SeqCst);
    }

    fn lost(&self) {
        self.lost.fetch_add(1, SeqCst);
    }

    fn restored(&self) {
        self.restored.fetch_add(1, SeqCst);
    }
}

/// Watches `store`, until both are dropped.
async fn watch(store: &dyn CacheStore) -> (Arc<Reports>, impl Sized) {
    let reports = Arc::new(Reports::default());
    let observer: Weak<dyn Observer> = Arc::<Reports>::downgrade(&reports);
    let watching = store.observe(observer).expect("it observes");
    eventually("reports begin", SOON, || async { reports.is_restored() }).await;
    (reports, watching)
}

pub(super) async fn every_change_after_a_read_is_told(
    store: &dyn CacheStore,
    flush: &(dyn Fn() + Sync),
) {
    let (reports, _watching) = watch(store).await;
    let told = async |what: &str, id: u64| {
        eventually(what, SOON, || async { reports.take(id) }).await;
        assert!(reports.is_restored(), "the server was reached all the time");
    };
    let key = "watched";
    let id = store.id(NAME, Subject::Key(key));
    // A report may be about a change before the read: those are taken first.
    let read = async || {
        let got = get(store, key).await;
        reports.take(id);
        get(store, key).await.or(got)
    };
    let token = Token::random();
    assert_eq!(read().await, None);
    put(store, key, &stale("first")).await;
    told("put over nothing", id).await;
    assert!(read().await.is_some());
    put(store, key, &stale("second")).await;
    told("put over a value", id).await;
    let asked = hour();
    granted(store, key, &asked).await;
    assert!(read().await.is_some());
    fill(store, key, &asked, &value("third")).await;
    told("fill", id).await;
    assert!(read().await.is_some());
    invalidate(store, key, HOUR).await;
    told("invalidation", id).await;
    put(store, key, &value("fourth")).await;
    assert!(read().await.is_some());
    let begun = store.begin_write(NAME, key, token, HOUR).await;
    begun.expect("an answer");
    told("begin of a write", id).await;
    assert_eq!(read().await, None);
    let fifth = value("fifth");
    let ended = store.end_write(NAME, key, token, Some(&fifth), HOUR).await;
    ended.expect("an answer");
    told("end of a write", id).await;

    let tags = ["tag"];
    let tag = store.id(NAME, Subject::Tag("tag"));
    store.generations(NAME, &tags, HOUR).await.expect("known");
    store.generations(NAME, &tags, HOUR).await.expect("read");
    reports.take(tag);
    let done = store.invalidate_tag(NAME, "tag", HOUR).await;
    done.expect("an answer");
    told("invalidation of a tag", tag).await;

    assert!(read().await.is_some());
    let before = reports.cleared.load(SeqCst);
    flush();
    eventually("flush", SOON, || async {
        reports.cleared.load(SeqCst) > before || reports.take(id)
    })
    .await;
}

/// As far as the store is concerned: another observer reads, and hears of it too.
pub(super) async fn a_change_by_another_process_is_told(store: &dyn CacheStore) {
    let ((one, _one), (two, _two)) = (watch(store).await, watch(store).await);
    let id = store.id(NAME, Subject::Key("two-watch"));
    assert_eq!(get(store, "two-watch").await, None);
    put(store, "two-watch", &value("a")).await;
    for reports in [one, two] {
        eventually("both are told", SOON, || async { reports.take(id) }).await;
    }
}
