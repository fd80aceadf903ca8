//! One server that breaks in one way: what the caller sees, what the breaker counts, what is sent again, how long it
//! takes, and that nothing is held when it is over.

use std::{error::Error as _, time::Duration};

use reqwest::Method;
use resilience_core::{Pattern, Reason, retry::GaveUp};
use resilience_http::{
    OnBodyEnd,
    body::{PartialRead, rejected_in},
};
use resilience_tests::fault_server::{Behaviour, FaultServer, nobody};

use crate::rig::{DEADLINE, Rig, SLACK, eventually, rejection, rigs, service_error, timed};

const SENT_TWICE: u64 = 1;
const SENT_ONCE: u64 = 0;

#[tokio::test]
async fn a_refused_connection_is_a_failure_and_is_tried_again() {
    let address = nobody();
    for rig in rigs(address) {
        let (took, sent) = timed(rig.get(&format!("http://{address}/"))).await;
        assert!(service_error(sent).is_connect(), "{}", rig.kind);
        assert_eq!(rig.retry.snapshot().retries, SENT_TWICE, "{}", rig.kind);
        assert!(took < SLACK, "{}: {took:?}", rig.kind);
        rig.settles((0, 2, 0)).await;
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_is_a_failure_and_is_tried_again() {
    for behaviour in [Behaviour::ResetOnAccept, Behaviour::ResetAfterRequest] {
        let server = FaultServer::start(behaviour.clone()).await;
        for (number, rig) in (1..).zip(rigs(server.address())) {
            let error = service_error(rig.get(&server.url("/")).await);
            assert!(!error.is_timeout(), "{} {behaviour:?}: {error:?}", rig.kind);
            assert_eq!(
                rig.retry.snapshot().retries,
                SENT_TWICE,
                "{} {behaviour:?}",
                rig.kind
            );
            assert_eq!(
                server.connections(),
                2 * number,
                "{} {behaviour:?}",
                rig.kind
            );
            rig.settles((0, 2, 0)).await;
        }
    }
}

#[tokio::test]
async fn garbage_instead_of_http_is_a_failure_and_is_tried_again() {
    let server = FaultServer::start(Behaviour::Garbage).await;
    for rig in rigs(server.address()) {
        let error = service_error(rig.get(&server.url("/")).await);
        assert!(error.is_request(), "{}: {error:?}", rig.kind);
        assert_eq!(rig.retry.snapshot().retries, SENT_TWICE, "{}", rig.kind);
        rig.settles((0, 2, 0)).await;
    }
}

/// The head said 200, so there is nothing to send again; but the server has failed, and the breaker learns it.
#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure_after_all() {
    for behaviour in [Behaviour::HalfOfTheLength, Behaviour::CutInChunks] {
        let server = FaultServer::start(behaviour.clone()).await;
        for rig in rigs(server.address()) {
            let response = rig.get(&server.url("/")).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.bytes().await;
            assert!(body.is_err(), "{} {behaviour:?}: {body:?}", rig.kind);
            assert_eq!(
                rig.retry.snapshot().retries,
                SENT_ONCE,
                "{} {behaviour:?}",
                rig.kind
            );
            rig.settles((0, 1, 0)).await;
        }
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_at_the_deadline() {
    let server = FaultServer::start(Behaviour::HangBeforeHeaders).await;
    for rig in rigs(server.address()) {
        let (took, sent) = timed(rig.get(&server.url("/"))).await;
        let rejected = rejection(sent);
        assert_eq!(
            (rejected.pattern(), rejected.reason()),
            (Pattern::Deadline, Reason::TimedOut)
        );
        assert!(
            took >= DEADLINE && took < DEADLINE + SLACK,
            "{}: {took:?}",
            rig.kind
        );
        assert_eq!(rig.retry.snapshot().retries, SENT_ONCE, "{}", rig.kind);
        rig.settles((0, 1, 0)).await;
        // The server is let go of as well.
        assert!(
            eventually(|| server.open() == 0).await,
            "{}: {} connections open",
            rig.kind,
            server.open()
        );
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up_at_the_deadline() {
    let server = FaultServer::start(Behaviour::HangAfterHeaders).await;
    for rig in rigs(server.address()) {
        let (took, error) = timed(async {
            let response = rig.get(&server.url("/")).await.unwrap();
            assert_eq!(
                rig.in_flight(),
                1,
                "{}: the place is held until the end of the body",
                rig.kind
            );
            response.bytes().await.unwrap_err()
        })
        .await;
        assert!(error.is_timeout(), "{}: {error:?}", rig.kind);
        let rejected = rejected_in(&error).expect("the rejection in the error");
        assert_eq!(rejected.reason(), Reason::TimedOut);
        assert!(error.source().is_some());
        assert!(
            took >= DEADLINE && took < DEADLINE + SLACK,
            "{}: {took:?}",
            rig.kind
        );
        rig.settles((0, 1, 0)).await;
        assert!(eventually(|| server.open() == 0).await, "{}", rig.kind);
    }
}

#[tokio::test]
async fn a_slow_body_that_comes_whole_is_a_success_and_holds_its_place_so_long() {
    let (pieces, every) = (5, Duration::from_millis(20));
    let server = FaultServer::start(Behaviour::Trickle { pieces, every }).await;
    for rig in rigs(server.address()) {
        let response = rig.get(&server.url("/")).await.unwrap();
        assert_eq!(
            (rig.in_flight(), rig.judged()),
            (1, (0, 0, 0)),
            "{}: judged too early",
            rig.kind
        );
        assert_eq!(response.text().await.unwrap(), "piece".repeat(5));
        rig.settles((1, 0, 0)).await;
    }
}

#[tokio::test]
async fn a_body_that_is_still_trickling_at_the_deadline_is_cut_off_there() {
    let (pieces, every) = (1000, Duration::from_millis(10));
    let server = FaultServer::start(Behaviour::Trickle { pieces, every }).await;
    for rig in rigs(server.address()) {
        let (took, body) =
            timed(async { rig.get(&server.url("/")).await.unwrap().bytes().await }).await;
        let error = body.unwrap_err();
        assert!(rejected_in(&error).is_some(), "{}: {error:?}", rig.kind);
        assert!(
            took >= DEADLINE && took < DEADLINE + SLACK,
            "{}: {took:?}",
            rig.kind
        );
        assert!(eventually(|| rig.in_flight() == 0).await, "{}", rig.kind);
    }
}

#[tokio::test]
async fn a_failing_status_is_a_failure_and_is_tried_again() {
    for status in [500, 502, 503, 504, 429] {
        let server = FaultServer::start(Behaviour::status(status)).await;
        for rig in rigs(server.address()) {
            assert_eq!(rig.get(&server.url("/")).await.unwrap().status(), status);
            assert_eq!(
                rig.retry.snapshot().retries,
                SENT_TWICE,
                "{} {status}",
                rig.kind
            );
            rig.settles((0, 2, 0)).await;
        }
    }
}

#[tokio::test]
async fn the_callers_own_fault_is_no_failure_and_is_not_tried_again() {
    for status in [400, 401, 404, 409, 422] {
        let server = FaultServer::start(Behaviour::status(status)).await;
        for rig in rigs(server.address()) {
            assert_eq!(rig.get(&server.url("/")).await.unwrap().status(), status);
            assert_eq!(
                rig.retry.snapshot().retries,
                SENT_ONCE,
                "{} {status}",
                rig.kind
            );
            rig.settles((0, 0, 1)).await;
        }
    }
}

#[tokio::test]
async fn what_the_server_cannot_do_is_a_failure_that_is_not_tried_again() {
    let server = FaultServer::start(Behaviour::status(501)).await;
    for rig in rigs(server.address()) {
        assert_eq!(rig.get(&server.url("/")).await.unwrap().status(), 501);
        assert_eq!(rig.retry.snapshot().retries, SENT_ONCE, "{}", rig.kind);
        rig.settles((0, 1, 0)).await;
    }
}

/// Both forms. A wait that leaves no time is not begun: the answer comes at once.
#[tokio::test]
async fn a_retry_after_beyond_the_deadline_is_not_waited_for() {
    let seconds = Behaviour::with_header(503, "Retry-After: 30");
    let dates = vec![
        String::from("Date: Sun, 06 Nov 1994 08:49:37 GMT"),
        String::from("Retry-After: Sun, 06 Nov 1994 08:50:07 GMT"),
    ];
    let date = Behaviour::Answer(429, dates, String::new());
    for behaviour in [seconds, date] {
        let server = FaultServer::start(behaviour.clone()).await;
        for rig in rigs(server.address()) {
            let response = rig.get(&server.url("/")).await.unwrap();
            assert!(
                response.headers().contains_key("retry-after"),
                "{} {behaviour:?}",
                rig.kind
            );
            assert_eq!(
                rig.retry.snapshot().retries,
                SENT_ONCE,
                "{} {behaviour:?}",
                rig.kind
            );
            let given_up: u64 = [GaveUp::RetryAfterTooLong, GaveUp::NoTime]
                .map(|why| rig.retry.snapshot().given_up.of(why))
                .iter()
                .sum();
            assert_eq!(given_up, 1, "{} {behaviour:?}", rig.kind);
            drop(response);
            rig.settles((0, 1, 0)).await;
        }
    }
}

/// Both forms, one second each: the only wait of real time here.
#[tokio::test]
async fn a_retry_after_that_fits_is_waited_for() {
    let dates = vec![
        String::from("Date: Sun, 06 Nov 1994 08:49:37 GMT"),
        String::from("Retry-After: Sun, 06 Nov 1994 08:49:38 GMT"),
    ];
    let seconds = Behaviour::with_header(503, "Retry-After: 1");
    let date = Behaviour::Answer(429, dates, String::new());
    let waits = [seconds, date].map(|behaviour| async move {
        let server = FaultServer::start(behaviour.clone()).await;
        let [rig, _] = rigs(server.address());
        let call = rig
            .client
            .get(server.url("/"))
            .timeout(Duration::from_secs(30))
            .send();
        let heals = async {
            assert!(eventually(|| server.requests() == 1).await);
            server.set(Behaviour::ok());
        };
        let (took, (sent, ())) = timed(async { tokio::join!(call, heals) }).await;
        assert_eq!(sent.unwrap().text().await.unwrap(), "fine", "{behaviour:?}");
        assert!(
            took >= Duration::from_secs(1),
            "{behaviour:?}: asked to wait a second, waited {took:?}"
        );
        assert_eq!(server.requests(), 2);
    });
    futures_util::future::join_all(waits).await;
}

#[tokio::test]
async fn a_post_is_sent_once_unless_it_says_that_it_may_be_repeated() {
    let server = FaultServer::start(Behaviour::ResetAfterRequest).await;
    for rig in rigs(server.address()) {
        let before = server.requests();
        let _ = service_error(rig.send(Method::POST, &server.url("/pay")).await);
        assert_eq!(
            server.requests() - before,
            1,
            "{}: a payment was sent twice",
            rig.kind
        );
        let keyed = rig
            .client
            .post(server.url("/pay"))
            .idempotency_key("one-payment")
            .body("10")
            .send()
            .await;
        let _ = service_error(keyed);
        assert_eq!(server.requests() - before, 3, "{}", rig.kind);
        rig.settles((0, 3, 0)).await;
    }
    let keys = server
        .heads()
        .iter()
        .filter(|head| head.contains("idempotency-key: one-payment"))
        .count();
    assert_eq!(keys, 4, "both attempts of both clients carry the key");
}

/// What a body says that its reader drops after the head.
#[tokio::test]
async fn a_body_dropped_half_read_says_what_the_policy_says_and_gives_its_place_back() {
    let (pieces, every) = (100, Duration::from_millis(50));
    let server = FaultServer::start(Behaviour::Trickle { pieces, every }).await;
    let policies = [
        (PartialRead::AsHead, (1, 0, 0)),
        (PartialRead::Ignored, (0, 0, 1)),
        (PartialRead::Failed, (0, 1, 0)),
    ];
    for (policy, judged) in policies {
        let body_end = OnBodyEnd::new().name("rig").partial_read(policy);
        let by_hand = Rig::by_hand(server.address(), body_end.clone());
        for rig in [Rig::default_client(server.address(), body_end), by_hand] {
            let response = rig.get(&server.url("/")).await.unwrap();
            assert_eq!(rig.in_flight(), 1, "{} {policy:?}", rig.kind);
            drop(response);
            assert_eq!(rig.in_flight(), 0, "{} {policy:?}", rig.kind);
            assert_eq!(rig.judged(), judged, "{} {policy:?}", rig.kind);
        }
    }
    assert!(
        eventually(|| server.open() == 0).await,
        "the server is still sending"
    );
}

/// A call that the caller drops while it waits for the head.
#[tokio::test]
async fn a_dropped_call_closes_its_connection_and_gives_its_place_back() {
    let server = FaultServer::start(Behaviour::HangBeforeHeaders).await;
    for rig in rigs(server.address()) {
        let before = server.requests();
        let url = server.url("/");
        tokio::select! {
            sent = rig.get(&url) => panic!("{}: {sent:?}", rig.kind),
            seen = eventually(|| server.requests() > before) => assert!(seen, "{}", rig.kind),
        }
        rig.settles((0, 0, 1)).await;
        assert!(eventually(|| server.open() == 0).await, "{}", rig.kind);
    }
}
