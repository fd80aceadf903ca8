//! What is retried.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_transient_failure_is_retried_until_it_succeeds() {
    let (retry, script) = (retry(), Script::new([DOWN, DOWN, Ok(3)]));
    assert_eq!(run(&retry, &script).await, Ok(3));
    assert_eq!(script.times(), [0, 100, 200]);
    assert_eq!(script.attempts(), [1, 2, 3]);
    assert_eq!((retry.snapshot().calls, retry.snapshot().retries), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn the_last_failure_is_returned_as_it_is() {
    let retry = builder().max_attempts(2).build().unwrap();
    let script = Script::new([Err(Error::Service("first")), Err(Error::Service("second"))]);
    assert_eq!(run(&retry, &script).await, Err(Error::Service("second")));
    assert_eq!(retry.snapshot().given_up.of(GaveUp::Attempts), 1);
}

#[tokio::test(start_paused = true)]
async fn one_attempt_is_one_attempt_and_copies_no_request() {
    let retry = builder().max_attempts(1).build().unwrap();
    let script = Script::new([DOWN]);
    let layer = retry
        .layer()
        .replay(|_: &()| -> Option<()> { panic!("asked for a copy") });
    assert_eq!(layer.layer(script.clone()).oneshot(()).await, DOWN);
    assert_eq!(script.times(), [0]);
}

#[tokio::test(start_paused = true)]
async fn permanent_and_ignored_results_are_returned_at_once() {
    let (retry, script) = (retry(), Script::new([DOWN]));
    for verdict in [Verdict::Permanent, Verdict::Ignored] {
        let layer = retry
            .layer()
            .replay(Always)
            .classify(classify::errors(move |_: &&str| verdict));
        assert_eq!(layer.layer(script.clone()).oneshot(()).await, DOWN);
    }
    assert_eq!(script.times(), [0, 0]);
    assert_eq!(retry.snapshot().given_up.of(GaveUp::Permanent), 1);
    assert_eq!(retry.snapshot().calls, 2);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_a_failure_is_retried_too() {
    let (retry, script) = (retry(), Script::new([Ok(503), Ok(200)]));
    let verdicts = classify::responses(|status: &u32| match status {
        503 => Verdict::transient(),
        _ => Verdict::Success,
    });
    let layer = retry.layer().replay(Always).classify(verdicts);
    assert_eq!(layer.layer(script).oneshot(()).await, Ok(200));
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    idempotent: bool,
    attempt: u32,
}

impl Replayable for Request {
    fn replay(&self) -> Option<Self> {
        self.idempotent.then(|| self.clone())
    }
    fn set_attempt(&mut self, attempt: u32) {
        self.attempt = attempt;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_idempotent_is_never_sent_twice() {
    let (retry, script) = (retry(), Script::new([DOWN]));
    let req = Request {
        idempotent: false,
        attempt: 1,
    };
    assert_eq!(retry.layer().layer(script.clone()).oneshot(req).await, DOWN);
    assert_eq!(script.times(), [0]);
    assert_eq!(retry.snapshot().given_up.of(GaveUp::NotReplayable), 1);
}

#[tokio::test(start_paused = true)]
async fn the_request_knows_which_attempt_it_is() {
    let (mut service, mut handle) = mock::spawn_layer::<Request, (), _>(retry().layer());
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(Request {
        idempotent: true,
        attempt: 1,
    }));
    for attempt in 1..=3 {
        assert_pending!(call.poll());
        let sent = Request {
            idempotent: true,
            attempt,
        };
        assert_request_eq!(handle, sent).send_error("down");
        if attempt < 3 {
            assert_pending!(call.poll());
            advance(ms(101)).await;
        }
    }
    assert_ready_err!(call.poll());
}

#[tokio::test(start_paused = true)]
async fn a_closure_may_decide_what_is_sent_again() {
    let (retry, script) = (retry(), Script::new([DOWN, Ok(1)]));
    let layer = retry
        .layer()
        .replay(|req: &u32| (*req > 10).then_some(*req));
    assert_eq!(layer.clone().layer(script.clone()).oneshot(1).await, DOWN);
    let script = Script::new([DOWN, Ok(1)]);
    assert_eq!(layer.layer(script).oneshot(11).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_backoff_that_ends_ends_the_call() {
    let retry = builder()
        .max_attempts(9)
        .backoff(Backoff::custom(|| [ms(7), ms(20)]))
        .build()
        .unwrap();
    let script = Script::new([DOWN]);
    assert_eq!(run(&retry, &script).await, DOWN);
    assert_eq!(script.times(), [0, 7, 27]);
    assert_eq!(retry.snapshot().given_up.of(GaveUp::BackoffEnded), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_wait_the_next_attempt_follows_at_once() {
    let retry = builder()
        .backoff(Backoff::fixed(Duration::ZERO))
        .build()
        .unwrap();
    let script = Script::new([DOWN, DOWN, Ok(1)]);
    let service = retry.layer().replay(Always).layer(script);
    assert_eq!(service.oneshot(()).now_or_never(), Some(Ok(1)));
}
