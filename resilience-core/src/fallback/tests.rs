use std::{
    future::Future,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    task::{Context, Poll},
};

use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_test::{assert_request_eq, mock};

use super::*;
use crate::{
    Error, Pattern, Reason, Rejected, Verdict, classify,
    error::wrap::{WrapErrorLayer, WrapErrorService},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Divides by what it is asked.
fn divider()
-> WrapErrorService<impl Service<u32, Response = u32, Error = &'static str, Future: Send> + Clone> {
    WrapErrorLayer::new().layer(service_fn(async |n: u32| {
        100_u32.checked_div(n).ok_or("by zero")
    }))
}

#[tokio::test]
async fn an_error_is_answered_with_the_value_and_a_response_is_left_alone() {
    let fallback = Fallback::value("f", 7);
    let service = fallback.layer().layer(divider());
    assert_eq!(service.clone().oneshot(10).await, Ok(10));
    assert_eq!(fallback.snapshot().used, 0);
    assert_eq!(service.oneshot(0).await, Ok(7));
    assert_eq!(fallback.snapshot().used, 1);
}

#[tokio::test]
async fn a_rejection_from_below_falls_back_too() {
    let bulkhead = crate::bulkhead::Bulkhead::builder("db")
        .max_concurrent(1)
        .build()
        .unwrap();
    let _taken = bulkhead.try_acquire().unwrap();
    let service = Fallback::value("f", 7)
        .layer()
        .layer(bulkhead.layer().layer(divider()));
    assert_eq!(service.oneshot(10).await, Ok(7));
}

#[tokio::test]
async fn a_function_of_the_error_may_answer_or_fail_in_its_turn() {
    let fallback = Fallback::by("f", |error| match error {
        Error::Service("by zero") => Ok(0),
        other => Err(other),
    });
    let broken = WrapErrorLayer::new().layer(service_fn(async |_: u32| Err::<u32, _>("broken")));
    assert_eq!(fallback.layer().layer(divider()).oneshot(0).await, Ok(0));
    assert_eq!(
        fallback.layer().layer(broken).oneshot(0).await,
        Err(Error::Service("broken"))
    );
}

#[tokio::test(start_paused = true)]
async fn an_async_function_is_awaited() {
    let fallback = Fallback::by_async("f", async |_: Error<&str>| {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        Ok(3)
    });
    let start = tokio::time::Instant::now();
    assert_eq!(fallback.layer().layer(divider()).oneshot(0).await, Ok(3));
    assert_eq!(start.elapsed().as_secs(), 1);
}

#[tokio::test]
async fn only_the_errors_asked_for_fall_back() {
    let fallback = Fallback::value("f", 7).when(|error: &Error<&str>| error.rejected().is_some());
    assert_eq!(
        fallback.layer().layer(divider()).oneshot(0).await,
        Err(Error::Service("by zero"))
    );
    let full =
        || Err::<u32, Error<&str>>(Rejected::new(Pattern::Bulkhead, Reason::Full, "b").into());
    let rejecting = service_fn(move |_: u32| std::future::ready(full()));
    assert_eq!(fallback.layer().layer(rejecting).oneshot(0).await, Ok(7));
    assert_eq!(fallback.snapshot().used, 1);
}

#[tokio::test]
async fn a_response_that_reports_failure_falls_back_where_a_classifier_says_so() {
    let service =
        || WrapErrorLayer::new().layer(service_fn(async |status: u16| Ok::<_, &str>(status)));
    let classifier = classify::responses(|status: &u16| match status {
        500.. => Verdict::transient(),
        400.. => Verdict::Ignored,
        _ => Verdict::Success,
    });
    let value = Fallback::value("f", 200).classify(classifier);
    assert_eq!(value.layer().layer(service()).oneshot(503).await, Ok(200));
    assert_eq!(
        value.layer().layer(service()).oneshot(404).await,
        Ok(404),
        "the caller's own fault"
    );
    let by = Fallback::by("f", |_: Error<&str>| Ok(1)).classify(classifier);
    assert_eq!(
        by.layer().layer(service()).oneshot(503).await,
        Ok(503),
        "there is no error to look at"
    );
    assert_eq!(by.snapshot().used, 0);
    let of_all = |failed: Result<u16, Error<&'static str>>| failed.map(|status| status + 1);
    let by_result = Fallback::by_result("f", of_all).classify(classifier);
    assert_eq!(
        by_result.layer().layer(service()).oneshot(503).await,
        Ok(504)
    );
}

#[tokio::test]
async fn a_rejection_falls_back_whatever_the_classifier_makes_of_it() {
    let full =
        || Err::<u32, Error<&str>>(Rejected::new(Pattern::Bulkhead, Reason::Full, "b").into());
    let rejecting = service_fn(move |_: u32| std::future::ready(full()));
    let fallback = Fallback::value("f", 7).classify(classify::Standard);
    assert_eq!(fallback.layer().layer(rejecting).oneshot(0).await, Ok(7));
}

#[tokio::test]
async fn the_other_service_gets_its_own_request_and_only_when_it_is_needed() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    /// Not `Clone`.
    struct Query(u32);
    let primary = WrapErrorLayer::new().layer(service_fn(async |Query(n)| {
        100_u32.checked_div(n).ok_or("by zero")
    }));
    let replica = WrapErrorLayer::new().layer(service_fn(async |key: String| {
        CALLS.fetch_add(1, Relaxed);
        Ok::<u32, &str>(key.len() as u32)
    }));
    let request = |query: &Query| (query.0 != 5).then(|| "x".repeat(query.0 as usize + 3));
    let fallback = Fallback::service("f", replica, request);
    assert_eq!(
        fallback.layer().layer(primary).oneshot(Query(10)).await,
        Ok(10)
    );
    assert_eq!(CALLS.load(Relaxed), 0);
    assert_eq!(
        fallback.layer().layer(primary).oneshot(Query(0)).await,
        Ok(3)
    );
    assert_eq!(CALLS.load(Relaxed), 1);
    let broken = WrapErrorLayer::new().layer(service_fn(async |_: Query| Err::<u32, _>("broken")));
    let without = fallback.layer().layer(broken).oneshot(Query(5)).await;
    assert_eq!(
        without,
        Err(Error::Service("broken")),
        "this request has no fallback"
    );
    assert_eq!(fallback.snapshot().used, 1);
}

#[tokio::test]
async fn the_other_service_is_polled_ready_before_it_is_called_and_not_before_it_is_needed() {
    let work = service_fn(async |n: u32| Ok::<u32, BoxError>(n));
    let other = ConcurrencyLimit::new(work, 1);
    let failing = service_fn(async |_: u32| Err::<u32, BoxError>("down".into()));
    let mut service = Fallback::service("f", other.clone(), |n: &u32| Some(*n))
        .layer()
        .layer(failing);
    let ready = service.ready().await.unwrap();
    // The fallback's one place is taken by another caller: nothing was reserved.
    let mut taken = task::spawn(other);
    assert_ready_ok!(taken.enter(|cx, mut other| Service::<u32>::poll_ready(&mut *other, cx)));
    let mut call = task::spawn(ready.call(4));
    assert_pending!(call.poll());
    drop(taken);
    assert!(call.is_woken());
    assert_eq!(assert_ready_ok!(call.poll()), 4);
}

#[tokio::test]
async fn a_service_that_fails_its_readiness_falls_back_on_the_next_call() {
    let fallback = Fallback::by("f", |error: BoxError| match error.to_string().as_str() {
        "closed" => Ok("instead"),
        _ => Err(error),
    });
    let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(fallback.layer());
    handle.send_error("closed");
    assert_ready_ok!(service.poll_ready());
    let mut clone = service.clone();
    assert_eq!(
        assert_ready_ok!(task::spawn(service.call("hello")).poll()),
        "instead"
    );
    assert_eq!(fallback.snapshot().used, 1);
    // A clone has not failed: it asks for itself.
    handle.allow(1);
    assert_ready_ok!(clone.poll_ready());
    let mut call = task::spawn(clone.call("again"));
    assert_pending!(call.poll());
    assert_request_eq!(handle, "again").send_response("fresh");
    assert_eq!(assert_ready_ok!(call.poll()), "fresh");
}

#[tokio::test]
async fn a_failed_readiness_that_does_not_call_for_the_fallback_fails_the_call() {
    let fallback = Fallback::value("f", "instead").when(|_: &BoxError| false);
    let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(fallback.layer());
    handle.send_error("closed");
    assert_ready_ok!(service.poll_ready());
    let error = assert_ready_err!(task::spawn(service.call("hello")).poll());
    assert_eq!(error.to_string(), "closed");
}

#[tokio::test]
async fn a_passing_call_clones_neither_answer_nor_request_nor_error() {
    struct Never;
    impl Clone for Never {
        fn clone(&self) -> Self {
            panic!("cloned")
        }
    }
    let work = service_fn(async |n: Never| Ok::<Never, BoxError>(n));
    let service = Fallback::value("f", Never).layer().layer(work);
    assert!(service.oneshot(Never).await.is_ok());
}

#[tokio::test]
async fn dropping_the_call_drops_the_fallback_that_runs() {
    struct Flag<'a>(&'a AtomicU32);
    impl Drop for Flag<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let dropped = AtomicU32::new(0);
    let flag = &dropped;
    let fallback = Fallback::by_async("f", move |_: Error<&str>| {
        let flag = Flag(flag);
        async move {
            let _flag = flag;
            std::future::pending().await
        }
    });
    let mut call = task::spawn(fallback.layer().layer(divider()).oneshot(0));
    assert_pending!(call.poll());
    assert_eq!(dropped.load(Relaxed), 0);
    drop(call);
    assert_eq!(dropped.load(Relaxed), 1);
}

#[test]
fn an_answer_of_ones_own_needs_no_threads() {
    struct Echo;
    impl FallbackResponse<u32, u32, Error<&'static str>> for Echo {
        type Note = u32;
        type Future = std::pin::Pin<Box<dyn Future<Output = Result<u32, Error<&'static str>>>>>;
        fn note(&self, request: &u32) -> u32 {
            *request
        }
        fn answer(
            &self,
            _: Result<u32, Error<&'static str>>,
            note: u32,
        ) -> Result<Self::Future, Result<u32, Error<&'static str>>> {
            let kept = std::rc::Rc::new(note);
            Ok(Box::pin(async move { Ok(*kept) }))
        }
    }
    let mut service = Fallback::with("f", Echo).layer().layer(divider());
    let ready = service.poll_ready(&mut Context::from_waker(std::task::Waker::noop()));
    assert!(matches!(ready, Poll::Ready(Ok(()))));
    assert_eq!(assert_ready_ok!(task::spawn(service.call(0)).poll()), 0);
}

#[test]
fn a_use_of_the_fallback_leaves_an_event() {
    let events = crate::test_log::events_of(|| {
        let mut call = task::spawn(
            Fallback::value("cache", 7)
                .layer()
                .layer(divider())
                .oneshot(0),
        );
        assert_ready_ok!(call.poll());
    });
    assert_eq!(
        events,
        [r#"fell back pattern="fallback" name="cache" was_error=true"#]
    );
}
