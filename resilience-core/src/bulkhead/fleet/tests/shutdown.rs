//! The orderly end of a bulkhead.

use super::*;

fn live(store: &Faulty) -> impl Future<Output = u64> {
    let view = store.inner.view("reports");
    async { view.await.unwrap().live }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_everything_back_and_leaves() {
    let store = Faulty::default();
    let (leaves, stays) = (build(&store, 4), build(&store, 4));
    let permit = leaves.acquire(2).await.unwrap();
    // So that its share is known.
    tokio::time::sleep(2 * LEASE).await;
    assert_eq!(live(&store).await, 2);
    drop(permit);
    leaves.shutdown(ms(1_000)).await.unwrap();
    tokio::time::sleep(ms(5)).await;
    assert_eq!((in_flight(&store).await, live(&store).await), (0, 1));
    // From then on the policy decides: half of the permits are its share.
    let alone = leaves.acquire(1).await.unwrap();
    assert_eq!(alone.fence(), None);
    assert!(stays.acquire(1).await.unwrap().fence().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_keeps_the_leases_of_calls_in_progress() {
    let store = Faulty::default();
    let bulkhead = build(&store, 4);
    let permit = bulkhead.acquire(1).await.unwrap();
    let still_running = bulkhead.shutdown(LEASE * 3).await.unwrap_err();
    assert_eq!(still_running.tasks, 1);
    assert!(!permit.is_lost());
    assert_eq!(in_flight(&store).await, 1);
    drop(permit);
    bulkhead.shutdown(ms(1_000)).await.unwrap();
    assert_eq!(in_flight(&store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_is_bounded_while_the_store_hangs() {
    let store = Faulty::default();
    let bulkhead = build(&store, 4);
    let permit = bulkhead.acquire(1).await.unwrap();
    settle().await;
    store.set(Mode::Hung);
    drop(permit);
    assert!(bulkhead.shutdown(ms(1_000)).await.is_err());
    // It gives up when the lease has ended.
    bulkhead.shutdown(LEASE + ms(2_000)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_handle_of_a_store_ends_all_its_bulkheads() {
    let store = InProcessBulkheads::new();
    let build = |name| {
        FleetBulkhead::builder(name)
            .store(store.clone())
            .build()
            .unwrap()
    };
    let both = [build("one"), build("other")];
    let permits = [both[0].acquire(1).await, both[1].acquire(1).await];
    drop(permits);
    let handle: &StoreHandle = store.handle().unwrap();
    handle.shutdown(ms(1_000)).await.unwrap();
    for name in ["one", "other"] {
        assert_eq!(store.view(name).await.unwrap().in_flight, 0);
    }
}
