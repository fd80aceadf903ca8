//! Whether callers are told the answers to their own questions: claims and completions of keys whose outcomes all differ,
//! while channels are listened to and connections are lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    breaker::fleet::{BreakerStore, BreakerView},
    fleet::Subscription,
    idempotency::{
        IdempotencyStore,
        record::{Claim, Claimed, Completion, Holder, Loss, Takeover, WriteOutcome},
    },
};
use resilience_redis::{Redis, RedisIdempotency};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use crate::{
    redis::RedisServer, redis_cluster::RedisCluster, redis_sentinel::RedisSentinels,
    until::eventually,
};

const NAME: &str = "answers";
const TASKS: usize = 32;
const SOON: Duration = Duration::from_secs(60);
/// Shared by half of the keys, as by requests without a body.
const SAME: &str = "same";

/// What callers were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Answers in all.
    pub answers: usize,
    /// Outcomes of other keys, and answers that no key can have at that point.
    pub foreign: usize,
    /// Keys that were said to be used for another request.
    pub reused: usize,
    /// Holders that were said to have been superseded.
    pub superseded: usize,
    /// Steps without an answer, which were repeated.
    pub unanswered: usize,
    /// Faults that were endured.
    pub faults: usize,
}

impl Told {
    /// Answers that were wrong in any way.
    #[must_use]
    pub const fn wrong(&self) -> usize {
        self.foreign + self.reused + self.superseded
    }
}

#[derive(Default)]
struct Counts {
    answers: AtomicUsize,
    foreign: AtomicUsize,
    reused: AtomicUsize,
    superseded: AtomicUsize,
    unanswered: AtomicUsize,
    over: AtomicBool,
}

/// Callers at work.
struct Load {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
    _subscriptions: Vec<Subscription<Arc<BreakerView>>>,
}

/// The channel of a breaker lives in the slot of its name.
fn breaker(number: usize) -> String {
    format!("listened-to-{number}")
}

impl Load {
    async fn start(url: &str, subscriptions: usize) -> Self {
        let redis = Redis::builder(url)
            .budget(Duration::from_millis(500))
            .connect()
            .expect("good settings");
        redis.ready(SOON).await.expect("connects");
        let breakers = redis.breakers();
        let subscriptions = (0..subscriptions).map(|number| breakers.subscribe(&breaker(number)));
        let subscriptions = subscriptions.collect();
        let counts = Arc::new(Counts::default());
        let run = fastrand::u64(..);
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let (store, counts) = (redis.idempotency(), Arc::clone(&counts));
            tasks.spawn(async move {
                for number in 0.. {
                    if counts.over.load(Relaxed) {
                        break;
                    }
                    counts
                        .one_key(&store, &format!("{run:x}-{task}-{number}"))
                        .await;
                }
            });
        }
        Self {
            counts,
            tasks,
            _subscriptions: subscriptions,
        }
    }

    async fn answered(&self, more: usize) {
        let wanted = self.counts.answers.load(Relaxed) + more;
        eventually("answers come", SOON, async || {
            self.counts.answers.load(Relaxed) >= wanted
        })
        .await;
    }

    fn answers(&self) -> usize {
        self.counts.answers.load(Relaxed)
    }

    async fn stop(mut self, faults: usize) -> Told {
        self.counts.over.store(true, Relaxed);
        let ended = timeout(SOON, async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("no panic");
            }
        });
        ended.await.expect("every step is answered in the end");
        let counts = &self.counts;
        Told {
            answers: counts.answers.load(Relaxed),
            foreign: counts.foreign.load(Relaxed),
            reused: counts.reused.load(Relaxed),
            superseded: counts.superseded.load(Relaxed),
            unanswered: counts.unanswered.load(Relaxed),
            faults,
        }
    }
}

fn claim(key: &str, who: &str) -> Claim {
    let own = key.bytes().last().is_some_and(|last| last % 2 == 0);
    Claim {
        owner: format!("{who}-of-{key}").into(),
        fingerprint: if own { key.to_owned() } else { SAME.into() }.into(),
        lease_ms: 60_000,
        retention_ms: 600_000,
        takeover: Takeover::Any,
    }
}

impl Counts {
    /// Claims it, completes it, and has it replayed, with each step repeated until it has an answer.
    async fn one_key(&self, store: &RedisIdempotency, key: &str) {
        for who in ["worker", "reader"] {
            let claim = claim(key, who);
            let claimed = loop {
                let claimed = store.claim(NAME, key, &claim).await.ok();
                if let Some(claimed) = self.heard(claimed).await {
                    break claimed;
                }
            };
            match claimed {
                Claimed::New(grant) | Claimed::Mine(grant) => {
                    self.complete(store, key, &Holder::new(&claim, &grant))
                        .await;
                }
                Claimed::Done { outcome, .. } if outcome == key => {}
                Claimed::Done { .. } => drop(self.foreign.fetch_add(1, Relaxed)),
                Claimed::Mismatch => drop(self.reused.fetch_add(1, Relaxed)),
                // A failover may have forgotten that it is done, and left the claim. Its end was said.
                Claimed::Busy { .. } if who == "reader" => {}
                // No other caller has asked for it before.
                _ => drop(self.foreign.fetch_add(1, Relaxed)),
            }
        }
    }

    async fn complete(&self, store: &RedisIdempotency, key: &str, holder: &Holder) {
        let completion = Completion {
            outcome: key.to_owned().into(),
            ttl_ms: 600_000,
        };
        let kept = loop {
            let kept = store.complete(NAME, key, holder, &completion).await.ok();
            if let Some(kept) = self.heard(kept).await {
                break kept;
            }
        };
        match kept {
            WriteOutcome::Kept | WriteOutcome::Restored => {}
            WriteOutcome::Lost(Loss::Taken) => drop(self.superseded.fetch_add(1, Relaxed)),
            _ => drop(self.foreign.fetch_add(1, Relaxed)),
        }
    }

    /// What was answered; if nothing was, to be asked again after a moment.
    async fn heard<T>(&self, answer: Option<T>) -> Option<T> {
        if answer.is_some() {
            self.answers.fetch_add(1, Relaxed);
            return answer;
        }
        self.unanswered.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(5)).await;
        None
    }
}

/// Runs `fault` again and again, `faults` times at least and until there are `answers`. `fault` is told its number, and
/// blocks.
async fn endure<S: Send + 'static>(
    mut servers: S,
    url: &str,
    (subscriptions, answers, faults): (usize, usize, usize),
    fault: fn(&mut S, usize, usize),
) -> (S, Told) {
    let load = Load::start(url, subscriptions).await;
    let start = Instant::now();
    load.answered(answers / 20).await;
    let mut endured = 0;
    while endured < faults || load.answers() < answers {
        servers = spawn_blocking(move || {
            fault(&mut servers, endured, subscriptions);
            servers
        })
        .await
        .expect("the fault happens");
        endured += 1;
        load.answered(answers / (4 * faults)).await;
        assert!(start.elapsed() < SOON * 20, "it takes too long");
    }
    (servers, load.stop(endured).await)
}

/// Slots move, replicas are promoted, and every sixth time a master is killed and comes back.
///
/// # Panics
/// When the servers do not do as they are told.
pub async fn in_a_cluster(
    cluster: RedisCluster,
    subscriptions: usize,
    answers: usize,
    faults: usize,
) -> (RedisCluster, Told) {
    let url = cluster.url();
    let plan = (subscriptions, answers, faults);
    endure(cluster, &url, plan, |cluster, number, subscriptions| {
        let key = format!("{{resilience:breaker:{}}}", breaker(number % subscriptions));
        match number % 6 {
            2 | 4 => cluster.fail_over(&key),
            5 => {
                let master = cluster.master_of(&key);
                cluster.is_followed(master);
                cluster.node_mut(master).kill();
                cluster.has_another_master(&key, master);
                cluster.node_mut(master).restart();
                cluster.follows(master);
                cluster.is_whole();
            }
            _ => {
                let _ = cluster.move_slot(&key);
            }
        }
    })
    .await
}

/// Sentinels name another master, and every other time because the one before was killed.
///
/// # Panics
/// When the servers do not do as they are told.
pub async fn under_sentinels(subscriptions: usize, answers: usize, faults: usize) -> Told {
    let group = spawn_blocking(RedisSentinels::start).await.expect("starts");
    let url = group.url();
    let plan = (subscriptions, answers, faults);
    let fault = |group: &mut RedisSentinels, number: usize, _| {
        let master = group.master();
        if number.is_multiple_of(2) {
            group.fail_over();
            group.has_another_master(master);
        } else {
            group.server_mut(master).kill();
            group.has_another_master(master);
            group.server_mut(master).restart();
        }
    };
    endure(group, &url, plan, fault).await.1
}

/// A single server that kills its connections.
///
/// # Panics
/// When the server does not do as it is told.
pub async fn with_killed_connections(subscriptions: usize, answers: usize, faults: usize) -> Told {
    let server = RedisServer::start();
    let url = server.url();
    let plan = (subscriptions, answers, faults);
    endure(server, &url, plan, |server, number, _| {
        for kind in [["normal", "pubsub"], ["pubsub", "normal"]][number % 2] {
            let _killed = server.command(&format!("CLIENT KILL TYPE {kind} SKIPME yes"));
        }
    })
    .await
    .1
}
