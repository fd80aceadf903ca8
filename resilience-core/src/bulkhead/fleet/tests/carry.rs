//! Work that outlives its call keeps the call's lease.

use tokio::{sync::oneshot, task::yield_now};
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::admission::carry;

type Work = oneshot::Receiver<()>;

/// A call that is dropped when its work has begun. The work ends when the sender is dropped.
async fn gone(bulkhead: &FleetBulkhead) -> oneshot::Sender<()> {
    let (end, work) = oneshot::channel();
    let service = bulkhead.layer().layer(service_fn(|work: Work| async move {
        let _ = tokio::spawn(carry(work)).await;
        Ok::<_, Rejected>(())
    }));
    let mut call = task::spawn(service.oneshot(work));
    assert_pending!(call.poll());
    settle().await;
    assert_pending!(call.poll());
    assert_eq!(bulkhead.snapshot().in_flight, 1);
    end
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_for_work_of_a_call_that_is_gone_and_given_back_after() {
    let store = Faulty::default();
    let (bulkhead, other) = (build(&store, 1), build(&store, 1));
    let end = gone(&bulkhead).await;
    for _ in 0..20 {
        tokio::time::sleep(LEASE).await;
        assert_eq!(reason(other.acquire(1).await), Reason::Full);
    }
    drop(end);
    settle().await;
    assert_eq!(bulkhead.snapshot().in_flight, 0);
    assert_eq!(in_flight(&store).await, 0);
    assert_eq!(bulkhead.snapshot().lost, 0);
    assert!(other.acquire(1).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_work_of_a_call_that_is_gone() {
    let store = Faulty::default();
    let bulkhead = build(&store, 1);
    let end = gone(&bulkhead).await;
    bulkhead.shutdown(LEASE).await.unwrap_err();
    assert_eq!(in_flight(&store).await, 1);
    drop(end);
    yield_now().await;
    bulkhead.shutdown(LEASE).await.unwrap();
    assert_eq!(in_flight(&store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_aborted_with_its_lease_leaves_its_work_in_the_count() {
    let store = Faulty::default();
    let bulkhead = of(&store, 1).when_lost(WhenLost::Abort).build().unwrap();
    let (end, work) = oneshot::channel();
    let service = bulkhead.layer().layer(service_fn(|work: Work| async move {
        let _ = tokio::spawn(carry(work)).await;
        Ok::<_, Rejected>(())
    }));
    let call = tokio::spawn(service.oneshot(work));
    settle().await;
    store.set(Mode::Down);
    assert_eq!(reason(call.await.unwrap()), Reason::LeaseLost);
    assert_eq!(bulkhead.snapshot().in_flight, 1, "the work goes on");
    drop(end);
    settle().await;
    assert_eq!(bulkhead.snapshot().in_flight, 0);
}
