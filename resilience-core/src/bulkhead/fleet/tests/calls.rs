//! What a call pays and holds while all is well.

use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::{cost::Each, telemetry::Source};

#[tokio::test(start_paused = true)]
async fn a_place_costs_one_round_trip_and_is_given_back_in_the_background() {
    let store = Faulty::default();
    let bulkhead = build(&store, 1);
    settle().await;
    let permit = bulkhead.acquire(1).await.unwrap();
    assert_eq!((store.asked()[0], in_flight(&store).await), (1, 1));
    assert_eq!(reason(bulkhead.acquire(1).await), Reason::Full);
    drop(permit);
    assert_eq!(bulkhead.snapshot().in_flight, 0);
    settle().await;
    assert_eq!((store.asked()[2], in_flight(&store).await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_just_came_back_goes_along_with_the_next_wish() {
    let store = Faulty::default();
    let bulkhead = build(&store, 1);
    settle().await;
    for round in 1..=10 {
        let permit = bulkhead.acquire(1).await.unwrap();
        assert_eq!(store.asked(), [round, 1, 0], "one command for both");
        drop(permit);
    }
}

#[tokio::test(start_paused = true)]
async fn many_places_come_back_in_one_command() {
    let store = Faulty::default();
    let bulkhead = build(&store, 100);
    let mut permits = Vec::new();
    for _ in 0..100 {
        permits.push(bulkhead.acquire(1).await.unwrap());
    }
    drop(permits);
    settle().await;
    assert_eq!((store.asked()[2], in_flight(&store).await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn instances_share_the_places_and_costs_count() {
    let store = Faulty::default();
    let (one, other) = (build(&store, 5), build(&store, 5));
    let three = one.acquire(3).await.unwrap();
    assert_eq!(reason(other.acquire(3).await), Reason::Full);
    let two = other.acquire(2).await.unwrap();
    assert!(two.fence() > three.fence());
    assert_eq!(reason(one.acquire(6).await), Reason::TooCostly);
    let free = one.acquire(0).await.unwrap();
    assert_eq!((free.fence(), in_flight(&store).await), (None, 5));
    one.set_max_concurrent(9).unwrap();
    assert!(one.acquire(4).await.is_ok());
    assert_eq!(other.fleet_view().await.unwrap().leases, 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_may_last_much_longer_than_its_lease() {
    let store = Faulty::default();
    let (bulkhead, other) = (build(&store, 1), build(&store, 1));
    let permit = bulkhead.acquire(1).await.unwrap();
    for _ in 0..20 {
        tokio::time::sleep(LEASE).await;
        assert_eq!(reason(other.acquire(1).await), Reason::Full);
        assert!(!permit.is_lost());
    }
    let beats = store.asked()[1];
    assert!((120..=150).contains(&beats), "{beats} by two in 20 leases");
}

#[tokio::test(start_paused = true)]
async fn the_layer_charges_the_cost_and_shows_the_fence_inside() {
    let store = Faulty::default();
    let bulkhead = build(&store, 8);
    let counted = bulkhead.clone();
    let service = service_fn(move |_: u64| {
        let (counted, at_call) = (counted.clone(), current_fence());
        async move {
            tokio::task::yield_now().await;
            assert_eq!(at_call, current_fence());
            Ok::<_, Rejected>((counted.snapshot().in_flight, current_fence()))
        }
    });
    let by_size = bulkhead
        .layer()
        .cost(|size: &u64| *size)
        .layer(service.clone());
    let (held, fence) = by_size.clone().oneshot(5).await.unwrap();
    assert_eq!(held, 5);
    assert!(fence.is_some() && current_fence().is_none());
    assert_eq!(reason(by_size.oneshot(9).await), Reason::TooCostly);
    let dear = bulkhead.layer().cost(Each(8)).layer(service);
    assert!(dear.oneshot(0).await.unwrap().1 > fence);
    assert_eq!(bulkhead.snapshot().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_task_gives_back_what_is_owed_and_ends_with_the_bulkhead() {
    let store = Faulty::default();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let bulkhead = build(&store, 1);
    let permit = bulkhead.acquire(1).await.unwrap();
    drop(bulkhead);
    settle().await;
    assert_eq!(tasks(), before + 1, "the permit needs it");
    store.set(Mode::Down);
    drop(permit);
    settle().await;
    assert_eq!(tasks(), before + 1, "it still owes a place");
    store.set(Mode::Fine);
    tokio::time::sleep(ms(2_000)).await;
    assert_eq!((tasks(), in_flight(&store).await), (before, 0));
}

#[tokio::test(start_paused = true)]
async fn the_exporter_reads_what_the_snapshot_says() {
    let store = Faulty::default();
    let bulkhead = of(&store, 2)
        .fleet(on_outage(OnOutage::FailClosed))
        .build()
        .unwrap();
    let _permit = bulkhead.acquire(2).await.unwrap();
    assert_eq!(reason(bulkhead.acquire(1).await), Reason::Full);
    store.set(Mode::Down);
    for _ in 0..3 {
        assert_eq!(reason(bulkhead.acquire(1).await), Reason::StoreUnreachable);
    }
    let mut seen = Vec::new();
    bulkhead.shared.read(&mut |reading| {
        let short = reading
            .metric
            .name
            .trim_start_matches("resilience.")
            .trim_start_matches("bulkhead.");
        if reading.value > 0 {
            seen.push(format!("{short} {} {}", reading.attribute, reading.value));
        }
    });
    let expected = [
        "in_flight  2",
        "limit  2",
        "fleet.degraded bulkhead 1",
        "rejections full 1",
        "rejections store_unreachable 3",
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_work_is_refused_when_it_is_built() {
    let store = Faulty::default();
    let field = |builder: FleetBulkheadBuilder| builder.build().unwrap_err().field();
    assert_eq!(field(of(&store, 0)), "max_concurrent");
    assert_eq!(field(of(&store, 1 << 20)), "max_concurrent");
    assert_eq!(field(of(&store, 1).queue(0, LEASE)), "queue");
    assert_eq!(field(of(&store, 1).queue(1, Duration::ZERO)), "queue");
    assert_eq!(field(of(&store, 1).lease(ms(99))), "lease");
    assert_eq!(field(of(&store, 1).lease(LEASE * 10_000)), "lease");
    let options = FleetOptions::new();
    let slow = options.clone().budget(LEASE);
    assert_eq!(field(of(&store, 1).fleet(slow)), "budget");
    let beating = options.clone().heartbeat(LEASE);
    assert_eq!(field(of(&store, 1).fleet(beating)), "heartbeat");
    assert_eq!(field(of(&store, 1).fleet(options.instance(""))), "instance");
    let bulkhead = build(&store, 1);
    assert!(bulkhead.set_max_concurrent(0).is_err());
}
