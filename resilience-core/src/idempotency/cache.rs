//! Local cache of recorded outcomes, so that a replay needs no round trip.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::key::Fingerprint;

/// Bounded by bytes; evicts the oldest entries.
///
/// Entries expire nearly in the order of insertion, so first-in first-out is as good as a more complex policy.
#[derive(Debug)]
pub(super) struct Cache {
    max_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_key: HashMap<Arc<str>, Entry>,
    order: VecDeque<Arc<str>>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    print: Fingerprint,
    /// `None`: done, without a result.
    outcome: Option<Bytes>,
    done: Instant,
    until: Instant,
}

/// What the cache knows of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    Done {
        outcome: Option<Bytes>,
        age: Duration,
    },
    Mismatch,
}

/// Approximate overhead of an entry in bytes.
const ENTRY: usize = 200;

impl Cache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            kept: Mutex::default(),
        }
    }

    /// What is known of `key` for work with the fingerprint `print`, or `former`.
    pub(super) fn find(
        &self,
        key: &str,
        print: &Fingerprint,
        former: Option<&Fingerprint>,
    ) -> Option<Known> {
        if self.max_bytes == 0 {
            return None;
        }
        let now = Instant::now();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = kept.by_key.get(key).filter(|entry| entry.until > now)?;
        if entry.print != *print && former != Some(&entry.print) {
            return Some(Known::Mismatch);
        }
        Some(Known::Done {
            outcome: entry.outcome.clone(),
            age: now.duration_since(entry.done),
        })
    }

    /// Inserts an outcome. `done` is when the work was done, `until` when its outcome expires in the store, or earlier.
    pub(super) fn keep(
        &self,
        key: &Arc<str>,
        print: &Fingerprint,
        outcome: &Option<Bytes>,
        done: Instant,
        until: Instant,
    ) {
        let size = size(key, outcome);
        if size > self.max_bytes {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            print: print.clone(),
            outcome: outcome.clone(),
            done,
            until,
        };
        match kept.by_key.insert(Arc::clone(key), entry) {
            Some(old) => kept.bytes -= self::size(key, &old.outcome),
            None => kept.order.push_back(Arc::clone(key)),
        }
        kept.bytes += size;
        while kept.bytes > self.max_bytes {
            let Some(oldest) = kept.order.pop_front() else {
                break;
            };
            if let Some(old) = kept.by_key.remove(&oldest) {
                kept.bytes -= self::size(&oldest, &old.outcome);
            }
        }
    }
}

fn size(key: &str, outcome: &Option<Bytes>) -> usize {
    key.len() + outcome.as_ref().map_or(0, Bytes::len) + ENTRY
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn keep(cache: &Cache, key: &str, bytes: usize, ttl: Duration) {
        let (print, now) = (Fingerprint::default(), Instant::now());
        let outcome = Some(Bytes::from(vec![7; bytes]));
        cache.keep(&key.into(), &print, &outcome, now, now + ttl);
    }

    fn has(cache: &Cache, key: &str) -> bool {
        cache.find(key, &Fingerprint::default(), None).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_is_not_replayed_and_other_work_is_told() {
        let cache = Cache::new(10_000);
        keep(&cache, "a", 10, Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(4)).await;
        let known = cache.find("a", &Fingerprint::default(), None);
        let age = Duration::from_secs(4);
        assert!(matches!(known, Some(Known::Done { age: is, .. }) if is == age));
        let (print, other) = (
            Fingerprint::default(),
            Fingerprint::of([b"other".as_slice()]),
        );
        assert_eq!(cache.find("a", &other, None), Some(Known::Mismatch));
        let former = cache.find("a", &other, Some(&print));
        assert!(matches!(former, Some(Known::Done { .. })), "{former:?}");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!has(&cache, "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_by_bytes_and_the_oldest_make_room() {
        let cache = Cache::new(10_000);
        for number in 0..1_000 {
            keep(&cache, &number.to_string(), 800, Duration::from_secs(60));
            // The same once more counts once.
            keep(&cache, &number.to_string(), 700, Duration::from_secs(60));
        }
        let kept = cache.kept.lock().unwrap();
        assert!(kept.bytes <= 10_000 && kept.by_key.len() == kept.order.len());
        assert!(kept.by_key.len() >= 9);
        drop(kept);
        assert!(has(&cache, "999") && !has(&cache, "0"));
        keep(&cache, "huge", 20_000, Duration::from_secs(60));
        assert!(!has(&cache, "huge") && has(&cache, "999"));
        let none = Cache::new(0);
        keep(&none, "a", 0, Duration::from_secs(60));
        assert!(!has(&none, "a"));
    }
}
