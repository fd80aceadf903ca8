mod carry;
mod queue;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{
    Layer, Service, ServiceExt,
    buffer::Buffer,
    limit::{ConcurrencyLimit, ConcurrencyLimitLayer},
    service_fn,
};
use tower_test::{assert_request_eq, mock};

use super::*;
use crate::{
    Pattern, ServiceError, Verdict,
    completion::{Completion, Guard},
    deadline,
    keyed::Keyed,
    telemetry::Source,
    test_log::events_of,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Handle = mock::Handle<&'static str, &'static str>;
type Mock = mock::Mock<&'static str, &'static str>;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn of(places: usize) -> Bulkhead {
    Bulkhead::builder("db")
        .max_concurrent(places)
        .build()
        .unwrap()
}

fn queueing(places: usize, length: usize) -> Bulkhead {
    let builder = Bulkhead::builder("db").max_concurrent(places);
    builder.queue(length, ms(100)).build().unwrap()
}

fn over_mock(bulkhead: &Bulkhead) -> (mock::Spawn<BulkheadService<Mock>>, Handle) {
    mock::spawn_layer(bulkhead.layer())
}

#[track_caller]
fn reason<T>(result: Result<T, impl ServiceError>) -> Reason {
    let error = result.err().expect("rejected");
    error.as_rejected().expect("by us").reason()
}

/// A service that panics where it is told to.
#[derive(Clone)]
struct Panics {
    in_call: bool,
}

impl Service<()> for Panics {
    type Response = ();
    type Error = Rejected;
    type Future = Pin<Box<dyn Future<Output = Result<(), Rejected>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        assert!(!self.in_call, "in call");
        Box::pin(async { panic!("in the future") })
    }
}

#[tokio::test]
async fn idle_clones_that_were_polled_ready_hold_no_place() {
    let bulkhead = of(1);
    let (mut service, mut handle) = over_mock(&bulkhead);
    handle.allow(10);
    let mut idle: Vec<_> = (0..5).map(|_| service.clone()).collect();
    for clone in &mut idle {
        assert_ready_ok!(clone.poll_ready());
    }
    assert_eq!(bulkhead.snapshot().in_flight, 0);
    assert_ready_ok!(service.poll_ready());
    let response = service.call("hello");
    assert_request_eq!(handle, "hello").send_response("world");
    assert_eq!(response.await.unwrap(), "world");
}

#[tokio::test]
async fn a_full_bulkhead_rejects_at_once_as_full_and_not_as_a_timeout() {
    let bulkhead = of(1);
    let permit = bulkhead.try_acquire().unwrap();
    let (mut service, _handle) = over_mock(&bulkhead);
    assert_ready_ok!(service.poll_ready(), "full is no reason to be unready");
    let mut response = task::spawn(service.call("hello"));
    let error = assert_ready_err!(response.poll());
    let rejected = error.as_rejected().unwrap();
    assert_eq!(rejected.pattern(), Pattern::Bulkhead);
    assert_eq!(rejected.reason(), Reason::Full);
    assert_eq!(rejected.name(), "db");
    assert_eq!(rejected.verdict(), Verdict::Ignored);
    drop(permit);
    assert!(bulkhead.try_acquire().is_ok());
}

#[tokio::test]
async fn by_default_nothing_queues_and_a_queue_is_bounded() {
    let none = of(1);
    let _taken = none.try_acquire().unwrap();
    assert_eq!(reason(none.acquire().await), Reason::Full);

    let two = queueing(1, 2);
    let _taken = two.try_acquire().unwrap();
    let mut waiting: Vec<_> = (0..2).map(|_| task::spawn(two.acquire())).collect();
    for waiter in &mut waiting {
        assert_pending!(waiter.poll());
    }
    assert_eq!(two.snapshot().queued, 2);
    assert_eq!(reason(two.acquire().await), Reason::Full);
    assert_eq!(two.snapshot().rejected_full, 1);
}

#[test]
fn values_out_of_bounds_are_refused_by_name() {
    let builder = || Bulkhead::builder("db");
    let field = |builder: BulkheadBuilder| builder.build().unwrap_err().field();
    assert_eq!(field(builder().max_concurrent(0)), "max_concurrent");
    assert_eq!(field(builder().max_concurrent(1 << 20)), "max_concurrent");
    assert_eq!(field(builder().queue(0, ms(1))), "queue");
    assert_eq!(field(builder().queue(1 << 20, ms(1))), "queue");
    assert_eq!(field(builder().queue(1, Duration::ZERO)), "queue");
    assert_eq!(
        of(1).set_max_concurrent(0).unwrap_err().field(),
        "max_concurrent"
    );
    let keyed = builder().keyed::<u8>(Keyed::new().max_keys(0));
    assert_eq!(keyed.unwrap_err().field(), "max_keys");
}

#[tokio::test]
async fn a_place_is_given_back_when_the_response_is_there_and_not_when_the_future_goes() {
    let bulkhead = of(1);
    let (mut service, mut handle) = over_mock(&bulkhead);
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call("hello"));
    assert_pending!(response.poll());
    assert_eq!(bulkhead.snapshot().in_flight, 1);
    assert_request_eq!(handle, "hello").send_error("broken");
    assert_eq!(assert_ready_err!(response.poll()).to_string(), "broken");
    assert_eq!(bulkhead.snapshot().in_flight, 0);
    drop(response);
    assert_eq!(bulkhead.snapshot().in_flight, 0, "and not twice");
}

#[tokio::test]
async fn a_call_is_gone_before_its_place_is_given_to_the_next() {
    struct Gone(Bulkhead, Arc<AtomicUsize>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.1.fetch_add(self.0.snapshot().in_flight, Relaxed);
        }
    }
    let bulkhead = of(1);
    let seen = Arc::new(AtomicUsize::new(0));
    let (held, count) = (bulkhead.clone(), Arc::clone(&seen));
    let work = service_fn(move |done: bool| {
        let gone = Gone(held.clone(), Arc::clone(&count));
        // The future owns it to the end, as a combinator would that is not cleared when it is done.
        let mut work = Box::pin(async move {
            if !done {
                std::future::pending::<()>().await;
            }
            Ok::<_, BoxError>(())
        });
        std::future::poll_fn(move |cx| {
            let _gone = &gone;
            work.as_mut().poll(cx)
        })
    });
    let service = bulkhead.layer().layer(work);
    let mut whole = task::spawn(service.clone().oneshot(true));
    assert_ready_ok!(whole.poll());
    assert_eq!(seen.load(Relaxed), 1, "answered");
    let mut cut = task::spawn(service.oneshot(false));
    assert_pending!(cut.poll());
    drop(cut);
    assert_eq!(seen.load(Relaxed), 2, "dropped");
}

#[tokio::test]
async fn a_dropped_call_gives_its_place_back() {
    let bulkhead = of(1);
    let (mut service, mut handle) = over_mock(&bulkhead);
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call("hello"));
    assert_pending!(response.poll());
    let _request = handle.next_request().await.unwrap();
    drop(response);
    assert_eq!(bulkhead.snapshot().in_flight, 0);
}

#[test]
fn a_panic_in_call_and_a_panic_when_polled_give_the_place_back() {
    for in_call in [true, false] {
        for queued in [true, false] {
            let bulkhead = queueing(1, 1);
            let mut service = bulkhead.layer().layer(Panics { in_call });
            let taken = queued.then(|| bulkhead.try_acquire().unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            let _entered = runtime.enter();
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let mut call = task::spawn(service.call(()));
                if let Some(taken) = taken {
                    assert_pending!(call.poll());
                    drop(taken);
                }
                let _ = call.poll();
            }));
            let cause = panicked.unwrap_err();
            let cause = cause.downcast_ref::<&str>().unwrap();
            assert_eq!(*cause, if in_call { "in call" } else { "in the future" });
            assert_eq!(bulkhead.snapshot().in_flight, 0, "{in_call} {queued}");
            assert_eq!(bulkhead.snapshot().queued, 0, "{in_call} {queued}");
        }
    }
}

#[tokio::test]
async fn a_rejected_call_lets_go_of_the_readiness_it_did_not_use() {
    let bulkhead = of(1);
    let inner = ConcurrencyLimit::new(service_fn(async |n: u32| Ok::<_, BoxError>(n)), 1);
    let mut service = bulkhead.layer().layer(inner.clone());
    let _taken = bulkhead.try_acquire().unwrap();
    assert_eq!(
        reason(service.ready().await.unwrap().call(1).await),
        Reason::Full
    );
    let mut other = task::spawn(inner.clone());
    assert_ready_ok!(other.enter(|cx, mut inner| Service::<u32>::poll_ready(&mut *inner, cx)));
}

#[tokio::test(start_paused = true)]
async fn every_call_over_a_concurrency_limit_of_one_finds_it_ready() {
    let bulkhead = queueing(2, 16);
    let work = service_fn(async |n: u32| {
        tokio::time::sleep(ms(1)).await;
        Ok::<_, BoxError>(n)
    });
    let service = bulkhead
        .layer()
        .layer(ConcurrencyLimitLayer::new(1).layer(work));
    let calls = (0..16).map(|n| tokio::spawn(service.clone().oneshot(n)));
    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap() as usize, n);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_inside_a_buffer_does_not_end_the_worker() {
    let bulkhead = of(1);
    let work = service_fn(async |n: u32| Ok::<_, BoxError>(n));
    let mut service = Buffer::new(bulkhead.layer().layer(work), 4);
    let taken = bulkhead.try_acquire().unwrap();
    assert_eq!(
        reason(service.ready().await.unwrap().call(1).await),
        Reason::Full
    );
    drop(taken);
    assert_eq!(service.ready().await.unwrap().call(2).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn calls_over_a_buffer_each_get_a_slot_of_it() {
    let bulkhead = queueing(1, 16);
    let work = service_fn(async |n: u32| Ok::<_, BoxError>(n));
    let service = bulkhead.layer().layer(Buffer::new(work, 1));
    let calls = (0..8).map(|n| tokio::spawn(service.clone().oneshot(n)));
    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap() as usize, n);
    }
}

#[tokio::test]
async fn a_place_lasts_until_the_call_is_over_and_not_only_until_it_is_answered() {
    #[derive(Clone)]
    struct UntilDropped;
    impl<Res, G: Guard> Completion<Res, G> for UntilDropped {
        type Response = (Res, G);
        fn hold(&self, response: Res, _: Verdict, guard: G) -> (Res, G) {
            (response, guard)
        }
    }
    let bulkhead = of(1);
    let work = service_fn(async |n: u32| Ok::<_, BoxError>(n));
    let service = bulkhead.layer().complete_on(UntilDropped).layer(work);
    let (answer, body) = service.oneshot(1).await.unwrap();
    assert_eq!(answer, 1);
    assert_eq!(bulkhead.snapshot().in_flight, 1);
    drop(body);
    assert_eq!(bulkhead.snapshot().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn more_places_go_to_those_who_wait_and_fewer_take_nobodys_away() {
    let bulkhead = queueing(1, 4);
    let taken = bulkhead.try_acquire().unwrap();
    let mut waiting: Vec<_> = (0..3).map(|_| task::spawn(bulkhead.acquire())).collect();
    for waiter in &mut waiting {
        assert_pending!(waiter.poll());
    }
    bulkhead.set_max_concurrent(3).unwrap();
    assert_eq!(waiting.iter().filter(|waiter| waiter.is_woken()).count(), 2);
    let held: Vec<_> = waiting[..2]
        .iter_mut()
        .map(|w| assert_ready_ok!(w.poll()))
        .collect();
    bulkhead.set_max_concurrent(1).unwrap();
    assert_eq!(bulkhead.snapshot().in_flight, 3);
    drop(held);
    assert!(
        !waiting[2].is_woken(),
        "one is still in flight, which is the limit"
    );
    drop(taken);
    drop(assert_ready_ok!(waiting[2].poll()));
}

#[tokio::test(start_paused = true)]
async fn the_layer_holds_the_bulkhead_and_not_each_service_its_own() {
    let bulkhead = of(1);
    let work = || service_fn(async |n: u32| Ok::<_, BoxError>(n));
    let (one, two) = (
        bulkhead.layer().layer(work()),
        bulkhead.layer().layer(work()),
    );
    let _taken = bulkhead.try_acquire().unwrap();
    assert_eq!(reason(one.oneshot(1).await), Reason::Full);
    assert_eq!(reason(two.oneshot(1).await), Reason::Full);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_tells_when_to_come_back() {
    let fixed = Bulkhead::builder("db")
        .max_concurrent(1)
        .retry_after(ms(7))
        .build()
        .unwrap();
    let _taken = fixed.try_acquire().unwrap();
    assert_eq!(fixed.try_acquire().unwrap_err().retry_after(), Some(ms(7)));

    let bulkhead = of(1);
    let wait = || bulkhead.try_acquire().unwrap_err().retry_after().unwrap();
    let first = bulkhead.try_acquire().unwrap();
    assert_eq!(wait(), ms(100), "nothing is known yet");
    advance(ms(20)).await;
    drop(first);
    let second = bulkhead.try_acquire().unwrap();
    assert_eq!(wait(), ms(20), "as long as the call before");
    advance(Duration::from_secs(5)).await;
    assert_eq!(
        wait(),
        Duration::from_secs(5),
        "nothing has moved for that long"
    );
    drop(second);
}

#[test]
fn a_key_has_its_own_places_and_a_busy_one_is_not_forgotten() {
    let tenants = Bulkhead::builder("tenants").max_concurrent(1);
    let tenants = tenants.keyed::<String>(Keyed::new().max_keys(2)).unwrap();
    let busy = tenants.get("a").try_acquire().unwrap();
    assert_eq!(reason(tenants.get("a").try_acquire()), Reason::Full);
    for other in ["b", "c", "d", "e"] {
        drop(tenants.get(other).try_acquire().unwrap());
    }
    assert_eq!(tenants.len(), 2);
    assert_eq!(reason(tenants.get("a").try_acquire()), Reason::Full);
    drop(busy);
    assert!(tenants.get("a").try_acquire().is_ok());
    assert_eq!(tenants.snapshot().rejected_full, 2);
}

#[tokio::test(start_paused = true)]
async fn a_keyed_layer_rejects_and_queues_by_key() {
    let hosts = Bulkhead::builder("hosts")
        .max_concurrent(1)
        .queue(1, ms(50));
    let hosts = hosts.keyed::<u32>(Keyed::new()).unwrap();
    let work = service_fn(async |n: u32| Ok::<_, BoxError>(n));
    let service = hosts.layer(|n: &u32| n % 2).layer(work);
    let taken = hosts.get(&1).try_acquire().unwrap();
    assert_eq!(service.clone().oneshot(2).await.unwrap(), 2);
    let mut queued = task::spawn(service.clone().oneshot(3));
    assert_pending!(queued.poll());
    assert_eq!(reason(service.clone().oneshot(5).await), Reason::Full);
    drop(taken);
    assert_eq!(assert_ready_ok!(queued.poll()), 3);
}

#[test]
fn what_the_exporter_reads_adds_up() {
    let read = |source: &dyn Source| {
        let mut all = Vec::new();
        source
            .read(&mut |reading| all.push((reading.metric.name, reading.attribute, reading.value)));
        all
    };
    let bulkhead = of(1);
    let _taken = bulkhead.try_acquire().unwrap();
    bulkhead.try_acquire().unwrap_err();
    assert_eq!(
        read(&**bulkhead.shared.shared()),
        [
            ("resilience.bulkhead.in_flight", "", 1),
            ("resilience.bulkhead.queued", "", 0),
            ("resilience.bulkhead.limit", "", 1),
            ("resilience.bulkhead.rejections", "full", 1),
            ("resilience.bulkhead.rejections", "queue_timed_out", 0),
        ]
    );
}

#[test]
fn a_rejection_leaves_an_event_with_its_reason() {
    let bulkhead = Bulkhead::builder("db")
        .max_concurrent(1)
        .retry_after(ms(7))
        .build()
        .unwrap();
    let _taken = bulkhead.try_acquire().unwrap();
    let events = events_of(|| drop(bulkhead.try_acquire()));
    let expected = r#"rejected pattern="bulkhead" name="db" reason="full" retry_after=7ms"#;
    assert_eq!(events, [expected]);
}
