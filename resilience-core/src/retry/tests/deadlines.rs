//! Retry-after and deadlines.

use super::*;

fn asks_for(wait: Duration) -> impl classify::Classify<u32, Error<&'static str>> + Clone {
    classify::errors(move |_: &&str| Verdict::retry_after(wait))
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_the_longer_one_of_backoff_and_retry_after() {
    for (asked, second) in [(30, 100), (2000, 2000)] {
        let script = Script::new([DOWN, Ok(1)]);
        let layer = retry().layer().replay(Always).classify(asks_for(ms(asked)));
        assert_eq!(layer.layer(script.clone()).oneshot(()).await, Ok(1));
        assert_eq!(script.times(), [0, second]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_beyond_the_cap_is_neither_waited_for_nor_ignored() {
    let (retry, script) = (retry(), Script::new([DOWN, Ok(1)]));
    let layer = retry.layer().replay(Always).classify(asks_for(ms(30_001)));
    assert_eq!(layer.layer(script.clone()).oneshot(()).await, DOWN);
    assert_eq!(script.times(), [0]);
    assert_eq!(script.start.elapsed(), Duration::ZERO);
    assert_eq!(retry.snapshot().given_up.of(GaveUp::RetryAfterTooLong), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_cannot_finish_in_time_is_not_started() {
    // 100 ms of waiting and 5 ms for the attempt at the least.
    for (left, attempts) in [(104, 1), (105, 2), (204, 2), (205, 3)] {
        let (retry, script) = (retry(), Script::new([DOWN]));
        let whole = Timeout::new("whole", ms(left)).unwrap();
        let inner = retry.layer().replay(Always).layer(script.clone());
        assert_eq!(whole.layer().layer(inner).oneshot(()).await, DOWN);
        assert_eq!(script.times().len(), attempts, "{left} ms");
        assert_eq!(
            retry.snapshot().given_up.of(GaveUp::NoTime),
            u64::from(attempts < 3)
        );
        let slept = ms(100 * (attempts as u64 - 1));
        assert_eq!(script.start.elapsed(), slept, "gives up at once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_is_capped_by_the_deadline() {
    let script = Script::new([DOWN, Ok(1)]);
    let layer = retry().layer().replay(Always).classify(asks_for(ms(2000)));
    let call = layer.layer(script.clone()).oneshot(());
    assert_eq!(deadline::scope(Deadline::after(ms(1000)), call).await, DOWN);
    assert_eq!(script.start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_attempt_is_a_failure_like_any_other() {
    let (retry, start) = (retry(), Instant::now());
    let each = Timeout::new("attempt", ms(50)).unwrap();
    let stack = ServiceBuilder::new()
        .layer(retry.layer().replay(Always))
        .layer(each.layer());
    let service = stack.service(service_fn(async |()| match attempt() {
        3 => Outcome::Ok(start.elapsed()),
        _ => pending().await,
    }));
    assert_eq!(service.oneshot(()).await, Ok(ms(300)));
    assert_eq!(
        (
            each.snapshot().timed_out,
            retry.snapshot().calls,
            retry.snapshot().retries
        ),
        (2, 1, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_the_readiness_of_a_later_attempt_ends_with_the_deadline() {
    let whole = Timeout::new("whole", ms(1000)).unwrap();
    let layers = tower::layer::layer_fn(move |inner| {
        whole
            .layer()
            .layer(retry().layer().replay(Always).layer(inner))
    });
    let (mut service, mut handle) = mock::spawn_layer::<u32, u32, _>(layers);
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(1));
    assert_pending!(call.poll());
    assert_request_eq!(handle, 1).send_error("down");
    assert_pending!(call.poll());
    advance(ms(101)).await;
    assert_pending!(call.poll(), "not ready");
    advance(ms(900)).await;
    let error = assert_ready_err!(call.poll());
    assert_eq!(error.to_string(), "deadline `whole`: timed out");
    assert_pending!(task::spawn(handle.next_request()).poll(), "never sent");
}
