//! Without the store: the shares of a fleet, and what becomes of them when the store is back.

use super::*;

const PLACES: usize = 16;

fn fleet(store: &Faulty) -> [FleetBulkhead; 4] {
    [(); 4].map(|()| build(store, PLACES))
}

/// As many calls as are admitted.
async fn fill(bulkhead: &FleetBulkhead) -> Vec<FleetPermit> {
    let mut permits = Vec::new();
    while let Ok(permit) = bulkhead.acquire(1).await {
        permits.push(permit);
    }
    permits
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_never_reached_the_store_has_a_share_only_if_it_is_told_of_the_others() {
    for (options, expected) in [
        (FleetOptions::new(), 0),
        (FleetOptions::new().expected_instances(6), 2),
    ] {
        let store = Faulty::default();
        store.set(Mode::Down);
        let bulkhead = of(&store, PLACES).fleet(options).build().unwrap();
        // Its part of what may be free: two of sixteen for each of six.
        let permits = fill(&bulkhead).await;
        assert_eq!(permits.len(), expected);
        let refused = reason(bulkhead.acquire(1).await);
        let unknown = expected == 0;
        assert_eq!(refused == Reason::StoreUnreachable, unknown, "{refused:?}");
    }
}

/// One instance holds most of the permits: the shares of the others are parts of the rest.
#[tokio::test(start_paused = true)]
async fn an_outage_admits_no_more_than_the_limit_however_the_permits_are_held() {
    let store = Faulty::default();
    let fleet = fleet(&store);
    tokio::time::sleep(LEASE).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(fleet[0].acquire(1).await.unwrap());
    }
    // A renewal tells all of it.
    tokio::time::sleep(LEASE / 2).await;
    store.set(Mode::Down);
    for bulkhead in &fleet {
        held.append(&mut fill(bulkhead).await);
    }
    assert!((14..=PLACES).contains(&held.len()), "{}", held.len());
    held.clear();
    tokio::time::sleep(LEASE).await;
    for bulkhead in &fleet {
        held.append(&mut fill(bulkhead).await);
    }
    assert_eq!(
        held.len(),
        PLACES,
        "a lease later, its part of the limit for each"
    );
}

#[tokio::test(start_paused = true)]
async fn calls_that_were_admitted_without_the_store_are_entered_when_it_is_back() {
    let store = Faulty::default();
    let fleet = fleet(&store);
    tokio::time::sleep(LEASE).await;
    store.set(Mode::Down);
    let mut alone = Vec::new();
    for bulkhead in &fleet {
        alone.append(&mut fill(bulkhead).await);
    }
    assert_eq!(alone.len(), PLACES);
    // Longer than any lease.
    tokio::time::sleep(LEASE * 2).await;
    store.set(Mode::Fine);
    for _ in 0..100 {
        tokio::time::sleep(ms(50)).await;
        for bulkhead in &fleet {
            let more = fill(bulkhead).await;
            assert!(more.is_empty(), "{} more than the limit", more.len());
        }
    }
    assert_eq!(
        in_flight(&store).await,
        PLACES as u64,
        "the store knows them"
    );
    // As they end, they are given back.
    alone.truncate(5);
    tokio::time::sleep(ms(50)).await;
    assert_eq!(in_flight(&store).await, 5);
    let more = fill(&fleet[0]).await;
    assert_eq!(more.len(), PLACES - 5);
    assert!(more.iter().all(|permit| permit.fence().is_some()));
    drop((more, alone));
    drop(fleet);
    tokio::time::sleep(ms(50)).await;
    assert_eq!(in_flight(&store).await, 0);
}
