//! Several instances in one process, on a paused clock.

mod agreement;
mod around;
mod batching;
mod cooling_down;
mod cuts;
mod freezing;
mod outages;
mod rollout;
mod shutdown;

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::advance;

use super::*;
use crate::{
    Verdict,
    breaker::{CircuitBreaker, CircuitBreakerBuilder, HalfOpen, OpenFor, RampUp, State, Window},
    completion::Guard,
    error::{Error, Reason, Rejected},
    fleet::{FleetOptions, Pushed, StoreError, StoreFuture, Subscription},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn builder(store: impl BreakerStore) -> CircuitBreakerBuilder {
    CircuitBreaker::builder("payments")
        .minimum_calls(10)
        .open_for(OpenFor::exponential(ms(5_000), ms(60_000)).jitter(0.0))
        .half_open(HalfOpen::probes(3))
        .store(store)
}

fn fleet(store: &InProcessBreakers, size: usize) -> Vec<CircuitBreaker> {
    (0..size)
        .map(|_| builder(store.clone()).build().unwrap())
        .collect()
}

/// Lets the agents work off what is due, and time go on.
async fn pass(time: Duration) {
    let step = ms(10);
    for _ in 0..(time.as_millis() / step.as_millis()).max(1) {
        advance(step).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

fn call(breaker: &CircuitBreaker, verdict: Verdict) -> Result<(), Rejected> {
    breaker.acquire()?.settle(verdict);
    Ok(())
}

fn fail(breaker: &CircuitBreaker, times: usize) {
    for _ in 0..times {
        let _ = call(breaker, Verdict::transient());
    }
}

fn succeed(breaker: &CircuitBreaker, times: usize) {
    for _ in 0..times {
        call(breaker, Verdict::Success).unwrap();
    }
}

fn states(fleet: &[CircuitBreaker]) -> Vec<State> {
    fleet.iter().map(CircuitBreaker::state).collect()
}

/// A call through the layer, which can wait for one of the fleet's probes.
async fn through_layer(breaker: &CircuitBreaker, ok: bool) -> Result<(), Error<()>> {
    use tower::{ServiceBuilder, ServiceExt};
    let service = ServiceBuilder::new()
        .layer(breaker.layer())
        .service_fn(move |()| async move { if ok { Ok(()) } else { Err(Error::Service(())) } });
    service.oneshot(()).await
}

async fn opened(store: &InProcessBreakers, size: usize) -> Vec<CircuitBreaker> {
    let fleet = fleet(store, size);
    pass(ms(50)).await;
    for breaker in &fleet {
        fail(breaker, 9);
    }
    pass(ms(500)).await;
    assert_eq!(states(&fleet), vec![State::Open; size]);
    fleet
}

#[tokio::test(start_paused = true)]
async fn instances_with_too_few_calls_each_open_together() {
    let fleet = opened(&InProcessBreakers::new(), 3).await;
    let rejected = fleet[0].acquire().unwrap_err();
    assert_eq!(rejected.reason(), Reason::Open);
    assert!(rejected.retry_after().unwrap() > ms(4_000));
}

#[tokio::test(start_paused = true)]
async fn a_lone_bad_instance_opens_alone_and_poisons_nobody() {
    let fleet = fleet(&InProcessBreakers::new(), 3);
    pass(ms(50)).await;
    for _ in 0..20 {
        fail(&fleet[0], 50);
        succeed(&fleet[1], 1);
        pass(ms(200)).await;
    }
    assert_ne!(fleet[0].state(), State::Closed);
    assert_eq!(states(&fleet[1..]), [State::Closed; 2]);
    assert_eq!(
        fleet[1].fleet_view().await.unwrap().state,
        FleetState::Closed
    );
}

/// Each crash leaves a name behind that counts as failing for a while: not as one more, if it is the same.
#[tokio::test(start_paused = true)]
async fn a_lone_bad_instance_that_crashes_and_restarts_poisons_nobody() {
    let store = InProcessBreakers::new();
    let good = fleet(&store, 2);
    for _ in 0..5 {
        let options = FleetOptions::new().instance("checkout-7");
        let bad = builder(store.clone()).fleet(options).build().unwrap();
        pass(ms(50)).await;
        fail(&bad, 50);
        pass(ms(400)).await;
        let view = good[0].fleet_view().await.unwrap();
        assert_eq!(view.failing, 1);
    }
    assert_eq!(states(&good), [State::Closed; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_fleet_of_one_behaves_as_a_local_breaker() {
    let breaker = &fleet(&InProcessBreakers::new(), 1)[0];
    pass(ms(50)).await;
    fail(breaker, 9);
    pass(ms(3_000)).await;
    assert_eq!(breaker.state(), State::Closed);
    fail(breaker, 1);
    assert_eq!(breaker.state(), State::Open);
    pass(ms(5_000)).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    succeed(breaker, 3);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_new_instance_inherits_the_verdict() {
    let store = InProcessBreakers::new();
    let _fleet = opened(&store, 2).await;
    let late = builder(store).build().unwrap();
    pass(ms(20)).await;
    assert_eq!(late.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn twenty_instances_in_half_open_send_exactly_the_probes_of_the_fleet() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 20).await;
    pass(ms(6_000)).await;
    let reached = Arc::new(Mutex::new(Vec::new()));
    let go_on = Arc::new(tokio::sync::Notify::new());
    let calls: Vec<_> = fleet
        .iter()
        .flat_map(|breaker| std::iter::repeat_n(breaker, 5))
        .map(|breaker| {
            let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
            let service = tower::ServiceBuilder::new()
                .layer(breaker.layer())
                .service_fn(move |()| {
                    let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
                    async move {
                        reached.lock().unwrap().push(());
                        go_on.notified().await;
                        Ok::<_, Error<()>>(())
                    }
                });
            tokio::spawn(tower::ServiceExt::oneshot(service, ()))
        })
        .collect();
    pass(ms(1_000)).await;
    assert_eq!(
        reached.lock().unwrap().len(),
        3,
        "of 100 calls on 20 instances"
    );
    go_on.notify_waiters();
    pass(ms(500)).await;
    assert_eq!(states(&fleet), [State::Closed; 20]);
    let mut passed = 0;
    for call in calls {
        passed += usize::from(call.await.unwrap().is_ok());
    }
    assert_eq!(passed, 3);
}

#[tokio::test(start_paused = true)]
async fn failed_probes_open_the_whole_fleet_again_for_longer() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 3).await;
    pass(ms(5_000)).await;
    for breaker in &fleet[..2] {
        assert_eq!(through_layer(breaker, false).await, Err(Error::Service(())));
        pass(ms(100)).await;
    }
    assert_eq!(states(&fleet), [State::Open; 3]);
    let left = fleet[2].snapshot().open_for.unwrap();
    assert!(left > ms(9_000) && left <= ms(10_000), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_probe_goes_back_to_the_fleet() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 2).await;
    pass(ms(5_000)).await;
    for round in 0..20 {
        let service = tower::ServiceBuilder::new()
            .layer(fleet[round % 2].layer())
            .service_fn(|()| std::future::pending::<Result<(), Error<()>>>());
        let hanging = tokio::spawn(tower::ServiceExt::oneshot(service, ()));
        pass(ms(100)).await;
        assert_eq!(
            store.view("payments").await.unwrap().leased,
            1,
            "round {round}"
        );
        hanging.abort();
        pass(ms(100)).await;
        assert_eq!(
            store.view("payments").await.unwrap().leased,
            0,
            "round {round}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_probe_counts_as_failed_before_its_lease_ends() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 2).await;
    pass(ms(5_000)).await;
    let hanging: Vec<_> = (0..2)
        .map(|at| {
            let service = tower::ServiceBuilder::new()
                .layer(fleet[at].layer())
                .service_fn(|()| std::future::pending::<Result<(), Error<()>>>());
            tokio::spawn(tower::ServiceExt::oneshot(service, ()))
        })
        .collect();
    pass(ms(9_000)).await;
    assert_eq!(
        states(&fleet),
        [State::Open; 2],
        "two of three probes hang: the fleet opens again"
    );
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_the_layer_gets_a_probe_at_the_second_try() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 2).await;
    pass(ms(5_000)).await;
    assert_eq!(
        fleet[0].acquire().unwrap_err().reason(),
        Reason::NoProbeLeft
    );
    pass(ms(100)).await;
    call(&fleet[0], Verdict::Success).unwrap();
}

#[tokio::test(start_paused = true)]
async fn recovery_ramps_up_over_the_fleet() {
    let store = InProcessBreakers::new();
    let fleet: Vec<_> = (0..3)
        .map(|_| {
            builder(store.clone())
                .ramp_up(RampUp::stages([0.2, 0.5], ms(2_000)))
                .build()
                .unwrap()
        })
        .collect();
    pass(ms(50)).await;
    fleet.iter().for_each(|breaker| fail(breaker, 5));
    pass(ms(6_000)).await;
    for breaker in &fleet {
        let _ = through_layer(breaker, true).await;
        pass(ms(100)).await;
    }
    assert_eq!(states(&fleet), [State::RampingUp; 3]);
    assert_eq!(fleet[2].snapshot().stage.unwrap().index, 0);
    pass(ms(2_500)).await;
    assert_eq!(fleet[2].snapshot().stage.map(|stage| stage.index), Some(1));
    pass(ms(2_500)).await;
    assert_eq!(states(&fleet), [State::Closed; 3]);
}

#[tokio::test(start_paused = true)]
async fn orders_hold_for_the_fleet_and_for_those_who_come_later() {
    let store = InProcessBreakers::new();
    let fleet = fleet(&store, 2);
    pass(ms(50)).await;
    let active_override = FleetOverride {
        kind: OverrideKind::ForceOpen,
        reason: "maintenance".into(),
        by: "ops".into(),
        expires_ms: None,
    };
    fleet[0]
        .fleet()
        .unwrap()
        .set_override(active_override)
        .await
        .unwrap();
    pass(ms(50)).await;
    let late = builder(store).build().unwrap();
    pass(ms(50)).await;
    assert_eq!(states(&fleet), [State::ForcedOpen; 2]);
    assert_eq!(late.state(), State::ForcedOpen);
    assert_eq!(
        late.snapshot().active_override.unwrap().by.as_deref(),
        Some("ops")
    );
    pass(ms(60_000)).await;
    assert_eq!(
        late.state(),
        State::ForcedOpen,
        "it does not lapse by itself"
    );
    fleet[1]
        .fleet()
        .unwrap()
        .clear_override("ops")
        .await
        .unwrap();
    pass(ms(50)).await;
    assert_eq!(states(&fleet), [State::Closed; 2]);
    assert_eq!(late.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_ends_an_order_closes_also_who_opened_alone() {
    for lift_first in [false, true] {
        let fleet = fleet(&InProcessBreakers::new(), 3);
        pass(ms(50)).await;
        fail(&fleet[0], 10);
        assert_eq!(fleet[0].state(), State::Open);
        let active_override = FleetOverride {
            kind: OverrideKind::ForceOpen,
            reason: "maintenance".into(),
            by: "ops".into(),
            expires_ms: None,
        };
        let ops = fleet[1].fleet().unwrap();
        ops.set_override(active_override).await.unwrap();
        pass(ms(50)).await;
        assert_eq!(states(&fleet), [State::ForcedOpen; 3]);
        // No instance may have seen the state between the two.
        if lift_first {
            ops.clear_override("ops").await.unwrap();
        }
        ops.reset("ops", "maintained").await.unwrap();
        pass(ms(50)).await;
        assert_eq!(states(&fleet), [State::Closed; 3], "{lift_first}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_lifted_leaves_open_who_opened_alone() {
    let fleet = fleet(&InProcessBreakers::new(), 3);
    pass(ms(50)).await;
    fail(&fleet[0], 10);
    let active_override = FleetOverride {
        kind: OverrideKind::ForceOpen,
        reason: "trial".into(),
        by: "ops".into(),
        expires_ms: None,
    };
    let ops = fleet[1].fleet().unwrap();
    ops.set_override(active_override).await.unwrap();
    pass(ms(50)).await;
    ops.clear_override("ops").await.unwrap();
    pass(ms(50)).await;
    let states = states(&fleet);
    assert_eq!(states, [State::Open, State::Closed, State::Closed]);
}

#[tokio::test(start_paused = true)]
async fn a_reset_closes_the_whole_fleet_also_who_opened_alone() {
    let store = InProcessBreakers::new();
    let fleet = fleet(&store, 2);
    pass(ms(50)).await;
    fail(&fleet[0], 10);
    assert_eq!(fleet[0].state(), State::Open);
    fleet[1]
        .fleet()
        .unwrap()
        .reset("ops", "false alarm")
        .await
        .unwrap();
    pass(ms(50)).await;
    assert_eq!(states(&fleet), [State::Closed; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_while_open_is_healed_by_whoever_knows() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 3).await;
    let epoch = store.view("payments").await.unwrap().epoch;
    store.flush();
    pass(ms(500)).await;
    let view = store.view("payments").await.unwrap();
    assert_eq!((view.state, view.epoch), (FleetState::Open, epoch));
    assert_eq!(states(&fleet), [State::Open; 3]);
    pass(ms(6_000)).await;
    for breaker in &fleet {
        let _ = through_layer(breaker, true).await;
        pass(ms(200)).await;
    }
    assert_eq!(states(&fleet), [State::Closed; 3]);
    assert!(store.view("payments").await.unwrap().epoch > epoch);
}

#[tokio::test(start_paused = true)]
async fn a_flush_after_the_open_time_still_lets_probes_through() {
    let store = InProcessBreakers::new();
    let fleet = opened(&store, 2).await;
    pass(ms(6_000)).await;
    assert_eq!(states(&fleet), [State::HalfOpen; 2]);
    store.flush();
    pass(ms(3_000)).await;
    for _ in 0..3 {
        assert_eq!(through_layer(&fleet[0], true).await, Ok(()));
        pass(ms(200)).await;
    }
    assert_eq!(states(&fleet), [State::Closed; 2]);
}
