//! What a failover loses: a primary and a replica some way off, completions that were accepted, and the end of the
//! primary together with what was on its way to the replica.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Completion, Grant, Holder, Takeover, WriteOutcome},
};
use resilience_redis::{Redis, RedisIdempotency};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
    until::eventually,
};

/// What became of what was accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Completions that the primary accepted before it died.
    pub accepted: usize,
    /// Of those, the ones that the replica does not know.
    pub lost: usize,
    /// Keys on which the replica granted a fence that was not above the one before.
    pub fences_back: usize,
}

/// How far the replica is: every byte takes so long in each direction, as between two zones of a region.
pub const DISTANCE: Duration = Duration::from_millis(1);
const LOAD: Duration = Duration::from_millis(1_500);
const TASKS: usize = 32;
const SOON: Duration = Duration::from_secs(20);

/// One failover under load, with completions that wait for the replica or that do not.
///
/// # Panics
/// If the servers do not start, or the replica does not follow.
pub async fn failover(durable: bool) -> Loss {
    let mut primary = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
    let mut line = Proxy::to(primary.addr().parse().expect("an address"))
        .await
        .expect("a port");
    let port = line.address().port().to_string();
    let replica = tokio::task::spawn_blocking(move || {
        RedisServer::start_with(&["--replicaof", "127.0.0.1", &port])
    });
    let replica = replica.await.expect("a replica");
    eventually("the replica follows", SOON, async || {
        replica
            .command("INFO replication")
            .contains("master_link_status:up")
    })
    .await;
    line.set(Weather::Latency(DISTANCE)).await;

    let dead = Arc::new(AtomicBool::new(false));
    let store = store_at(&primary.url(), durable.into()).await;
    // On a busy machine the first ones may take longer than they are waited for.
    let attempts = AtomicUsize::new(0);
    eventually("a completion is accepted", SOON, async || {
        let key = format!("first-{}", attempts.fetch_add(1, Relaxed));
        complete(&store, &key).await.is_some()
    })
    .await;
    let tasks = start_load(&store, &dead);
    sleep(LOAD).await;
    // Both at once: with it goes what it had sent, and what had not arrived.
    let process = primary.process().and_then(Pid::from_raw).expect("it runs");
    kill_process(process, Signal::KILL).expect("it dies");
    line.set(Weather::Refuse).await;
    primary.kill();
    dead.store(true, Relaxed);
    let accepted = tasks.join_all().await.concat();
    assert!(replica.command("REPLICAOF NO ONE").contains("OK"));
    count(&store_at(&replica.url(), 0).await, &accepted).await
}

/// A completion that was acknowledged.
#[derive(Clone)]
pub(super) struct Accepted {
    pub(super) key: String,
    pub(super) grant: Grant,
    pub(super) at: Instant,
}

/// Claims and completes one key after the other until it is over.
pub(super) fn start_load(
    store: &RedisIdempotency,
    over: &Arc<AtomicBool>,
) -> JoinSet<Vec<Accepted>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (store, next, over) = (store.clone(), Arc::clone(&next), Arc::clone(over));
        tasks.spawn(async move {
            let mut accepted = Vec::new();
            while !over.load(Relaxed) {
                let key = format!("key-{}", next.fetch_add(1, Relaxed));
                match complete(&store, &key).await {
                    Some(grant) => accepted.push(Accepted {
                        key,
                        grant,
                        at: Instant::now(),
                    }),
                    // It fails at once, over and over, when the line is down.
                    None => sleep(Duration::from_millis(1)).await,
                }
            }
            accepted
        });
    }
    tasks
}

fn claim(key: &str) -> Claim {
    Claim {
        owner: format!("owner-of-{key}-{:016x}", fastrand::u64(..)).into(),
        fingerprint: "failover".into(),
        lease_ms: 30_000,
        retention_ms: 600_000,
        takeover: Takeover::Any,
    }
}

async fn complete(store: &RedisIdempotency, key: &str) -> Option<Grant> {
    let claim = claim(key);
    let Ok(Claimed::New(grant)) = store.claim(NAME, key, &claim).await else {
        return None;
    };
    let completion = Completion {
        outcome: "done".into(),
        ttl_ms: 600_000,
    };
    let holder = Holder::new(&claim, &grant);
    let kept = store.complete(NAME, key, &holder, &completion).await;
    matches!(kept, Ok(WriteOutcome::Kept)).then_some(grant)
}

/// What the server that took over knows.
pub(super) async fn count(store: &RedisIdempotency, accepted: &[Accepted]) -> Loss {
    let mut loss = Loss {
        accepted: accepted.len(),
        ..Loss::default()
    };
    for Accepted { key, grant, .. } in accepted {
        // No caller waits here for the lease of an attempt whose completion was lost: it is lost in any case.
        match store
            .claim(NAME, key, &claim(key))
            .await
            .expect("an answer")
        {
            Claimed::Done { .. } => {}
            Claimed::New(again) => {
                loss.lost += 1;
                loss.fences_back += usize::from(again.fence <= grant.fence);
            }
            _ => loss.lost += 1,
        }
    }
    loss
}

/// With `durable` above zero, steps wait for this number of replicas.
pub(super) async fn store_at(url: &str, durable: u32) -> RedisIdempotency {
    // Completions that wait for a replica go one after the other: there is time for a queue of them.
    let redis = Redis::builder(url).budget(Duration::from_secs(1));
    let redis = redis.connect().expect("an address");
    let store = match durable {
        0 => Ok(redis.idempotency()),
        replicas => redis
            .idempotency()
            .durable(replicas, Duration::from_millis(100)),
    };
    let store = store.expect("valid settings");
    store.ready(SOON).await.expect("a server");
    store
}

const NAME: &str = "failover";
