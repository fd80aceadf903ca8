//! Rejections from layers below.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_open_circuit_beneath_burns_no_budget() {
    let retry = builder().budget(budget(1.0, 5)).build().unwrap();
    assert!(retry.budget().withdraw());
    let script = Script::new([Err(rejected(Some(ms(1))))]);
    for _ in 0..100 {
        assert_eq!(run(&retry, &script).await, Err(rejected(Some(ms(1)))));
    }
    assert_eq!(script.times().len(), 100, "a rejection is not retried");
    // Nothing spent, and nothing earned by calls that the dependency has not seen.
    assert_eq!(retry.budget().balance(), 4);
    assert_eq!(
        (
            retry.snapshot().calls,
            retry.snapshot().given_up.of(GaveUp::Rejected)
        ),
        (0, 100)
    );
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_waited_out_when_asked_for_and_costs_no_budget() {
    let retry = builder()
        .retry_rejections(true)
        .budget(budget(0.0, 1))
        .build()
        .unwrap();
    let script = Script::new([Err(rejected(Some(ms(500)))), DOWN, Ok(1)]);
    assert_eq!(run(&retry, &script).await, Ok(1));
    assert_eq!(script.times(), [0, 500, 600]);
    assert_eq!(retry.budget().balance(), 0, "one retry after a failure");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_that_does_not_say_when_or_says_too_late_is_returned() {
    let retry = builder().retry_rejections(true).build().unwrap();
    for after in [None, Some(ms(31_000)), Some(ms(800))] {
        let script = Script::new([Err(rejected(after))]);
        let call = run(&retry, &script);
        let outcome = deadline::scope(Deadline::after(ms(800)), call).await;
        assert_eq!(outcome, Err(rejected(after)));
        assert_eq!(script.times(), [0]);
    }
    let counts = [GaveUp::Rejected, GaveUp::RetryAfterTooLong, GaveUp::NoTime];
    assert_eq!(
        counts.map(|why| retry.snapshot().given_up.of(why)),
        [1, 1, 1]
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_paid_for_an_attempt_that_was_rejected_comes_back() {
    let retry = builder().budget(budget(0.0, 3)).build().unwrap();
    let script = Script::new([DOWN, Err(rejected(None))]);
    assert_eq!(run(&retry, &script).await, Err(rejected(None)));
    assert_eq!(retry.budget().balance(), 3);
}
