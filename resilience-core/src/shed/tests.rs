use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer as _, Service, limit::ConcurrencyLimit, service_fn};
use tower_test::{assert_request_eq, mock};

use super::*;
use crate::error::ServiceError as _;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::test]
async fn a_call_that_would_wait_is_rejected_as_overloaded_and_the_next_one_is_not() {
    let shed = LoadShed::new("api");
    let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(shed.layer());
    handle.allow(0);
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call("early"));
    let error = assert_ready_err!(call.poll());
    let rejected = error.as_rejected().unwrap();
    assert_eq!(rejected.reason(), Reason::Overloaded);
    assert_eq!(
        (rejected.pattern(), rejected.name()),
        (Pattern::LoadShed, "api")
    );
    assert_eq!(shed.snapshot().rejected, 1);

    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let response = service.call("hello");
    assert_request_eq!(handle, "hello").send_response("world");
    assert_eq!(response.await.unwrap(), "world");
    assert_eq!(shed.snapshot().rejected, 1);
}

#[test]
fn a_shed_call_leaves_an_event() {
    let shed = LoadShed::new("api");
    let events = crate::test_log::events_of(|| drop(shed.shared.reject()));
    assert_eq!(
        events,
        [r#"rejected pattern="load_shed" name="api" reason="overloaded""#]
    );
}

#[tokio::test]
async fn a_clone_does_not_inherit_readiness_and_a_call_uses_it_up() {
    let shed = LoadShed::new("api");
    let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(shed.layer());
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut clone = service.clone();
    assert_ready_err!(task::spawn(clone.call("never polled ready")).poll());
    let _used = service.call("hello");
    assert_ready_err!(task::spawn(service.call("not polled again")).poll());
}

#[tokio::test]
async fn idle_clones_that_were_not_ready_hold_no_place_in_line() {
    let shed = LoadShed::new("api");
    let forever = service_fn(async |(): ()| std::future::pending::<Result<(), BoxError>>().await);
    let limit = ConcurrencyLimit::new(forever, 1);
    let mut taker = task::spawn(tower::ServiceExt::oneshot(limit.clone(), ()));
    assert_pending!(taker.poll());

    let mut idle = task::spawn(shed.layer().layer(limit.clone()));
    let polled = idle.enter(|cx, mut service| Service::<()>::poll_ready(&mut *service, cx));
    assert!(polled.is_ready());

    drop(taker);
    let mut other = task::spawn(limit);
    let polled = other.enter(|cx, mut service| Service::<()>::poll_ready(&mut *service, cx));
    assert!(polled.is_ready(), "the freed place went to an idle clone");
}
