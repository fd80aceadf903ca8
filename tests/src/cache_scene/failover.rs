//! Keys that several instances write and read while the master dies with changes that no replica has: whether one stays
//! stale.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::{Cache, cache::Affected};
use tokio::{
    task::{JoinSet, spawn_blocking, yield_now},
    time::sleep,
};

use super::{
    SOON, builder,
    raced_keys::{RacedKeys, held},
    told, until,
};
use crate::redis_sentinel::RedisSentinels;

const NAME: &str = "failed-over";
const INSTANCES: usize = 4;
/// Changes before the replicas are cut off, and after the failover.
const BEFORE: usize = 200;
const AFTER: usize = 40;
/// Changes that the master has answered and no replica has: fewer than an instance remembers.
const UNREPLICATED: usize = 200;
/// How long an instance may serve an old value when all is quiet.
const GRACE: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct FailedOver {
    /// Keys whose value is not the last one when all is quiet, at any instance.
    pub stale: usize,
    /// Changes in all.
    pub changes: usize,
    /// Changes that the master had answered, and its successor never got.
    pub lost: usize,
    /// Reads that an instance answered by itself.
    pub held: u64,
}

/// Four instances that write and read the same keys. The replicas are cut off, the master is killed, and Sentinel puts one
/// of the replicas in its place.
///
/// # Panics
///
/// If it never becomes quiet.
pub async fn fail_over(keys: usize) -> FailedOver {
    let group = spawn_blocking(RedisSentinels::start);
    let group = group.await.expect("starts");
    let fleet = Arc::new(Fleet::new(&group.url(), keys).await);
    let over = Arc::new(AtomicBool::new(false));
    let mut racing = JoinSet::new();
    for instance in 0..INSTANCES {
        let (fleet, over) = (Arc::clone(&fleet), Arc::clone(&over));
        racing.spawn(async move {
            while !over.load(Relaxed) {
                fleet.step(instance).await;
            }
        });
    }
    until("the race is on", || fleet.changes() >= BEFORE).await;
    let (group, master) = blocking(group, cut_off).await;
    let before = fleet.changes();
    until("the master has changes of its own", || {
        fleet.changes() >= before + UNREPLICATED
    })
    .await;
    let lost = fleet.changes() - before;
    let (group, ()) = blocking(group, move |group| replace(group, master)).await;
    // Some more changes, made known by the successor.
    let before = fleet.changes();
    until("the race goes on", || {
        fleet.is_told() && fleet.changes() >= before + AFTER
    })
    .await;
    over.store(true, Relaxed);
    racing.join_all().await;
    fleet.quiet().await;
    let stale = fleet.truth.stale(&fleet.instances, GRACE).await;
    drop(group);
    FailedOver {
        stale,
        changes: fleet.changes(),
        lost,
        held: held(&fleet.instances),
    }
}

/// Runs what waits for the group without async.
async fn blocking<T: Send + 'static>(
    mut group: RedisSentinels,
    work: impl FnOnce(&mut RedisSentinels) -> T + Send + 'static,
) -> (RedisSentinels, T) {
    let done = spawn_blocking(move || {
        let done = work(&mut group);
        (group, done)
    });
    done.await.expect("it works")
}

/// Makes the replicas follow a port where nothing listens, and returns the number of their master.
fn cut_off(group: &mut RedisSentinels) -> usize {
    let master = group.master();
    for number in (0..3).filter(|number| *number != master) {
        let cut = group.server(number).command("REPLICAOF 127.0.0.1 1");
        assert_eq!(cut, "OK");
    }
    master
}

fn replace(group: &mut RedisSentinels, master: usize) {
    group.server_mut(master).kill();
    group.has_another_master(master);
}

struct Fleet {
    instances: Vec<Cache<usize, u64>>,
    truth: RacedKeys,
    last: AtomicU64,
    changes: AtomicUsize,
}

impl Fleet {
    async fn new(url: &str, keys: usize) -> Self {
        let make = (0..INSTANCES).map(|_| told(builder(NAME), url));
        Self {
            instances: join_all(make).await,
            truth: RacedKeys::new(keys),
            last: AtomicU64::new(0),
            changes: AtomicUsize::new(0),
        }
    }

    fn changes(&self) -> usize {
        self.changes.load(SeqCst)
    }

    /// Reads some keys, and changes one.
    async fn step(&self, instance: usize) {
        let cache = &self.instances[instance];
        for _ in 0..5 {
            self.truth
                .read(cache, fastrand::usize(..self.truth.len()))
                .await;
        }
        self.change(cache, fastrand::usize(..self.truth.len()))
            .await;
        // Slow enough for what is lost to be remembered.
        sleep(Duration::from_millis(2)).await;
    }

    /// Changes the truth as a database does: of two that change it at a time, the last one counts.
    async fn change(&self, cache: &Cache<usize, u64>, key: usize) {
        let number = 1 + self.last.fetch_add(1, SeqCst);
        let save = || async {
            yield_now().await;
            self.truth.set(key, number);
            Ok::<_, Infallible>(())
        };
        match number % 3 {
            0 => {
                save().await.expect("saved");
                // Without an answer, it is repeated.
                let _ = cache.invalidate(&key).await;
            }
            1 => cache.write(&key, number, save).await.expect("saved"),
            _ => {
                let affected = Affected::from(key);
                cache.change(affected, save).await.expect("saved");
            }
        }
        self.changes.fetch_add(1, SeqCst);
    }

    fn is_told(&self) -> bool {
        self.instances.iter().all(|it| it.snapshot().coherent)
    }

    /// Waits until the store has all invalidations, and every instance hears of changes.
    async fn quiet(&self) {
        until("it is quiet", || {
            let mut pending = self.instances.iter();
            self.is_told() && pending.all(|it| it.snapshot().pending_invalidations == 0)
        })
        .await;
        for cache in &self.instances {
            cache.shutdown(SOON).await.expect("nothing is in progress");
        }
    }
}
