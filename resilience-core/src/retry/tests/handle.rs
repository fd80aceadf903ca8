//! The handle: configuration, counters, events.

use super::*;
use crate::telemetry::Source;

#[test]
fn a_retry_that_makes_no_sense_is_refused() {
    let error = builder().max_attempts(0).build().unwrap_err();
    assert_eq!(error.to_string(), "`max_attempts` is 0: must be at least 1");
    let backoff = Backoff::full_jitter(ms(10), ms(5));
    assert_eq!(
        builder().backoff(backoff).build().unwrap_err().field(),
        "backoff"
    );
}

#[test]
fn reasons_are_counted_where_they_belong() {
    for (index, why) in GaveUp::ALL.into_iter().enumerate() {
        assert_eq!(why as usize, index, "{why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_and_a_surrender_each_leave_an_event() {
    let listening = crate::test_log::listen();
    let retry = builder().max_attempts(2).build().unwrap();
    assert_eq!(run(&retry, &Script::new([DOWN])).await, DOWN);
    let lines = listening.events();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("retrying pattern=\"retry\" name=\"api\" attempt=1 wait=100ms"),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("giving up pattern=\"retry\" name=\"api\" attempt=2 reason=\"attempts\""),
        "{lines:?}"
    );
}

#[test]
fn futures_are_as_sendable_as_what_they_hold() {
    fn is_send<T: Send>(_: &T) {}
    let mut service = retry().layer().replay(Always).layer(Script::new([Ok(1)]));
    is_send(&Service::<()>::call(&mut service, ()));
    // And what is bound to one thread may be retried too.
    let local = std::rc::Rc::new(1);
    let here = service_fn(move |()| std::future::ready(Outcome::Ok(*local)));
    let service = retry().layer().replay(Always).layer(here);
    assert_eq!(service.oneshot(()).now_or_never(), Some(Ok(1)));
}

#[tokio::test(start_paused = true)]
async fn the_metrics_are_the_counters_of_the_handle() {
    let retry = builder().budget(budget(0.0, 5)).build().unwrap();
    assert_eq!(run(&retry, &Script::new([DOWN])).await, DOWN);
    assert_eq!(run(&retry, &Script::new([Ok(1)])).await, Ok(1));
    let expected = [
        "resilience.retry.budget  3",
        "resilience.retry.calls  2",
        "resilience.retry.given_up attempts 1",
        "resilience.retry.retries  2",
    ];
    assert_eq!(readings(&retry), expected);

    let boundless = builder().budget(RetryBudget::unlimited()).build().unwrap();
    assert_eq!(readings(&boundless), [""; 0], "no balance of 2^64");
}

/// What is not zero, in order.
fn readings(retry: &Retry) -> Vec<String> {
    let mut lines = Vec::new();
    Source::read(&*retry.shared, &mut |reading| {
        if reading.value > 0 {
            let (name, attribute) = (reading.metric.name, reading.attribute);
            lines.push(format!("{name} {attribute} {}", reading.value));
        }
    });
    lines.sort();
    lines
}
