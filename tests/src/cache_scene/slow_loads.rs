//! Loads that take so long that the truth changes meanwhile: whether an old value is served after its invalidation.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::{Cache, cache::InProcessCache};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};

use super::{builder, told};
use crate::redis::RedisServer;

const NAME: &str = "slow";
const LANES: u64 = 16;
/// How long another instance may serve an old value: it hears of the change in a message.
const GRACE: Duration = Duration::from_secs(5);
const OLD: u64 = 1;
const NEW: u64 = 2;

/// What came of the races.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resurrected {
    /// One load and one change each.
    pub races: u64,
    /// Reads of the old value, by a call that began after the invalidation.
    pub resurrected: u64,
    /// Loads that read the truth before it changed, and returned when the key was invalidated.
    pub overtaken: u64,
}

/// Two handles that share a store in this process.
///
/// # Panics
///
/// If a call fails.
pub async fn in_process(races: u64) -> Resurrected {
    let store = InProcessCache::bounded(1 << 20);
    let make = || {
        let cache = builder(NAME).store(store.clone()).build();
        cache.expect("good settings")
    };
    all(races, &make(), &make(), false).await
}

/// Two handles with connections of their own.
///
/// # Panics
///
/// If a call fails.
pub async fn over_redis(races: u64) -> Resurrected {
    let server = RedisServer::start();
    let one = told(builder(NAME), &server.url()).await;
    let other = told(builder(NAME), &server.url()).await;
    all(races, &one, &other, true).await
}

async fn all(
    races: u64,
    one: &Cache<u64, u64>,
    other: &Cache<u64, u64>,
    is_far: bool,
) -> Resurrected {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let caches = [one.clone(), other.clone()];
        lanes.spawn(async move {
            let mut sum = Resurrected::default();
            for key in (lane..races).step_by(LANES as usize) {
                race(&caches, key, is_far, &mut sum).await;
            }
            sum
        });
    }
    let mut sum = Resurrected::default();
    for of_lane in lanes.join_all().await {
        sum.races += of_lane.races;
        sum.resurrected += of_lane.resurrected;
        sum.overtaken += of_lane.overtaken;
    }
    // Fills that were on their way have arrived.
    let keys: Vec<u64> = (0..races).collect();
    for keys in keys.chunks(500) {
        for cache in [one, other] {
            let found = cache.get_many(keys).await;
            sum.resurrected += found.values().filter(|it| ***it == OLD).count() as u64;
        }
    }
    sum
}

/// One key: a load by the first handle, and a change by either.
async fn race(caches: &[Cache<u64, u64>; 2], key: u64, is_far: bool, sum: &mut Resurrected) {
    let (truth, changed) = (Arc::new(AtomicU64::new(OLD)), Arc::new(AtomicU64::new(0)));
    let loading = {
        let (cache, truth, changed) = (caches[0].clone(), Arc::clone(&truth), Arc::clone(&changed));
        tokio::spawn(async move {
            let overtaken = Arc::clone(&changed);
            let load = move || async move {
                let read = truth.load(SeqCst);
                linger(is_far).await;
                if read == OLD && overtaken.load(SeqCst) == 1 {
                    overtaken.store(2, SeqCst);
                }
                Ok::<_, Infallible>(read)
            };
            cache.get_or_load(&key, load).await.expect("it never fails");
        })
    };
    linger(is_far).await;
    let which = fastrand::usize(..2);
    let changer = &caches[which];
    if fastrand::bool() {
        truth.store(NEW, SeqCst);
        changer.invalidate(&key).await.expect("an answer");
    } else {
        let save = || async {
            linger(is_far).await;
            truth.store(NEW, SeqCst);
            Ok::<_, Infallible>(())
        };
        changer
            .write(&key, NEW, save)
            .await
            .expect("it never fails");
    }
    let _ = changed.compare_exchange(0, 1, SeqCst, SeqCst);
    sum.races += 1;
    // From here on, nothing old is right; at another instance, as soon as it has heard of the change.
    let heard = if is_far {
        &caches[which..=which]
    } else {
        caches
    };
    let mut is_old = serves_old(heard, key).await;
    loading.await.expect("no panic");
    let start = Instant::now();
    while is_far && start.elapsed() < GRACE && serves_old(caches, key).await {
        yield_now().await;
    }
    is_old |= serves_old(caches, key).await;
    sum.resurrected += u64::from(is_old);
    sum.overtaken += u64::from(changed.load(SeqCst) == 2);
}

async fn serves_old(caches: &[Cache<u64, u64>], key: u64) -> bool {
    let mut is_old = false;
    for cache in caches {
        let load = || async { Ok::<_, Infallible>(NEW) };
        let cached = cache.get(&key).await;
        let loaded = cache.get_or_load(&key, load).await.expect("it never fails");
        is_old |= [cached, loaded]
            .iter()
            .any(|it| it.as_deref() == Some(&OLD));
    }
    is_old
}

/// Another number of turns each time.
async fn linger(is_far: bool) {
    if is_far {
        sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
    }
    for _ in 0..fastrand::u32(..20) {
        yield_now().await;
    }
}
