//! Work that outlives its call keeps the call's place.

use std::sync::atomic::Ordering::SeqCst;

use tokio::{
    runtime,
    sync::{Semaphore, oneshot},
};

use super::*;
use crate::{
    admission::{carry, carry_fn},
    deadline::Timeout,
};

#[tokio::test(start_paused = true)]
async fn the_next_in_the_queue_waits_for_the_work_of_a_call_that_is_gone() {
    let bulkhead = queueing(1, 1);
    let (end, work) = oneshot::channel::<()>();
    let mut service =
        bulkhead
            .layer()
            .layer(service_fn(|work: oneshot::Receiver<()>| async move {
                let _ = tokio::spawn(carry(work)).await;
                Ok::<_, Rejected>(())
            }));
    let (_other, nothing) = oneshot::channel();
    let mut gone = task::spawn(service.ready().await.unwrap().call(work));
    assert_pending!(gone.poll());
    let mut next = task::spawn(service.ready().await.unwrap().call(nothing));
    assert_pending!(next.poll());
    drop(gone);
    assert_pending!(next.poll(), "its place is not free");
    assert_eq!(
        (bulkhead.snapshot().in_flight, bulkhead.snapshot().queued),
        (1, 1)
    );
    drop(end);
    while !next.is_woken() {
        tokio::task::yield_now().await;
    }
    assert_pending!(next.poll(), "it has the place, and works");
    assert_eq!(
        (bulkhead.snapshot().in_flight, bulkhead.snapshot().queued),
        (1, 0)
    );
}

#[tokio::test]
async fn a_member_of_a_family_is_not_evicted_while_work_holds_its_place() {
    let tenants = Bulkhead::builder("tenants")
        .max_concurrent(1)
        .keyed(Keyed::new().max_keys(1))
        .unwrap();
    let (end, work) = oneshot::channel::<()>();
    let layer = tenants.layer(|_: &oneshot::Receiver<()>| 7_u32);
    let service = layer.layer(service_fn(|work: oneshot::Receiver<()>| async move {
        tokio::spawn(carry(work));
        Ok::<_, Rejected>(())
    }));
    service.oneshot(work).await.unwrap();
    for other in 100..200 {
        drop(tenants.get(&other));
    }
    assert_eq!(reason(tenants.get(&7).try_acquire()), Reason::Full);
    drop(end);
    while tenants.get(&7).snapshot().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    assert!(tenants.get(&7).try_acquire().is_ok());
}

/// Jobs in progress, and the most of them at once.
#[derive(Default)]
struct Jobs {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// Forty callers whose deadline ends before their job does: the most jobs at once, and the number of rejections.
async fn blocking_jobs_under_a_deadline(carried: bool) -> (usize, u64) {
    const CALLERS: u64 = 40;
    let (bulkhead, timeout) = (of(2), Timeout::new("jobs", ms(1)).unwrap());
    let jobs = Arc::<Jobs>::default();
    let (begun, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let service = (timeout.layer(), bulkhead.layer()).layer(service_fn(|()| {
        let (jobs, begun, go_on) = (Arc::clone(&jobs), Arc::clone(&begun), Arc::clone(&go_on));
        let runtime = runtime::Handle::current();
        let job = move || {
            let now = jobs.now.fetch_add(1, SeqCst) + 1;
            jobs.most.fetch_max(now, SeqCst);
            begun.add_permits(1);
            runtime.block_on(async { go_on.acquire().await.unwrap().forget() });
            jobs.now.fetch_sub(1, SeqCst);
        };
        let job: Box<dyn FnOnce() + Send> = if carried {
            Box::new(carry_fn(job))
        } else {
            Box::new(job)
        };
        async move {
            let job = tokio::task::spawn_blocking(job);
            job.await.map_err(BoxError::from)
        }
    }));
    for _ in 0..CALLERS {
        // Also a call that is admitted ends, at its deadline.
        service.clone().oneshot(()).await.unwrap_err();
    }
    let rejected = bulkhead.snapshot().rejected_full;
    let admitted = u32::try_from(CALLERS - rejected).unwrap();
    begun.acquire_many(admitted).await.unwrap().forget();
    go_on.add_permits(admitted as usize);
    while jobs.now.load(SeqCst) > 0 || bulkhead.snapshot().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    (jobs.most.load(SeqCst), rejected)
}

#[tokio::test]
async fn blocking_jobs_that_outlive_their_deadline_are_never_more_than_the_places() {
    assert_eq!(blocking_jobs_under_a_deadline(true).await, (2, 38));
}

/// Without it the test above fails: proof that it can.
#[tokio::test]
async fn without_carrying_blocking_jobs_are_as_many_as_their_callers() {
    assert_eq!(blocking_jobs_under_a_deadline(false).await, (40, 0));
}
