//! Readiness, cancellation, panics, clones, polls.

use super::*;

#[tokio::test(start_paused = true)]
async fn every_attempt_is_made_by_a_service_that_was_polled_ready() {
    let (mut service, mut handle) =
        mock::spawn_layer::<u32, u32, _>(retry().layer().replay(Always));
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(7));
    assert_pending!(call.poll());
    assert_request_eq!(handle, 7).send_error("down");
    assert_pending!(call.poll());
    advance(ms(101)).await;
    assert_pending!(call.poll());
    assert_pending!(
        task::spawn(handle.next_request()).poll(),
        "not sent before it is ready"
    );
    handle.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    assert_request_eq!(handle, 7).send_response(8);
    assert_eq!(assert_ready_ok!(call.poll()), 8);
}

/// Fails first attempts, in its own time.
async fn fails_first(_: u32) -> Result<u32, BoxError> {
    let attempt = attempt();
    sleep(ms(10)).await;
    if attempt == 1 {
        Err("down".into())
    } else {
        Ok(attempt)
    }
}

#[tokio::test(start_paused = true)]
async fn over_a_concurrency_limit_of_one_it_never_panics_nor_hangs() {
    let stack = ServiceBuilder::new().layer(retry().layer().replay(Always));
    let service = stack
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(fails_first));
    let calls = (0..20).map(|n| service.clone().oneshot(n));
    for outcome in join_all(calls).await {
        assert_eq!(outcome.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn over_a_buffer_it_never_panics_nor_hangs() {
    let stack = ServiceBuilder::new()
        .layer(retry().layer().replay(Always))
        .layer(BufferLayer::new(1));
    let count = Arc::new(AtomicU32::new(0));
    let every_other = service_fn(move |_: u32| {
        let n = count.fetch_add(1, Relaxed);
        async move {
            if n.is_multiple_of(2) {
                Err(BoxError::from("down"))
            } else {
                Ok(n)
            }
        }
    });
    let service = stack
        .layer(ConcurrencyLimitLayer::new(1))
        .service(every_other);
    for n in 0..20 {
        service.clone().oneshot(n).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_breaks_before_a_later_attempt_says_why_and_the_budget_is_refunded() {
    let retry = builder().budget(budget(0.0, 5)).build().unwrap();
    let (mut service, mut handle) = mock::spawn_layer::<u32, u32, _>(retry.layer().replay(Always));
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(1));
    assert_pending!(call.poll());
    assert_request_eq!(handle, 1).send_error("down");
    assert_pending!(call.poll());
    assert_eq!(retry.budget().balance(), 4);
    handle.send_error("gone");
    advance(ms(101)).await;
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "gone");
    assert_eq!((retry.budget().balance(), retry.snapshot().retries), (5, 0));
}

/// A response that says when it is dropped, as a connection would be given back.
#[derive(Clone, Debug, Default)]
struct Connection(Arc<AtomicBool>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn the_failed_response_is_dropped_before_the_sleep() {
    let released = Arc::new(AtomicBool::new(false));
    let layer = retry()
        .layer()
        .replay(Always)
        .classify(classify::responses(|_: &Connection| Verdict::transient()));
    let flag = Arc::clone(&released);
    let mut service = layer.layer(service_fn(move |()| {
        std::future::ready(Outcome::Ok(Connection(Arc::clone(&flag))))
    }));
    let mut call = task::spawn(service.call(()));
    assert_pending!(call.poll());
    assert!(released.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn the_permit_of_the_failed_attempt_is_free_while_the_call_sleeps() {
    let stack = ServiceBuilder::new().layer(retry().layer().replay(Always));
    let mut service = stack
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(async |fail: bool| match fail {
            true => Err(BoxError::from("down")),
            false => Ok(()),
        }));
    let mut sleeping = task::spawn(service.ready().await.unwrap().call(true));
    assert_pending!(sleeping.poll());
    service
        .ready()
        .now_or_never()
        .unwrap()
        .unwrap()
        .call(false)
        .now_or_never()
        .unwrap()
        .unwrap();
}

/// A service with one permit that takes 10 ms to fail, and the retry around it.
fn one_slow_failure_at_a_time(
    retry: &Retry,
) -> impl Service<(), Response = (), Error = BoxError> + Clone {
    let stack = ServiceBuilder::new().layer(retry.layer().replay(Always));
    stack
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(async |()| {
            sleep(ms(10)).await;
            Err::<(), BoxError>("down".into())
        }))
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_at_any_await_holds_nothing_and_gets_back_what_was_not_used() {
    let in_the_first_attempt = (vec![], 5, 5, 0);
    let in_the_sleep = (vec![11], 4, 5, 0);
    let in_the_second_attempt = (vec![11, 101], 4, 4, 1);
    for (waits, before, after, retries) in
        [in_the_first_attempt, in_the_sleep, in_the_second_attempt]
    {
        let retry = builder().budget(budget(0.0, 5)).build().unwrap();
        let mut service = one_slow_failure_at_a_time(&retry);
        let mut call = task::spawn(service.clone().oneshot(()));
        assert_pending!(call.poll());
        for wait in waits {
            advance(ms(wait)).await;
            assert_pending!(call.poll());
        }
        assert_eq!(
            (retry.budget().balance(), retry.snapshot().retries),
            (before, retries)
        );
        drop(call);
        assert_eq!(retry.budget().balance(), after);
        assert!(
            service.ready().now_or_never().is_some(),
            "the permit is back"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_while_it_waits_for_readiness_holds_nothing() {
    let retry = builder().budget(budget(0.0, 5)).build().unwrap();
    let mut service = one_slow_failure_at_a_time(&retry);
    let mut call = task::spawn(service.clone().oneshot(()));
    assert_pending!(call.poll());
    advance(ms(11)).await;
    assert_pending!(call.poll());
    let mut holder = service.clone();
    holder.ready().now_or_never().unwrap().unwrap();
    advance(ms(101)).await;
    assert_pending!(call.poll());
    assert_eq!((retry.budget().balance(), retry.snapshot().retries), (4, 0));
    drop(call);
    assert_eq!(retry.budget().balance(), 5);
    drop(holder);
    assert!(service.ready().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_attempt_leaves_nothing_behind() {
    let retry = retry();
    let stack = ServiceBuilder::new()
        .layer(retry.layer().replay(Always))
        .layer(ConcurrencyLimitLayer::new(1));
    let service = stack.service(service_fn(async |panics: bool| -> Result<u32, BoxError> {
        match (panics, attempt()) {
            (true, 2) => panic!("second attempt"),
            (_, 1) => Err("down".into()),
            (_, attempt) => Ok(attempt),
        }
    }));
    let panicked = AssertUnwindSafe(service.clone().oneshot(true))
        .catch_unwind()
        .await;
    assert!(panicked.is_err());
    assert_eq!(attempt(), 1);
    assert_eq!(service.oneshot(false).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_call_is_polled_a_handful_of_times() {
    let retry = builder()
        .backoff(Backoff::fixed(ms(600_000)))
        .max_attempts(2)
        .build()
        .unwrap();
    let script = Script::new([DOWN]);
    let mut call = Box::pin(retry.layer().replay(Always).layer(script).oneshot(()));
    let mut polls = 0;
    let counted = std::future::poll_fn(|cx| {
        polls += 1;
        call.as_mut().poll(cx)
    });
    assert_eq!(counted.await, DOWN);
    assert!(polls <= 4, "{polls}");
}

/// Counts its clones.
struct Costly(Arc<AtomicU32>);

impl Clone for Costly {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Service<bool> for Costly {
    type Response = ();
    type Error = Error<&'static str>;
    type Future = std::future::Ready<Outcome<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, fail: bool) -> Self::Future {
        std::future::ready(if fail {
            Err(Error::Service("down"))
        } else {
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn the_stack_beneath_is_cloned_for_retried_calls_only() {
    let clones = Arc::new(AtomicU32::new(0));
    let mut service = retry()
        .layer()
        .replay(Always)
        .layer(Costly(Arc::clone(&clones)));
    assert_eq!(clones.swap(0, Relaxed), 1, "the template");
    for _ in 0..100 {
        service.ready().await.unwrap().call(false).await.unwrap();
    }
    assert_eq!(clones.load(Relaxed), 0);
    service.ready().await.unwrap().call(true).await.unwrap_err();
    assert_eq!(clones.load(Relaxed), 1, "for both retries");
}

#[tokio::test(start_paused = true)]
async fn clones_and_layers_share_one_budget() {
    let retry = builder().budget(budget(0.0, 3)).build().unwrap();
    let script = Script::new([DOWN]);
    for _ in 0..10 {
        let service = retry.clone().layer().replay(Always).layer(script.clone());
        assert_eq!(service.clone().oneshot(()).await, DOWN);
    }
    assert_eq!(script.times().len(), 10 + 3);
    assert_eq!(retry.snapshot().given_up.of(GaveUp::Budget), 9);
}

#[tokio::test(start_paused = true)]
async fn two_handles_may_share_a_budget() {
    let shared = budget(0.1, 1);
    let [one, other] = [(); 2].map(|()| builder().budget(shared.clone()).build().unwrap());
    let down = Script::new([DOWN]);
    assert_eq!(run(&one, &down).await, DOWN);
    assert_eq!((shared.balance(), one.snapshot().retries), (0, 1));
    // What passes through one pays for the other.
    let fine = Script::new([Ok(1)]);
    for _ in 0..10 {
        assert_eq!(run(&other, &fine).await, Ok(1));
    }
    assert_eq!(shared.balance(), 1);
    assert_eq!((one.snapshot().calls, other.snapshot().calls), (1, 10));
}

#[tokio::test(start_paused = true)]
async fn a_retry_within_a_retry_counts_its_own_attempts() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let [outer, inner] = [(); 2].map(|()| builder().max_attempts(2).build().unwrap());
    let service = inner
        .layer()
        .replay(Always)
        .layer(Script::new([DOWN, DOWN, DOWN, Ok(1)]));
    let middle = service_fn(|()| {
        seen.lock().unwrap().push(attempt());
        service.clone().oneshot(())
    });
    let script = service.get_ref().clone();
    assert_eq!(
        outer.layer().replay(Always).layer(middle).oneshot(()).await,
        Ok(1)
    );
    assert_eq!(*seen.lock().unwrap(), [1, 2]);
    assert_eq!(script.attempts(), [1, 2, 1, 2]);
    assert_eq!(attempt(), 1);
}
