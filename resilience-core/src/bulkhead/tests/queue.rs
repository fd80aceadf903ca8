//! Calls that wait for a place.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_queue_is_first_come_first_served_by_call_and_not_by_poll() {
    let bulkhead = queueing(1, 8);
    let (service, mut handle) = over_mock(&bulkhead);
    handle.allow(10);
    let taken = bulkhead.try_acquire().unwrap();
    let mut calls: Vec<_> = ["a", "b", "c"]
        .map(|name| {
            let mut clone = service.clone();
            assert_ready_ok!(clone.poll_ready());
            task::spawn(clone.call(name))
        })
        .into();
    for call in calls.iter_mut().rev() {
        assert_pending!(call.poll());
    }
    drop(taken);
    for (name, mut call) in ["a", "b", "c"].into_iter().zip(calls) {
        assert!(call.is_woken(), "{name} is next");
        assert_pending!(call.poll());
        assert_request_eq!(handle, name).send_response("done");
        assert_ready_ok!(call.poll());
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake_the_queue() {
    let bulkhead = queueing(1, 1);
    let taken = bulkhead.try_acquire().unwrap();
    let mut first = task::spawn(bulkhead.acquire());
    assert_pending!(first.poll());
    drop(taken);
    // The place is handed over though its new holder has not been polled yet.
    assert_eq!(reason(bulkhead.try_acquire()), Reason::Full);
    let permit = assert_ready_ok!(first.poll());
    drop(permit);
    assert!(bulkhead.try_acquire().is_ok());
}

#[tokio::test(start_paused = true)]
async fn those_behind_a_waiter_that_leaves_move_up_and_its_room_in_the_queue_is_free() {
    let bulkhead = queueing(1, 2);
    let taken = bulkhead.try_acquire().unwrap();
    let mut first = task::spawn(bulkhead.acquire());
    let mut second = task::spawn(bulkhead.acquire());
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(first);
    let mut third = task::spawn(bulkhead.acquire());
    assert_pending!(third.poll());
    drop(taken);
    let permit = assert_ready_ok!(second.poll());
    assert_pending!(third.poll());
    drop(permit);
    drop(assert_ready_ok!(third.poll()));
}

#[tokio::test(start_paused = true)]
async fn a_place_whose_new_holder_is_dropped_before_it_looks_goes_to_the_next() {
    let bulkhead = queueing(1, 2);
    let taken = bulkhead.try_acquire().unwrap();
    let mut first = task::spawn(bulkhead.acquire());
    let mut second = task::spawn(bulkhead.acquire());
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(taken);
    assert!(first.is_woken() && !second.is_woken());
    drop(first);
    assert!(second.is_woken());
    drop(assert_ready_ok!(second.poll()));
    assert_eq!(bulkhead.snapshot().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_too_long_is_rejected_as_such() {
    let bulkhead = queueing(1, 1);
    let _taken = bulkhead.try_acquire().unwrap();
    let (mut service, mut handle) = over_mock(&bulkhead);
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call("hello"));
    assert_pending!(call.poll());
    advance(ms(99)).await;
    assert_pending!(call.poll());
    advance(ms(2)).await;
    assert!(call.is_woken());
    assert_eq!(reason(assert_ready!(call.poll())), Reason::QueueTimedOut);
    let snapshot = bulkhead.snapshot();
    assert_eq!((snapshot.queued, snapshot.rejected_queue_timed_out), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_meets_the_deadline_is_a_rejection_and_not_a_timeout_of_the_dependency() {
    let bulkhead = queueing(1, 1);
    let _taken = bulkhead.try_acquire().unwrap();
    let timeout = deadline::Timeout::new("api", ms(30)).unwrap();
    let work = service_fn(async |n: u32| Ok::<_, BoxError>(n));
    let mut service = timeout.layer().layer(bulkhead.layer().layer(work));
    let start = Instant::now();
    let error = service.ready().await.unwrap().call(1).await.unwrap_err();
    let rejected = error.as_rejected().unwrap();
    assert_eq!(
        (rejected.pattern(), rejected.reason()),
        (Pattern::Bulkhead, Reason::QueueTimedOut)
    );
    assert_eq!(rejected.verdict(), Verdict::Ignored);
    assert!(
        start.elapsed() <= ms(30),
        "the queue alone would have allowed 100 ms"
    );
}

#[tokio::test(start_paused = true)]
async fn a_place_that_came_in_time_is_kept_however_late_it_is_noticed() {
    let bulkhead = queueing(1, 1);
    let taken = bulkhead.try_acquire().unwrap();
    let mut waiter = task::spawn(bulkhead.acquire());
    assert_pending!(waiter.poll());
    drop(taken);
    advance(ms(1000)).await;
    drop(assert_ready_ok!(waiter.poll()));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_woken_only_when_its_turn_or_its_end_has_come() {
    static POLLS: AtomicUsize = AtomicUsize::new(0);
    let bulkhead = queueing(1, 8);
    let _taken = bulkhead.try_acquire().unwrap();
    let waiter = bulkhead.clone();
    let result = tokio::spawn(async move {
        let mut wait = std::pin::pin!(waiter.acquire());
        std::future::poll_fn(|cx| {
            POLLS.fetch_add(1, Relaxed);
            wait.as_mut().poll(cx)
        })
        .await
    });
    assert_eq!(reason(result.await.unwrap()), Reason::QueueTimedOut);
    assert!(POLLS.load(Relaxed) <= 3, "{POLLS:?} polls");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_wakes_the_task_that_polled_it_last() {
    let bulkhead = queueing(1, 1);
    let taken = bulkhead.try_acquire().unwrap();
    let mut waiter = Box::pin(bulkhead.acquire());
    let noop = &mut Context::from_waker(Waker::noop());
    assert!(waiter.as_mut().poll(noop).is_pending());
    let mut moved = task::spawn(waiter);
    assert_pending!(moved.poll());
    drop(taken);
    assert!(moved.is_woken());
}

#[tokio::test(start_paused = true)]
async fn a_queued_call_reserves_nothing_of_the_inner_service_while_it_waits() {
    let bulkhead = queueing(1, 4);
    let inner = ConcurrencyLimit::new(service_fn(async |n: u32| Ok::<_, BoxError>(n)), 1);
    let mut service = bulkhead.layer().layer(inner.clone());
    let taken = bulkhead.try_acquire().unwrap();
    let queued = task::spawn(service.ready().await.unwrap().call(1));
    // The one place of the inner limit is free though `service` was polled ready and a call through it waits.
    let mut other = task::spawn(inner.oneshot(2));
    assert_eq!(assert_ready_ok!(other.poll()), 2);
    drop((other, taken));
    let mut queued = queued;
    assert_eq!(assert_ready_ok!(queued.poll()), 1);
}
