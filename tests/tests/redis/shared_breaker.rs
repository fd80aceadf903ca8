//! A fleet on a real Redis: several instances in this process, each with a connection of its own.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::{
    Verdict,
    breaker::{
        CircuitBreakerBuilder, OpenFor, State,
        fleet::{BreakerStore, FleetOverride, FleetState, OverrideKind},
    },
    completion::Guard,
    error::Error,
    fleet::FleetOptions,
};
use resilience_tests::{
    redis::RedisServer,
    redis_scene::{Instance, SOON, all_are, builder, connect, open, rules},
    until::eventually,
};
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use tower::{Layer, ServiceExt};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(600);

fn payments(open_for: Duration) -> impl Fn() -> CircuitBreakerBuilder {
    move || builder("payments", open_for)
}

async fn fleet(server: &RedisServer, size: usize, open_for: Duration) -> Vec<Instance> {
    Instance::fleet(&server.url(), size, payments(open_for)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_opens_all_and_who_starts_later_inherits_the_verdict() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 5, LONG).await;
    for one in &fleet[..2] {
        one.settle(9, Verdict::transient());
    }
    all_are(&fleet, State::Open).await;
    let view = fleet[4].view().await.expect("a view");
    assert_eq!(view.state, FleetState::Open);
    let late = Instance::start(&server.url(), payments(LONG)()).await;
    all_are(&[late], State::Open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_bad_instance_opens_alone_and_poisons_nobody() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 3, SHORT).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        fleet[0].settle(50, Verdict::transient());
        fleet[1].settle(1, Verdict::Success);
        for other in &fleet[1..] {
            assert_eq!(other.breaker.state(), State::Closed);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(fleet[0].breaker.state(), State::Closed);
    let view = fleet[1].view().await.expect("a view");
    assert_eq!((view.state, view.failing), (FleetState::Closed, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_instances_in_half_open_send_exactly_the_probes_of_the_fleet() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 20, SHORT).await;
    open(&fleet).await;
    all_are(&fleet, State::HalfOpen).await;
    let (reached, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let calls = fleet.iter().flat_map(|one| {
        let service = {
            let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
            one.breaker.layer().layer(tower::service_fn(move |()| {
                let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
                async move {
                    reached.fetch_add(1, Relaxed);
                    let _permit = go_on.acquire().await;
                    Ok::<_, Error<()>>(())
                }
            }))
        };
        (0..5).map(move |_| tokio::spawn(service.clone().oneshot(())))
    });
    let calls: Vec<_> = calls.collect();
    let rejected = || calls.iter().filter(|call| call.is_finished()).count();
    eventually(
        "the probes are out and all others rejected",
        SOON,
        || async { reached.load(Relaxed) >= 3 && rejected() >= 97 },
    )
    .await;
    assert_eq!(reached.load(Relaxed), 3, "of 100 calls on 20 instances");
    assert_eq!(rejected(), 97);
    go_on.add_permits(100);
    let passed = join_all(calls).await;
    let passed = passed.into_iter().filter(|call| matches!(call, Ok(Ok(()))));
    assert_eq!(passed.count(), 3);
    all_are(&fleet, State::Closed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_reach_all_and_who_starts_later() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 4, LONG).await;
    let active_override = FleetOverride {
        kind: OverrideKind::ForceOpen,
        reason: "maintenance".into(),
        by: "ops".into(),
        expires_ms: None,
    };
    let handle = fleet[0].breaker.fleet().expect("it is shared");
    handle.set_override(active_override).await.expect("ordered");
    all_are(&fleet, State::ForcedOpen).await;
    let late = Instance::start(&server.url(), payments(LONG)()).await;
    all_are(std::slice::from_ref(&late), State::ForcedOpen).await;
    let active_override = late.breaker.snapshot().active_override.expect("the order");
    assert_eq!(active_override.by.as_deref(), Some("ops"));
    handle.clear_override("ops").await.expect("lifted");
    all_are(&fleet, State::Closed).await;
    all_are(&[late], State::Closed).await;
    let brief = FleetOverride {
        kind: OverrideKind::Disable,
        reason: "drill".into(),
        by: "ops".into(),
        expires_ms: Some(1_000),
    };
    handle.set_override(brief).await.expect("ordered");
    all_are(&fleet, State::Disabled).await;
    all_are(&fleet, State::Closed).await;
}

/// The known Redis breaker holds a lock meanwhile: one call after the other, and one of eight counted.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_several_instances_do_not_wait_for_each_other_and_all_are_counted() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 8, LONG).await;
    let call = Duration::from_millis(100);
    let start = Instant::now();
    let results = join_all(fleet.iter().map(|one| {
        let service = one
            .breaker
            .layer()
            .layer(tower::service_fn(move |()| async move {
                tokio::time::sleep(call).await;
                Ok::<_, Error<()>>(())
            }));
        service.oneshot(())
    }))
    .await;
    let took = start.elapsed();
    assert!(results.iter().all(Result::is_ok));
    assert!(took < 3 * call, "8 calls of {call:?} took {took:?}");
    eventually("8 of 8 are counted", SOON, || async {
        fleet[0]
            .view()
            .await
            .is_some_and(|view| view.window.total() == 8)
    })
    .await;
    println!("8 instances x one 100 ms call: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_learned_by_one_instance_cools_down_the_fleet() {
    let server = RedisServer::start();
    let polite = || {
        let open_for = OpenFor::fixed(SHORT).honour_retry_after(LONG);
        builder("payments", SHORT).open_for(open_for)
    };
    let fleet = Instance::fleet(&server.url(), 5, polite).await;
    let retry_after = Some(Duration::from_secs(90));
    fleet[2].settle(10, Verdict::Transient { retry_after });
    all_are(&fleet, State::Open).await;
    for one in &fleet {
        let left = one.breaker.snapshot().open_for.expect("it is open");
        assert!(left > Duration::from_secs(60), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_while_open_heals_and_the_epoch_never_goes_back() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 3, Duration::from_secs(2)).await;
    open(&fleet).await;
    let epoch = fleet[0].view().await.expect("a view").epoch;
    for _ in 0..3 {
        assert_eq!(server.command("FLUSHALL"), "OK");
        eventually("an instance brings the verdict back", SOON, || async {
            fleet[0]
                .view()
                .await
                .is_some_and(|view| view.epoch >= epoch)
        })
        .await;
        for one in &fleet {
            assert_ne!(one.breaker.state(), State::Closed);
        }
    }
    all_are(&fleet, State::HalfOpen).await;
    // Once more, when the open time is over and no probe was requested yet.
    assert_eq!(server.command("FLUSHALL"), "OK");
    for one in &fleet {
        one.call_until_closed().await;
    }
    let view = fleet[0].view().await.expect("a view");
    assert!(view.epoch > epoch && view.state == FleetState::Closed);
}

/// Commands per second: what reports cost, and nothing per call.
#[tokio::test(flavor = "multi_thread")]
async fn redis_is_asked_as_often_for_ten_thousand_calls_as_for_one() {
    let server = RedisServer::start();
    let calm = Duration::from_millis(250);
    let slow = move || {
        builder("payments", LONG)
            .fleet(FleetOptions::new().heartbeat(calm))
            .fleet_rules(rules().alert(calm))
    };
    let fleet = Instance::fleet(&server.url(), 4, slow).await;
    let mut asked = Vec::new();
    for (state, per_second) in [
        ("closed", 1_u64),
        ("closed", 10_000),
        ("open", 1),
        ("open", 10_000),
    ] {
        if state == "open" && fleet[0].breaker.state() == State::Closed {
            // Enough to outweigh all that went well.
            for one in &fleet {
                one.settle(12_000, Verdict::transient());
            }
            all_are(&fleet, State::Open).await;
        }
        let (before, start) = (scripts(&server), Instant::now());
        let mut made = 0;
        while start.elapsed() < Duration::from_secs(2) {
            let due = (start.elapsed().as_secs_f64() * per_second as f64) as u64 + 1;
            while made < due {
                fleet[made as usize % 4].settle(1, Verdict::Success);
                made += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = start.elapsed().as_secs_f64();
        let rate = (scripts(&server) - before) as f64 / took;
        println!("{state}, {per_second} calls per second: {rate:.1} scripts per second");
        asked.push(rate);
        assert!(made >= per_second);
    }
    // Four instances: one heartbeat per interval each, and one report if it was called or is not closed.
    let each = 4.0 / calm.as_secs_f64();
    for (number, rate) in asked.into_iter().enumerate() {
        let formula = if number == 0 { each + 1.0 } else { 2.0 * each };
        assert!(
            (0.5 * formula..1.4 * formula).contains(&rate),
            "{rate} against {formula}"
        );
    }
}

/// Every key goes away by itself, and there are no more of them than the table says.
#[tokio::test(flavor = "multi_thread")]
async fn every_key_has_a_ttl_and_is_in_the_table() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 3, SHORT).await;
    open(&fleet).await;
    all_are(&fleet, State::HalfOpen).await;
    let mut call = fleet[0].breaker.acquire();
    eventually("a probe", SOON, || {
        call = fleet[0].breaker.acquire();
        let got = call.is_ok();
        async move { got }
    })
    .await;
    let keys: BTreeSet<String> = server
        .command("KEYS *")
        .lines()
        .map(str::to_owned)
        .collect();
    let table = [
        "failing", "leases", "live", "local", "log", "sequence", "state", "window",
    ];
    for key in &keys {
        let ttl: i64 = server
            .command(&format!("PTTL {key}"))
            .parse()
            .expect("a number");
        assert!(ttl > 0, "{key}: {ttl}");
        let part = key.rsplit(':').next().expect("a part");
        assert!(
            table.contains(&part)
                || key == "{resilience:breaker}:names"
                || key == "{resilience:members}"
                || key == "{resilience:members}:clock",
            "{key}"
        );
    }
    assert!(
        keys.contains("{resilience:breaker:payments}:leases"),
        "{keys:?}"
    );
    call.expect("a probe").settle(Verdict::Success);
}

/// Breakers of a keyed family come and go.
#[tokio::test(flavor = "multi_thread")]
async fn breakers_that_are_gone_leave_no_subscription_and_no_task_behind() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let new = |name: &str| {
        let new = builder(name, SHORT).store(redis.breakers());
        new.build().expect("good settings")
    };
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for round in 0..200 {
        drop(new(&format!("customer-{round}")));
    }
    let channels = || server.command("PUBSUB CHANNELS *").lines().count();
    let mut last = None;
    eventually("they are gone without a trace", SOON, || {
        // Each newcomer sees to those that are gone.
        last = Some(new("last"));
        let few = channels() <= 2 && tasks() <= before + 5;
        async move { few }
    })
    .await;
    drop(last);
    // A subscriber that comes back under an old name receives pushes, although the last one was about to unsubscribe.
    let patient = |name: &str| {
        let patient =
            builder(name, SHORT).fleet(FleetOptions::new().heartbeat(Duration::from_secs(60)));
        let breaker = patient.store(redis.breakers()).build().expect("good");
        Instance {
            redis: redis.clone(),
            breaker,
        }
    };
    let operator = connect(&server.url()).await.breakers();
    for round in 0..10 {
        let name = format!("customer-{round}");
        drop(new(&name));
        tokio::time::sleep(Duration::from_millis(10 * round)).await;
        let (_other, again) = (new("other"), patient(&name));
        eventually("it has reported", SOON, || async {
            again.view().await.is_some_and(|view| view.live >= 1)
        })
        .await;
        let active_override = operator.set_override(&name, Some(disable()), "ops").await;
        active_override.expect("ordered");
        all_are(&[again], State::Disabled).await;
    }
}

/// Two breakers of one name on one connection: both are told.
#[tokio::test(flavor = "multi_thread")]
async fn two_instances_on_one_connection_both_hear_what_is_pushed() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let new = || {
        let patient =
            payments(SHORT)().fleet(FleetOptions::new().heartbeat(Duration::from_secs(60)));
        let breaker = patient.store(redis.breakers()).build().expect("good");
        Instance {
            redis: redis.clone(),
            breaker,
        }
    };
    let both = [new(), new()];
    eventually("both have reported", SOON, || async {
        both[0].view().await.is_some_and(|view| view.live == 2)
    })
    .await;
    let operator = connect(&server.url()).await.breakers();
    let active_override = operator
        .set_override("payments", Some(disable()), "ops")
        .await;
    active_override.expect("ordered");
    all_are(&both, State::Disabled).await;
}

fn disable() -> FleetOverride {
    FleetOverride {
        kind: OverrideKind::Disable,
        reason: "drill".into(),
        by: "ops".into(),
        expires_ms: None,
    }
}

fn scripts(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats");
    let of_scripts = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_eval"));
    of_scripts
        .filter_map(|line| line.split_once("calls=")?.1.split_once(','))
        .map(|(number, _)| number.parse::<u64>().expect("a number"))
        .sum()
}
