//! The store is away, slow, or forgets; holders die, stop and go on.

use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_grant_whose_answer_was_lost_is_asked_for_again_and_counts_once() {
    let store = Faulty::default();
    let bulkhead = build(&store, 3);
    // So that its share is known.
    tokio::time::sleep(2 * LEASE).await;
    store.set(Mode::Mute);
    let acquiring = bulkhead.acquire(2);
    tokio::pin!(acquiring);
    // Both answers are lost, under one id.
    let permit = acquiring.await.unwrap();
    assert_eq!(permit.fence(), None, "by the local share");
    assert_eq!((store.asked()[0], in_flight(&store).await), (2, 2));
    store.set(Mode::Fine);
    tokio::time::sleep(ms(2_000)).await;
    // Given back, and entered again.
    for _ in 0..100 {
        if in_flight(&store).await == 2 {
            break;
        }
        tokio::time::sleep(ms(100)).await;
    }
    assert_eq!(in_flight(&store).await, 2);
    drop(permit);
    settle().await;
    assert_eq!(in_flight(&store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_at_any_point_of_its_wish_leaves_nothing_behind() {
    for mode in [Mode::Hung, Mode::Stuck] {
        let store = Faulty::default();
        let bulkhead = build(&store, 2);
        let other = bulkhead.acquire(1).await.unwrap();
        settle().await;
        store.set(mode);
        drop(other);
        assert!(timeout(ms(5), bulkhead.acquire(2)).await.is_err());
        store.set(Mode::Fine);
        tokio::time::sleep(ms(2_000)).await;
        let instance = bulkhead.snapshot().in_flight;
        assert_eq!((instance, in_flight(&store).await), (0, 0), "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_lost_before_the_store_gives_it_away() {
    let store = Faulty::default();
    let (bulkhead, other) = (build(&store, 1), build(&store, 1));
    let permit = bulkhead.acquire(1).await.unwrap();
    settle().await;
    store.set(Mode::Down);
    let begun = tokio::time::Instant::now();
    permit.lost().await;
    let took = begun.elapsed();
    assert!((LEASE / 2..LEASE).contains(&took), "{took:?}");
    assert!(permit.is_lost());
    store.set(Mode::Fine);
    tokio::time::sleep(LEASE).await;
    let next = other.acquire(1).await.unwrap();
    assert!(next.fence() > permit.fence());
    drop(permit);
    settle().await;
    assert_eq!(in_flight(&store).await, 1, "the zombie released nothing");
    assert_eq!(bulkhead.snapshot().lost, 1);
    assert!(!next.is_lost());
}

/// The process was stopped: the first thing it does when it goes on is not a heartbeat.
#[tokio::test(start_paused = true)]
async fn a_holder_that_slept_past_its_lease_knows_it_at_once() {
    let store = Faulty::default();
    let bulkhead = build(&store, 1);
    let permit = bulkhead.acquire(1).await.unwrap();
    tokio::time::advance(LEASE).await;
    assert!(permit.is_lost());
    assert!(build(&store, 1).acquire(1).await.is_ok(), "reclaimed");
    settle().await;
    assert!(timeout(ms(1), permit.lost()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_lease_is_lost_goes_on_or_is_given_up_as_it_was_told() {
    let store = Faulty::default();
    let (go_on, abort) = ("go-on", "abort");
    let run = async |name: &str, when_lost| {
        let bulkhead = FleetBulkhead::builder(name)
            .store(store.clone())
            .lease(LEASE)
            .when_lost(when_lost)
            .build()
            .unwrap();
        let service = bulkhead.layer().layer(service_fn(|()| async {
            tokio::time::sleep(LEASE * 3).await;
            Ok::<_, Rejected>("done")
        }));
        let call = tokio::spawn(service.oneshot(()));
        settle().await;
        store.set(Mode::Down);
        let result = call.await.unwrap();
        store.set(Mode::Fine);
        (result, bulkhead.snapshot())
    };
    let (result, seen) = run(go_on, WhenLost::GoOn).await;
    assert_eq!((result.unwrap(), seen.lost), ("done", 1));
    let (result, seen) = run(abort, WhenLost::Abort).await;
    assert_eq!(reason(result), Reason::LeaseLost);
    assert_eq!((seen.lost, seen.rejected_lease_lost), (1, 1));
    assert_eq!(seen.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_forgotten_is_told_by_the_next_heartbeat() {
    let store = Faulty::default();
    let (bulkhead, other) = (build(&store, 2), build(&store, 2));
    let permit = bulkhead.acquire(2).await.unwrap();
    settle().await;
    store.inner.flush();
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(in_flight(&store).await, 2);
    assert_eq!(reason(other.acquire(1).await), Reason::Full);
    assert!(!permit.is_lost());
    let fence = permit.fence();
    drop(permit);
    settle().await;
    assert!(other.acquire(1).await.unwrap().fence() > fence);
}

#[tokio::test(start_paused = true)]
async fn without_the_store_calls_pass_or_not_as_the_policy_says() {
    let store = Faulty::default();
    let with = |policy| of(&store, 9).fleet(on_outage(policy)).build().unwrap();
    let (open, closed, share) = (
        with(OnOutage::FailOpen),
        with(OnOutage::FailClosed),
        with(OnOutage::Local),
    );
    tokio::time::sleep(LEASE).await;
    assert_eq!(share.snapshot().live_instances, 3);
    let before = share.acquire(1).await.unwrap();
    store.set(Mode::Down);
    assert!(open.acquire(9).await.unwrap().fence().is_none());
    assert_eq!(reason(closed.acquire(1).await), Reason::StoreUnreachable);
    let two = share.acquire(2).await.unwrap();
    assert!(two.fence().is_none() && !two.is_lost());
    // What it held before is part of the share.
    assert_eq!(reason(share.acquire(1).await), Reason::Full);
    drop(before);
    assert!(share.acquire(1).await.is_ok());
    assert!(share.snapshot().degraded);
    store.set(Mode::Fine);
    tokio::time::sleep(LEASE).await;
    assert!(!share.snapshot().degraded);
    assert!(share.acquire(7).await.unwrap().fence().is_some());
}

#[tokio::test(start_paused = true)]
async fn more_instances_than_places_let_nothing_pass_without_the_store() {
    let store = Faulty::default();
    let fleet = [(); 3].map(|()| build(&store, 2));
    tokio::time::sleep(LEASE).await;
    store.set(Mode::Down);
    assert_eq!(reason(fleet[0].acquire(1).await), Reason::Full);
}
