//! Work that outlives its call keeps the call's place.

use std::sync::atomic::AtomicBool;

use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::{
    admission::{carry, carry_fn},
    deadline::Timeout,
};

#[tokio::test(start_paused = true)]
async fn the_next_in_the_queue_waits_for_the_work_of_a_call_that_is_gone() {
    let bulkhead = queueing(1, 1);
    let (end, work) = oneshot::channel::<()>();
    let mut service = bulkhead.layer().layer(service_fn(|work| async move {
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
    let service = layer.layer(service_fn(|work| async move {
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

impl Jobs {
    fn run(&self, until: &AtomicBool) {
        self.most
            .fetch_max(self.now.fetch_add(1, Relaxed) + 1, Relaxed);
        while !until.load(Relaxed) {
            std::thread::yield_now();
        }
        self.now.fetch_sub(1, Relaxed);
    }
}

/// Forty callers whose deadline ends before their job does: the most jobs at once, and the number of rejections.
async fn blocking_jobs_under_a_deadline(carried: bool) -> (usize, u64) {
    const CALLERS: u64 = 40;
    let bulkhead = of(2);
    let timeout = Timeout::new("jobs", ms(1)).unwrap();
    let (jobs, until) = <(Arc<Jobs>, Arc<AtomicBool>)>::default();
    let begun = Arc::new(Semaphore::new(0));
    let service = (timeout.layer(), bulkhead.layer()).layer(service_fn(|()| {
        let (jobs, until, begun) = (Arc::clone(&jobs), Arc::clone(&until), Arc::clone(&begun));
        let job = move || {
            begun.add_permits(1);
            jobs.run(&until);
        };
        let job: Box<dyn FnOnce() + Send> = if carried {
            Box::new(carry_fn(job))
        } else {
            Box::new(job)
        };
        async {
            tokio::task::spawn_blocking(job)
                .await
                .map_err(BoxError::from)
        }
    }));
    for _ in 0..CALLERS {
        // Also a call that is admitted ends, at its deadline.
        service.clone().oneshot(()).await.unwrap_err();
    }
    let rejected = bulkhead.snapshot().rejected_full;
    let admitted = u32::try_from(CALLERS - rejected).unwrap();
    begun.acquire_many(admitted).await.unwrap().forget();
    until.store(true, Relaxed);
    while jobs.now.load(Relaxed) > 0 || bulkhead.snapshot().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    (jobs.most.load(Relaxed), rejected)
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
