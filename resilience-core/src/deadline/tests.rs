use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::join};
use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer,
    limit::ConcurrencyLimitLayer, service_fn,
};

use super::*;
use crate::{
    clock::Clock,
    error::{Error, Reason, Rejected},
};

type Outcome<T> = Result<T, Error<Infallible>>;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn timeout(millis: u64) -> Timeout {
    Timeout::new("api", ms(millis)).unwrap()
}

fn reason<T>(outcome: Outcome<T>) -> Option<Reason> {
    outcome
        .err()
        .and_then(|error| error.rejected().map(Rejected::reason))
}

/// Ready when told so; counts its calls.
#[derive(Clone, Default)]
struct Gated {
    open: Arc<std::sync::atomic::AtomicBool>,
    calls: Arc<AtomicU32>,
    polls: Arc<AtomicU32>,
}

impl Service<()> for Gated {
    type Response = ();
    type Error = Error<Infallible>;
    type Future = std::future::Ready<Outcome<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Outcome<()>> {
        self.polls.fetch_add(1, Relaxed);
        if self.open.load(Relaxed) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.calls.fetch_add(1, Relaxed);
        std::future::ready(Ok(()))
    }
}

/// What a guard below the layer sees when the call's future is dropped.
#[derive(Clone, Default)]
struct SeenInDrop(Arc<Mutex<Option<Option<bool>>>>);

struct DropWatch(SeenInDrop);

impl Drop for DropWatch {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = Some(current().map(Deadline::is_past));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_cut_off_at_its_deadline() {
    let handle = timeout(100);
    let mut service = handle.layer_over(service_fn(|()| pending::<Outcome<()>>()));
    let start = Instant::now();
    let error = service.ready().await.unwrap().call(()).await.unwrap_err();
    assert_eq!(start.elapsed(), ms(100));
    let expected = "deadline `api`: timed out";
    assert_eq!(error.to_string(), expected);
    assert_eq!(
        (handle.snapshot().timed_out, handle.snapshot().rejected),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_ready_at_the_deadline_is_not_thrown_away() {
    let mut service = timeout(100).layer_over(service_fn(async |()| {
        sleep(ms(100)).await;
        Outcome::Ok("just in time")
    }));
    let start = Instant::now();
    assert_eq!(service.call(()).await, Ok("just in time"));
    assert_eq!(start.elapsed(), ms(100));
}

#[tokio::test(start_paused = true)]
async fn an_inner_timeout_never_outlives_an_outer_deadline() {
    let inner = timeout(1000);
    let stack = ServiceBuilder::new()
        .layer(timeout(100).layer())
        .layer(inner.layer());
    let mut service = stack.service(service_fn(async |()| {
        assert_eq!(current().unwrap().remaining(), ms(100));
        pending::<Outcome<()>>().await
    }));
    let start = Instant::now();
    assert_eq!(reason(service.call(()).await), Some(Reason::TimedOut));
    assert_eq!(start.elapsed(), ms(100));
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_never_stretches_an_inner_one() {
    let stack = ServiceBuilder::new()
        .layer(timeout(1000).layer())
        .layer(timeout(10).layer());
    let mut service = stack.service(service_fn(async |()| {
        Outcome::Ok(current().unwrap().remaining())
    }));
    assert_eq!(service.call(()).await, Ok(ms(10)));
    assert!(current().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_time_left_is_not_made() {
    let inner = Gated::default();
    let handle = timeout(100);
    let mut service = handle.layer_over(inner.clone());
    let past = Deadline::after(ms(5));
    advance(ms(5)).await;
    let outcome = scope(past, async { service.call(()).await }).await;
    assert_eq!(reason(outcome), Some(Reason::NoTimeLeft));
    assert_eq!(inner.calls.load(Relaxed), 0);
    assert_eq!(
        (handle.snapshot().timed_out, handle.snapshot().rejected),
        (0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_for_readiness_counts_too() {
    let inner = Gated::default();
    let mut service = timeout(100).layer_over(inner.clone());
    let start = Instant::now();
    service.ready().await.unwrap();
    assert_eq!(start.elapsed(), ms(100));
    assert_eq!(reason(service.call(()).await), Some(Reason::NoTimeLeft));
    assert_eq!(inner.calls.load(Relaxed), 0);
    assert!(inner.polls.load(Relaxed) <= 4, "{:?}", inner.polls);
    // The next caller waits again.
    service.ready().await.unwrap();
    assert_eq!(start.elapsed(), ms(200));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_readiness_is_bounded_by_the_outer_deadline() {
    let mut service = timeout(1000).layer_over(Gated::default());
    let start = Instant::now();
    scope(Deadline::after(ms(30)), async {
        service.ready().await.unwrap();
        assert_eq!(reason(service.call(()).await), Some(Reason::NoTimeLeft));
    })
    .await;
    assert_eq!(start.elapsed(), ms(30));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_forgotten_when_readiness_comes() {
    let inner = Gated::default();
    let mut service = timeout(100).layer_over(inner.clone());
    service.ready().await.unwrap();
    inner.open.store(true, Relaxed);
    service.ready().await.unwrap();
    assert_eq!(service.call(()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_stale_note_of_a_waiter_long_gone_refuses_nobody() {
    let inner = Gated::default();
    let mut service = timeout(1000).layer_over(inner.clone());
    assert!(service.ready().now_or_never().is_none());
    advance(ms(60_000)).await;
    let start = Instant::now();
    service.ready().await.unwrap();
    assert_eq!(start.elapsed(), ms(1000));
}

#[tokio::test(start_paused = true)]
async fn another_task_that_waits_has_its_own_full_time() {
    let mut first = task::spawn(timeout(1000).layer_over(Gated::default()));
    assert_pending!(first.enter(|cx, mut service| service.poll_ready(cx)));
    advance(ms(900)).await;
    let mut second = task::spawn(first.into_inner());
    assert_pending!(second.enter(|cx, mut service| service.poll_ready(cx)));
    advance(ms(900)).await;
    assert_pending!(second.enter(|cx, mut service| service.poll_ready(cx)));
    advance(ms(101)).await;
    assert!(second.is_woken());
    assert_ready_ok!(second.enter(|cx, mut service| service.poll_ready(cx)));
}

#[tokio::test(start_paused = true)]
async fn a_clone_inherits_no_refusal() {
    let inner = Gated::default();
    let mut service = timeout(100).layer_over(inner.clone());
    service.ready().await.unwrap();
    let mut clone = service.clone();
    assert_eq!(clone.call(()).await, Ok(()));
    assert_eq!(reason(service.call(()).await), Some(Reason::NoTimeLeft));
}

#[tokio::test(start_paused = true)]
async fn a_gate_passes_readiness_on_as_it_is() {
    let handle = timeout(100);
    let mut service = task::spawn(handle.layer().gate().layer_for_test(Gated::default()));
    assert_pending!(service.enter(|cx, mut service| service.poll_ready(cx)));
    advance(ms(5000)).await;
    assert_pending!(service.enter(|cx, mut service| service.poll_ready(cx)));
}

#[tokio::test(start_paused = true)]
async fn a_guard_beneath_sees_that_time_ended_the_call() {
    for clock in [Clock::tokio(), Clock::fast()] {
        let seen = SeenInDrop::default();
        let handle = Timeout::with_clock("api", ms(100), clock).unwrap();
        let inner = Timeout::with_clock("inner", ms(500), clock).unwrap();
        let stack = ServiceBuilder::new()
            .layer(handle.layer())
            .layer(inner.layer());
        let mut service = stack.service(service_fn(async |()| {
            let _watch = DropWatch(seen.clone());
            pending::<Outcome<()>>().await
        }));
        assert_eq!(reason(service.call(()).await), Some(Reason::TimedOut));
        assert_eq!(*seen.0.lock().unwrap(), Some(Some(true)), "{clock:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_beneath_sees_that_a_caller_lost_interest_in_time() {
    let seen = SeenInDrop::default();
    let mut service = timeout(100).layer_over(service_fn(async |()| {
        let _watch = DropWatch(seen.clone());
        pending::<Outcome<()>>().await
    }));
    let mut call = task::spawn(service.call(()));
    assert_pending!(call.poll());
    drop(call);
    assert_eq!(*seen.0.lock().unwrap(), Some(Some(false)));
    assert!(current().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_panic_beneath_leaves_no_deadline_behind() {
    let handle = timeout(100);
    let mut in_poll = handle.layer_over(service_fn(async |()| -> Outcome<()> { panic!("poll") }));
    let call = AssertUnwindSafe(in_poll.call(())).catch_unwind().await;
    assert!(call.is_err());
    assert!(current().is_none());

    let mut in_call = handle.layer_over(service_fn(|()| -> std::future::Ready<Outcome<()>> {
        panic!("call")
    }));
    let call = std::panic::catch_unwind(AssertUnwindSafe(|| in_call.call(())));
    assert!(call.is_err());
    assert!(current().is_none());
}

#[test]
fn a_ready_answer_needs_no_timer_and_no_runtime() {
    let mut service = timeout(100).layer_over(service_fn(async |()| Outcome::Ok(1)));
    assert_eq!(service.call(()).now_or_never(), Some(Ok(1)));
}

#[tokio::test]
async fn an_inner_future_that_spends_the_whole_budget_is_cut_off_all_the_same() {
    let mut service = timeout(5).layer_over(service_fn(async |()| -> Outcome<()> {
        loop {
            tokio::task::consume_budget().await;
        }
    }));
    assert_eq!(reason(service.call(()).await), Some(Reason::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_polled_a_handful_of_times() {
    let polls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&polls);
    let mut service = timeout(60_000).layer_over(service_fn(move |()| {
        let polls = Arc::clone(&counter);
        poll_fn(move |_| {
            polls.fetch_add(1, Relaxed);
            Poll::<Outcome<()>>::Pending
        })
    }));
    assert_eq!(reason(service.call(()).await), Some(Reason::TimedOut));
    assert!(polls.load(Relaxed) <= 4, "{polls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_may_choose_its_own_timeout() {
    let handle = timeout(1000);
    let layer = handle.layer().per_request(|req: &u64| match req {
        0 => None,
        millis => Some(ms(*millis)),
    });
    let mut service = layer.layer_for_test(service_fn(|_| pending::<Outcome<()>>()));
    for (req, expected) in [(0, 1000), (20, 20), (3000, 3000)] {
        let start = Instant::now();
        assert_eq!(reason(service.call(req).await), Some(Reason::TimedOut));
        assert_eq!(start.elapsed(), ms(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn an_inner_timeout_is_measured_on_the_clock_of_the_outer_deadline() {
    let fast = Timeout::with_clock("fast", ms(1000), Clock::fast()).unwrap();
    let mut service = fast.layer_over(service_fn(async |()| {
        Outcome::Ok(current().unwrap().clock())
    }));
    assert_eq!(service.call(()).await, Ok(Clock::fast()));
    let outer = Deadline::at(Clock::tokio().now() + ms(10), Clock::tokio());
    let inside = scope(outer, async { service.call(()).await }).await;
    assert_eq!(inside, Ok(Clock::tokio()));
}

#[tokio::test(start_paused = true)]
async fn scopes_nest_by_the_earlier_deadline() {
    let left = |wait| async move {
        scope(Deadline::after(wait), async {
            current().unwrap().remaining()
        })
        .await
    };
    scope(Deadline::after(ms(50)), async {
        assert_eq!(left(ms(10)).await, ms(10));
        assert_eq!(left(ms(90)).await, ms(50));
        assert_eq!(current().unwrap().remaining(), ms(50));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn deadlines_of_two_tasks_on_one_thread_do_not_mix() {
    let watch = |wait| {
        scope(Deadline::after(wait), async move {
            for _ in 0..10 {
                let left = current().unwrap().remaining();
                tokio::task::yield_now().await;
                assert_eq!(left, wait);
            }
        })
    };
    join(watch(ms(10)), watch(ms(20))).await;
}

#[tokio::test(start_paused = true)]
async fn a_spawned_task_has_the_deadline_only_if_it_inherits_it() {
    let (bare, inheriting) = scope(Deadline::after(ms(10)), async {
        let bare = tokio::spawn(async { current() });
        let inheriting = tokio::spawn(inherit(async { current() }));
        (bare.await.unwrap(), inheriting.await.unwrap())
    })
    .await;
    assert!(bare.is_none());
    assert_eq!(inheriting.unwrap().remaining(), ms(10));
}

#[test]
fn the_current_deadline_is_seen_in_the_drop_of_a_scope() {
    let seen = SeenInDrop::default();
    let watch = DropWatch(seen.clone());
    drop(scope(Deadline::after(ms(1000)), async move {
        let _watch = watch;
    }));
    assert_eq!(*seen.0.lock().unwrap(), Some(Some(false)));
}

#[tokio::test(start_paused = true)]
async fn over_a_concurrency_limit_of_one_a_timed_out_call_gives_its_permit_back() {
    let slow = service_fn(async |wait: u64| {
        sleep(ms(wait)).await;
        Ok::<_, BoxError>(())
    });
    let mut service = ServiceBuilder::new()
        .layer(timeout(100).layer())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(slow);
    let (mut one, mut two) = (service.clone(), service.clone());
    let hanging = tokio::spawn(async move { one.ready().await.unwrap().call(10_000).await });
    tokio::task::yield_now().await;
    advance(ms(10)).await;
    // Waits for the permit of the other, which comes back when that one is cut off.
    two.ready().await.unwrap().call(1).await.unwrap();
    assert!(hanging.await.unwrap().is_err());
    service.ready().await.unwrap().call(1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_behind_a_buffer_survives_a_service_that_is_never_ready() {
    let never = service_fn(async |()| Ok::<_, BoxError>(()));
    let never = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(0))
        .service(never);
    let mut service = ServiceBuilder::new()
        .layer(BufferLayer::new(4))
        .layer(timeout(100).layer())
        .service(never);
    for _ in 0..3 {
        let error = service.ready().await.unwrap().call(()).await.unwrap_err();
        let rejected = error.downcast_ref::<Rejected>().map(Rejected::reason);
        assert_eq!(rejected, Some(Reason::NoTimeLeft), "{error}");
    }
}

#[test]
fn a_timeout_of_nothing_is_refused_when_built() {
    let error = Timeout::new("api", Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "`after` is 0ns: must be above zero");
    assert!(Timeout::new("api", Duration::MAX).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_centuries_is_none() {
    let handle = Timeout::new("api", Duration::MAX).unwrap();
    let mut service = handle.layer_over(service_fn(|()| pending::<Outcome<()>>()));
    let mut call = task::spawn(service.call(()));
    assert_pending!(call.poll());
    advance(Duration::from_secs(86_400 * 365)).await;
    assert_pending!(call.poll());
}

impl Timeout {
    fn layer_over<S: Clone>(&self, inner: S) -> TimeoutService<S> {
        tower::Layer::layer(&self.layer(), inner)
    }
}

impl<P: Clone> TimeoutLayer<P> {
    fn layer_for_test<S: Clone>(&self, inner: S) -> TimeoutService<S, P> {
        tower::Layer::layer(self, inner)
    }
}
