//! A server whose clock is set back, forward, and to and fro, and a failover to one whose clock is behind.

use std::time::Duration;

use resilience_core::{
    breaker::State,
    bulkhead::fleet::{Admission, BulkheadStore, Heartbeat, Holding},
    fleet::{FleetOptions, OnOutage},
    idempotency::{
        Attempt, Idempotency, IdempotencyStore,
        record::{Claimed, Holder, Loss, WriteOutcome},
    },
    limit::{
        Quota,
        store::{Demand, LimitStore},
        token_bucket::LimitOutcome,
    },
};
use resilience_redis::Redis;
use resilience_tests::{
    lasting::{LONG_MS, Lasting, SHORT, claim, place},
    redis::RedisServer,
    redis_clock::Clock,
    redis_scene::{Instance, SOON, all_are, builder, connect, events, open},
    until::eventually,
};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
/// By how much something may last longer when the clock is set back, in seconds. Most of it is for a busy machine.
const OVERRUN: f64 = 1.0;

/// What lasted too long.
fn late(overruns: &[(&'static str, f64)]) -> Vec<(&'static str, f64)> {
    println!("{overruns:?}");
    let is_late = |(_, over): &&(&str, f64)| *over > OVERRUN;
    overruns.iter().filter(is_late).copied().collect()
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
    let lasting = Lasting::begin(connect(&server.url()).await).await;
    let step = async {
        pass(SHORT / 2).await;
        clock.set_back(HOUR);
    };
    let (overruns, ()) = tokio::join!(lasting.overruns(), step);
    assert_eq!(late(&overruns), []);
    assert!(
        overruns.iter().all(|(_, over)| *over >= 0.0),
        "none ends early"
    );
}

/// The steps of a clock that two programs set.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_lasts_longer_than_it_was_asked_for_when_the_clock_goes_to_and_fro() {
    let clock = Clock::new();
    clock.set_ahead(HOUR);
    let server = clock.start(&[]);
    let lasting = Lasting::begin(connect(&server.url()).await).await;
    let steps = async {
        for _ in 0..6 {
            pass(SHORT / 8).await;
            clock.set_back(HOUR);
            pass(SHORT / 8).await;
            clock.set_ahead(HOUR);
        }
    };
    let (overruns, ()) = tokio::join!(lasting.overruns(), steps);
    assert_eq!(late(&overruns), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_lasts_longer_than_it_was_asked_for_over_a_failover_to_a_slow_clock() {
    let (clock, behind) = (Clock::new(), Clock::new());
    behind.set_back(HOUR);
    let master = clock.start(&["--repl-diskless-sync-delay", "0"]);
    let of = format!("127.0.0.1 {}", master.port());
    let replica = behind.start(&["--replicaof", &of]);
    linked(&master, &replica).await;
    let lasting = Lasting::begin(connect(&master.url()).await).await;
    // All has reached the replica.
    assert_eq!(master.command("WAIT 1 5000"), "1");
    drop(master);
    assert_eq!(replica.command("REPLICAOF NO ONE"), "OK");
    let lasting = lasting.by(connect(&replica.url()).await);
    assert_eq!(late(&lasting.overruns().await), []);
}

/// As `replicated` in the harness does: a replica that is online may have to acknowledge once more before it gets new writes.
async fn linked(master: &RedisServer, replica: &RedisServer) {
    eventually("the replica is online", SOON, || async {
        master.command("INFO replication").contains("state=online")
    })
    .await;
    assert_eq!(master.command("SET linked yes"), "OK");
    eventually("the replica gets what is written", SOON, || async {
        replica
            .try_command("GET linked")
            .is_ok_and(|it| it == "yes")
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
    let quota = quota.expect("a quota");
    let demands = ["alone", "other"].map(|limit| Demand {
        limit,
        quota,
        cost: 1,
    });
    for demands in [&demands[..1], &demands[..]] {
        let mut admitted = 0;
        for step in 0..10 {
            for _ in 0..60 {
                let decided = limits
                    .decide("n", &demands.len().to_string(), demands)
                    .await;
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
async fn a_clock_set_forward_ends_leases_and_fences_tell_the_holders_apart() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let redis = connect(&server.url()).await;
    let (bulkheads, keys) = (redis.bulkheads(), redis.idempotency());
    let (mut places, mut works) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let name = format!("holder {round}");
        if let Ok(Admission::Granted { fence }) =
            bulkheads.acquire("n", &place(&name, LONG_MS)).await
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
        holdings: [(old, *before), (new, *after)]
            .map(|(lease, fence)| Holding {
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
    assert_eq!(
        keys.extend("n", "key", new, LONG_MS).await,
        Ok(WriteOutcome::Kept)
    );
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
        let claimed = redis
            .idempotency()
            .claim("n", "key", &claim(owner, 60_000, 60_000))
            .await;
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
        assert!(
            next.iter().zip(&last).all(|(next, last)| next > last),
            "{next:?}, {last:?}"
        );
        last = next;
    }
    // One heartbeat of an instance that knows tells the others.
    assert_eq!(server.command("FLUSHALL"), "OK");
    clock.set_back(HOUR * 9);
    for redis in [&old, &young] {
        heard(redis).await;
    }
    let next = fences(young, "young").await;
    assert!(
        next.iter().zip(&last).all(|(next, last)| next > last),
        "{next:?}, {last:?}"
    );
    assert!(
        events("resilience.redis")
            .keys()
            .any(|message| message.contains("set back"))
    );
}

/// Starts the heartbeat, and waits for the first answer.
async fn heard(redis: &Redis) {
    let breaker = resilience_core::breaker::CircuitBreaker::builder(format!("{redis:p}"))
        .store(redis.breakers())
        .build();
    let _breaker = breaker.expect("good settings");
    eventually("a heartbeat", SOON, || async {
        redis.live_instances().is_some()
    })
    .await;
}

/// A fence from the clock of the process would be below all that the database has seen.
#[tokio::test(flavor = "multi_thread")]
async fn local_fences_are_above_those_that_the_store_gave() {
    let mut server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let keys = Idempotency::builder("n")
        .store(redis.idempotency())
        .fleet(FleetOptions::new().on_outage(OnOutage::Local))
        .build()
        .expect("good settings");
    let run = |key: &'static str| {
        let work = |attempt: Attempt| async move { Ok::<_, std::io::Error>(attempt.fence()) };
        keys.run(key, work)
    };
    let mut last = 0;
    for key in ["a", "b"] {
        let fence = run(key).await.expect("it is done").value;
        assert!(fence > last);
        last = fence;
    }
    server.kill();
    for key in ["c", "d", "e"] {
        let fence = run(key).await.expect("it is done here").value;
        assert!(fence > last, "{fence} is not above {last}");
        last = fence;
    }
}

/// Open for half a second; the instances ask for probes and report all the while.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_is_open_probes_and_closes_in_time_when_the_clock_is_set_back() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let open_for = Duration::from_millis(500);
    let fleet = Instance::fleet(&server.url(), 2, || builder("payments", open_for)).await;
    open(&fleet).await;
    let opened = Instant::now();
    clock.set_back(HOUR);
    fleet[0].call_until_closed().await;
    all_are(&fleet, State::Closed).await;
    // Two reports and a round of probes beside the open time itself, on a busy machine.
    let took = opened.elapsed();
    assert!(took < open_for + Duration::from_secs(5), "{took:?}");
}
