//! A store that never answers.

use tokio::time::{Instant, timeout};

use super::*;

const BUDGET: Duration = Duration::from_millis(250);

fn hanging(policy: OnOutage) -> (Faulty, FleetBulkhead) {
    let store = Faulty::default();
    store.set(Mode::Hung);
    let builder = of(&store, 4).fleet(on_outage(policy));
    (store, builder.build().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_call_is_decided_by_the_policy_within_the_budget_and_later_ones_at_once() {
    for (policy, expected) in [
        (OnOutage::FailOpen, None),
        (OnOutage::FailClosed, Some(Reason::StoreUnreachable)),
        (OnOutage::Local, Some(Reason::StoreUnreachable)),
    ] {
        let (store, bulkhead) = hanging(policy);
        let begun = Instant::now();
        let first = bulkhead.acquire(1).await;
        assert!(begun.elapsed() <= BUDGET + ms(2), "{:?}", begun.elapsed());
        assert_eq!(first.err().map(|no| no.reason()), expected, "{policy:?}");
        for _ in 0..2 {
            drop(bulkhead.acquire(1).await);
        }
        assert!(bulkhead.snapshot().degraded);
        let begun = Instant::now();
        let next = bulkhead.acquire(1).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "{policy:?}");
        assert_eq!(next.err().map(|no| no.reason()), expected);
        store.set(Mode::Fine);
        tokio::time::sleep(ms(1_500)).await;
        assert!(!bulkhead.snapshot().degraded);
        assert!(bulkhead.acquire(4).await.unwrap().fence().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_in_the_queue_is_decided_too() {
    let store = Faulty::default();
    let of = |policy| {
        let builder = of(&store, 1).queue(4, LEASE / 2);
        builder.fleet(on_outage(policy)).build().unwrap()
    };
    let closed = of(OnOutage::FailClosed);
    let held = closed.acquire(1).await.unwrap();
    let waits = tokio::spawn({
        let closed = closed.clone();
        async move { closed.acquire(1).await }
    });
    settle().await;
    store.set(Mode::Hung);
    let begun = Instant::now();
    assert_eq!(reason(waits.await.unwrap()), Reason::StoreUnreachable);
    assert!(begun.elapsed() < ms(300) + BUDGET);
    assert_eq!(closed.snapshot().waiting, 0);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn the_view_fails_and_a_lease_is_lost_on_time() {
    let store = Faulty::default();
    let bulkhead = build(&store, 1);
    let permit = bulkhead.acquire(1).await.unwrap();
    settle().await;
    store.set(Mode::Hung);
    let begun = Instant::now();
    let view = timeout(BUDGET + ms(2), bulkhead.fleet_view()).await;
    assert!(view.expect("within the budget").is_err());
    permit.lost().await;
    let took = begun.elapsed();
    assert!((LEASE / 2..LEASE).contains(&took), "{took:?}");
}
