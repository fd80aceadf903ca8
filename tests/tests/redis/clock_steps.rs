//! A server whose clock is set back, forward, and to and fro, and a failover to one whose clock is behind.

use std::time::Duration;

use bytes::Bytes;
use resilience_core::{
    breaker::fleet::{
        BreakerStore, Change, FleetOverride, FleetState, LeaseAnswer, OverrideKind, Report,
    },
    bulkhead::fleet::{AcquireRequest, Admission, BulkheadStore, Heartbeat, Holding},
    idempotency::{
        IdempotencyStore,
        record::{Claim, Claimed, Completion, Holder, Loss, Takeover, WriteOutcome},
    },
    limit::{
        Quota,
        regions::RegionStore,
        store::{Demand, LimitStore},
        token_bucket::LimitOutcome,
    },
};
use resilience_redis::Redis;
use resilience_tests::{
    redis::RedisServer,
    redis_clock::Clock,
    redis_scene::{BUDGET, SOON, connect, events},
    until::eventually,
};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
/// How long everything here is asked to last.
const SHORT: Duration = Duration::from_millis(400);
const SHORT_MS: u64 = SHORT.as_millis() as u64;
/// More than the tests take.
const LONG_MS: u64 = 60_000;
/// By how much something may last longer when the clock is set back. Most of it is for a busy machine.
const OVERRUN: Duration = Duration::from_secs(1);

fn place(lease: &str, lease_ms: u64) -> AcquireRequest {
    AcquireRequest {
        lease: lease.into(),
        cost: 1,
        limit: 1,
        lease_ms,
        ticket_ms: 0,
        releases: Vec::new(),
    }
}

fn claim(owner: &str, lease_ms: u64, retention_ms: u64) -> Claim {
    Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms,
        retention_ms,
        takeover: Takeover::Any,
    }
}

fn enter(expected: u64, to: FleetState, lasting_ms: u64) -> Change {
    Change {
        expected,
        to,
        lasting_ms,
        trips: 1,
        by: "a test".into(),
        cause: String::new(),
    }
}

fn report(instance: &str, live_ms: u64) -> Report {
    Report {
        instance: instance.into(),
        voter: instance.into(),
        sequence: 1,
        epoch: 0,
        counts: Default::default(),
        failing: true,
        bucket_ms: 1_000,
        live_ms,
    }
}

/// One of each thing that lasts for [`SHORT`], in a store.
#[derive(Clone)]
struct Things {
    redis: Redis,
    /// When the first of them began, and the last.
    began: (Instant, Instant),
}

impl Things {
    /// Everything begins.
    async fn begin(redis: Redis) -> Self {
        let first = Instant::now();
        let breakers = redis.breakers();
        let open = enter(0, FleetState::Open, SHORT_MS);
        assert!(breakers.change("open", &open).await.expect("ok").0);
        let half_open = enter(0, FleetState::HalfOpen, 0);
        assert!(breakers.change("probe", &half_open).await.expect("ok").0);
        let probe = breakers.lease("probe", &"dead".into(), 1, SHORT_MS).await;
        assert!(matches!(probe.expect("ok").0, LeaseAnswer::Granted { .. }));
        let forced = FleetOverride {
            kind: OverrideKind::ForceOpen,
            reason: "a drill".into(),
            by: "a test".into(),
            expires_ms: Some(SHORT_MS),
        };
        let forced = breakers.set_override("override", Some(forced), "a test");
        forced.await.expect("ok");
        let dead = report("dead", SHORT_MS);
        assert_eq!(breakers.report("live", &dead).await.expect("ok").live, 1);

        let bulkheads = redis.bulkheads();
        let taken = bulkheads.acquire("place", &place("dead", SHORT_MS)).await;
        assert!(matches!(taken, Ok(Admission::Granted { .. })));
        let taken = bulkheads.acquire("queue", &place("held", LONG_MS)).await;
        let Ok(Admission::Granted { fence }) = taken else {
            panic!("{taken:?}");
        };
        let waits = AcquireRequest {
            ticket_ms: SHORT_MS,
            ..place("dead", LONG_MS)
        };
        let queued = bulkheads.acquire("queue", &waits).await;
        assert!(matches!(queued, Ok(Admission::Full { .. })));
        let left = [resilience_core::bulkhead::fleet::Release {
            lease: "held".into(),
            fence: Some(fence),
        }];
        assert_eq!(bulkheads.release("queue", &left).await, Ok(vec![true]));
        let dead = Heartbeat {
            instance: "dead".into(),
            live_ms: SHORT_MS,
            lease_ms: LONG_MS,
            holdings: Vec::new(),
        };
        assert_eq!(bulkheads.renew("live", &dead).await.expect("ok").1.live, 1);

        let limits = redis.limits();
        assert!(Self::admits(&redis, "wait").await);
        assert!(!Self::admits(&redis, "wait").await);
        limits.heartbeat("live", "dead", SHORT).await.expect("ok");

        let keys = redis.idempotency();
        let leased = claim("dead", SHORT_MS, LONG_MS);
        assert!(matches!(keys.claim("n", "lease", &leased).await, Ok(Claimed::New(_))));
        let (brief, done) = (claim("a", SHORT_MS, SHORT_MS), "done");
        let Ok(Claimed::New(grant)) = keys.claim("n", done, &brief).await else {
            panic!("it is new");
        };
        let completion = Completion {
            outcome: Bytes::from_static(b"outcome"),
            ttl_ms: SHORT_MS,
        };
        let holder = Holder::new(&brief, &grant);
        let kept = keys.complete("n", done, &holder, &completion).await;
        assert_eq!(kept, Ok(WriteOutcome::Kept));

        let seen = redis.regions().report("demand", "dead", 7, SHORT_MS).await;
        assert_eq!(seen.expect("ok").demand, 7);
        Self {
            redis,
            began: (first, Instant::now()),
        }
    }

    async fn admits(redis: &Redis, subject: &str) -> bool {
        let demands = [Demand {
            limit: "l",
            quota: Quota::per(1, SHORT).expect("a quota"),
            cost: 1,
        }];
        let decided = redis.limits().decide("n", subject, &demands).await;
        decided.expect("ok").outcome.is_admitted()
    }

    /// Whether the thing called `what` is over. None is looked at in a way that makes it last longer.
    async fn is_over(&self, what: &str) -> bool {
        let redis = &self.redis;
        let (breakers, bulkheads) = (redis.breakers(), redis.bulkheads());
        match what {
            "open" => {
                let asked = breakers.lease("open", &"next".into(), 9, LONG_MS).await;
                matches!(asked.expect("ok").0, LeaseAnswer::Granted { .. })
            }
            "probe" => {
                let asked = breakers.lease("probe", &"next".into(), 1, LONG_MS).await;
                matches!(asked.expect("ok").0, LeaseAnswer::Granted { .. })
            }
            "override" => {
                let view = breakers.view("override").await.expect("ok");
                view.active_override.is_none()
            }
            "live instance of a breaker" => {
                let view = breakers.report("live", &report("next", LONG_MS)).await;
                view.expect("ok").live == 1
            }
            "place" => {
                let asked = bulkheads.acquire("place", &place("next", LONG_MS)).await;
                matches!(asked, Ok(Admission::Granted { .. }))
            }
            "queue" => {
                let asked = bulkheads.acquire("queue", &place("next", LONG_MS)).await;
                matches!(asked, Ok(Admission::Granted { .. }))
            }
            "live instance of a bulkhead" => {
                let next = Heartbeat {
                    instance: "next".into(),
                    live_ms: LONG_MS,
                    lease_ms: LONG_MS,
                    holdings: Vec::new(),
                };
                bulkheads.renew("live", &next).await.expect("ok").1.live == 1
            }
            "wait" => Self::admits(redis, "wait").await,
            "live instance of a limit" => {
                let minute = Duration::from_secs(60);
                redis.limits().heartbeat("live", "next", minute).await == Ok(1)
            }
            "lease" | "done" => {
                let next = claim("next", LONG_MS, LONG_MS);
                let asked = redis.idempotency().claim("n", what, &next).await;
                matches!(asked, Ok(Claimed::New(_) | Claimed::Mine(_)))
            }
            "demand" => redis.regions().read("demand").await.expect("ok").demand == 0,
            other => panic!("there is no {other}"),
        }
    }

    /// Looks at everything until it is over. Returns what lasted longer than it may, and for how long; and what ended early.
    async fn watch(&self) -> (Vec<(&'static str, Duration)>, Vec<&'static str>) {
        const ALL: [&str; 12] = [
            "open",
            "probe",
            "override",
            "live instance of a breaker",
            "place",
            "queue",
            "live instance of a bulkhead",
            "wait",
            "live instance of a limit",
            "lease",
            "done",
            "demand",
        ];
        let (first, last) = self.began;
        let ended = ALL.map(|what| async move {
            eventually(what, SOON, || self.is_over(what)).await;
            (what, Instant::now())
        });
        let ended = futures_util::future::join_all(ended).await;
        let mut late = Vec::new();
        for (what, end) in &ended {
            let over = end.duration_since(last).saturating_sub(SHORT);
            println!("{what}: {over:?} too long");
            if over > OVERRUN {
                late.push((*what, over));
            }
        }
        let early = ended.iter().filter(|(_, end)| end.duration_since(first) < SHORT);
        (late, early.map(|(what, _)| *what).collect())
    }
}

/// Lets time pass in which a condition holds.
async fn pass(time: Duration) {
    let start = Instant::now();
    eventually("time passes", SOON, || async { start.elapsed() >= time }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_lasts_longer_than_it_was_asked_for_when_the_clock_is_set_back() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let things = Things::begin(connect(&server.url()).await).await;
    let step = async {
        pass(SHORT / 2).await;
        clock.set_back(HOUR);
    };
    let ((late, early), ()) = tokio::join!(things.watch(), step);
    assert_eq!((late, early), (Vec::new(), Vec::new()));
}

/// The steps of a clock that two programs set.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_lasts_longer_than_it_was_asked_for_when_the_clock_goes_to_and_fro() {
    let clock = Clock::new();
    clock.set_ahead(HOUR);
    let server = clock.start(&[]);
    let things = Things::begin(connect(&server.url()).await).await;
    let steps = async {
        for _ in 0..6 {
            pass(SHORT / 8).await;
            clock.set_back(HOUR);
            pass(SHORT / 8).await;
            clock.set_ahead(HOUR);
        }
    };
    let ((late, _), ()) = tokio::join!(things.watch(), steps);
    assert_eq!(late, Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_lasts_longer_than_it_was_asked_for_over_a_failover_to_a_slow_clock() {
    let (clock, behind) = (Clock::new(), Clock::new());
    behind.set_back(HOUR);
    let master = clock.start(&["--repl-diskless-sync-delay", "0"]);
    let of = format!("127.0.0.1 {}", master.port());
    let replica = behind.start(&["--replicaof", &of]);
    linked(&master, &replica).await;
    let things = Things::begin(connect(&master.url()).await).await;
    // All has reached the replica.
    assert_eq!(master.command("WAIT 1 5000"), "1");
    drop(master);
    assert_eq!(replica.command("REPLICAOF NO ONE"), "OK");
    let moved = Things {
        redis: connect(&replica.url()).await,
        ..things
    };
    let (late, _) = moved.watch().await;
    assert_eq!(late, Vec::new());
}

async fn linked(master: &RedisServer, replica: &RedisServer) {
    eventually("the replica is linked", SOON, || async {
        let _ = master.command("SET linked yes");
        replica.try_command("GET linked").is_ok_and(|it| it == "yes")
    })
    .await;
}

/// Sixty an hour, forty at once: a refill while the test runs is less than one.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_to_and_fro_fills_a_limit_once_and_freezes_none() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let limits = connect(&server.url()).await.limits();
    let quota = Quota::per(60, HOUR).and_then(|quota| quota.burst(40));
    let demands = ["alone", "other"].map(|limit| Demand {
        limit,
        quota: quota.clone().expect("a quota"),
        cost: 1,
    });
    for demands in [&demands[..1], &demands[..]] {
        let mut admitted = 0;
        for step in 0..10 {
            for _ in 0..60 {
                let decided = limits.decide("n", &demands.len().to_string(), demands).await;
                admitted += u32::from(decided.expect("ok").outcome.is_admitted());
            }
            if step % 2 == 0 {
                clock.set_ahead(HOUR);
            } else {
                clock.set_back(Duration::ZERO);
            }
        }
        // The burst, and once more for the hour that seems to have passed.
        assert_eq!(admitted, 80);
    }
    // Set back for good, a limit fills at its own pace.
    let quota = Quota::per(100, Duration::from_secs(1)).expect("a quota");
    let demands = [Demand {
        limit: "quick",
        quota,
        cost: 100,
    }];
    let take = || async {
        let decided = limits.decide("n", "quick", &demands).await;
        decided.expect("ok").outcome
    };
    for hours in 1..4 {
        eventually("it fills", SOON, || async { take().await.is_admitted() }).await;
        clock.set_back(HOUR * hours);
        match take().await {
            LimitOutcome::Wait { micros, .. } => assert!(micros <= 1_000_000, "{micros}"),
            other => panic!("it is empty: {other:?}"),
        }
    }
}

/// What a clock set forward costs, and how the old holder is told from the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_ends_leases_once_and_fences_tell_the_holders_apart() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let redis = connect(&server.url()).await;
    let (bulkheads, keys) = (redis.bulkheads(), redis.idempotency());
    let (mut places, mut works) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let name = format!("holder {round}");
        if let Ok(Admission::Granted { fence }) = bulkheads.acquire("n", &place(&name, LONG_MS)).await
        {
            places.push((name.clone(), fence));
        }
        let claim = claim(&name, LONG_MS, 86_400_000);
        if let Ok(Claimed::New(grant)) = keys.claim("n", "key", &claim).await {
            works.push(Holder::new(&claim, &grant));
        }
        if round % 2 == 0 {
            clock.set_ahead(HOUR);
        } else {
            clock.set_back(Duration::ZERO);
        }
    }
    // To and fro five times: twice in all.
    let [(old, before), (new, after)] = &places[..] else {
        panic!("{places:?}");
    };
    assert!(after > before);
    let beat = Heartbeat {
        instance: "i".into(),
        live_ms: LONG_MS,
        lease_ms: LONG_MS,
        holdings: [(old, *before), (new, *after)].map(|(lease, fence)| Holding {
            lease: lease.as_str().into(),
            cost: 1,
            fence,
        })
        .into(),
    };
    // The record was lost with the step; both calls are in progress, and both count.
    let (held, view) = bulkheads.renew("n", &beat).await.expect("ok");
    assert_eq!((held, view.in_flight), (vec![true, true], 2));
    // A key's lease ends with each step forward.
    assert_eq!(works.len(), 3, "{works:?}");
    assert!(works.is_sorted_by(|old, new| old.fence < new.fence));
    let (old, new) = (&works[1], &works[2]);
    let told = keys.extend("n", "key", old, LONG_MS).await;
    assert_eq!(told, Ok(WriteOutcome::Lost(Loss::Taken)));
    assert_eq!(keys.extend("n", "key", new, LONG_MS).await, Ok(WriteOutcome::Kept));
}

/// A server that has lost everything, with a clock behind the fences that it gave.
#[tokio::test(flavor = "multi_thread")]
async fn fences_go_on_upwards_when_everything_is_lost_and_the_clock_is_set_back() {
    let _ = events("resilience.redis");
    let clock = Clock::new();
    let server = clock.start(&[]);
    let (old, young) = (connect(&server.url()).await, connect(&server.url()).await);
    let fences = |redis: Redis, owner: &'static str| async move {
        let place = redis.bulkheads().acquire("n", &place(owner, LONG_MS)).await;
        let Ok(Admission::Granted { fence }) = place else {
            panic!("{place:?}");
        };
        let claimed = redis.idempotency().claim("n", "key", &claim(owner, 60_000, 60_000)).await;
        let Ok(Claimed::New(grant)) = claimed else {
            panic!("{claimed:?}");
        };
        [fence, grant.fence]
    };
    let first = fences(old.clone(), "first").await;
    let mut last = first;
    for hours in 1..4 {
        assert_eq!(server.command("FLUSHALL"), "OK");
        clock.set_back(HOUR * hours);
        let next = fences(old.clone(), "next").await;
        assert!(next.iter().zip(&last).all(|(next, last)| next > last), "{next:?}, {last:?}");
        last = next;
    }
    // One heartbeat of an instance that knows tells the others.
    assert_eq!(server.command("FLUSHALL"), "OK");
    clock.set_back(HOUR * 9);
    for redis in [&old, &young] {
        heard(redis).await;
    }
    let next = fences(young, "young").await;
    assert!(next.iter().zip(&last).all(|(next, last)| next > last), "{next:?}, {last:?}");
    assert!(events("resilience.redis").keys().any(|message| message.contains("set back")));
}

/// Starts the heartbeat, and waits for the first answer.
async fn heard(redis: &Redis) {
    let breaker = resilience_core::breaker::CircuitBreaker::builder(format!("{redis:p}"))
        .store(redis.breakers())
        .build();
    let _breaker = breaker.expect("good settings");
    eventually("a heartbeat", SOON, || async { redis.live_instances().is_some() }).await;
}
