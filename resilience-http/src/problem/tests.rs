use std::{error::Error as StdError, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use resilience_core::{Error, Pattern, Reason, Rejected};
use serde_json::{Value, json};

use super::{
    document::{MAX_EXACT, whole_millis},
    *,
};

fn rejected(pattern: Pattern, reason: Reason, wait: Option<Duration>) -> Rejected {
    let rejected = Rejected::new(pattern, reason, "orders-db-replica-2");
    match wait {
        Some(wait) => rejected.with_retry_after(wait),
        None => rejected,
    }
}

fn answer(problems: Problems, rejected: &Rejected) -> (http::response::Parts, Value) {
    let response: Response<Bytes> = problems.answer(rejected);
    let (parts, body) = response.into_parts();
    (parts, serde_json::from_slice(&body).expect("a document"))
}

#[test]
fn a_rejection_becomes_the_documented_document() {
    let open = rejected(
        Pattern::CircuitBreaker,
        Reason::Open,
        Some(Duration::from_micros(2_479_001)),
    );
    let (parts, document) = answer(Problems::new(), &open);
    assert_eq!(parts.status, 503);
    assert_eq!(parts.headers["content-type"], "application/problem+json");
    assert_eq!(parts.headers["retry-after"], "3");
    assert_eq!(
        document,
        json!({
            "type": "urn:problem-type:resilience:circuit_breaker:open",
            "title": "A dependency is failing",
            "status": 503,
            "detail": "A service that this request depends on is failing, so it was not called. \
                       Try again in 3 s.",
            "pattern": "circuit_breaker",
            "reason": "open",
            "retry_after_ms": 2480,
        })
    );
}

/// As it stands at the top of `problem.rs`.
fn documented(row: &Row) -> String {
    let Row { status, title, .. } = row;
    let (reason, status) = (row.reason.as_str(), status.as_u16());
    let retry = if row.retry_by_default { "1" } else { "none" };
    format!("//! | `{reason}` | {status} | {retry} | {title} |")
}

#[test]
fn the_table_in_the_documentation_is_the_table() {
    let source = include_str!("../problem.rs");
    let written: Vec<_> = source
        .lines()
        .filter(|line| line.starts_with("//! | `"))
        .collect();
    let expected: Vec<_> = TABLE.iter().map(documented).collect();
    assert_eq!(
        written,
        expected,
        "the lines must be:\n{}\n",
        expected.join("\n")
    );
}

#[test]
fn every_reason_has_its_own_row_and_says_the_same_status_twice() {
    for &reason in Reason::ALL {
        let rows = TABLE.iter().filter(|row| row.reason == reason).count();
        assert_eq!(rows, 1, "{reason:?}");
        let (parts, document) = answer(Problems::new(), &rejected(Pattern::Deadline, reason, None));
        assert_eq!(document["status"], parts.status.as_u16(), "{reason:?}");
        assert_eq!(document["reason"], reason.as_str());
        assert!(document.get("retry_after_ms").is_none(), "{reason:?}");
    }
    assert_eq!(TABLE.len(), Reason::ALL.len());
}

#[test]
fn statuses_are_503_but_for_the_rate_limit_the_deadline_and_the_key() {
    for &reason in Reason::ALL {
        let status = Problem::from(rejected(Pattern::CircuitBreaker, reason, None)).status();
        let expected = match reason {
            Reason::RateLimited => 429,
            Reason::TooCostly | Reason::KeyReused | Reason::NotFound => 422,
            Reason::InFlight
            | Reason::OutcomeUnknown
            | Reason::Superseded
            | Reason::OutcomeNotKept => 409,
            Reason::OutcomeUnreadable | Reason::LoadPanicked | Reason::NoLoader => 500,
            Reason::TimedOut | Reason::NoTimeLeft => 504,
            _ => 503,
        };
        assert_eq!(status, expected, "{reason:?}");
    }
}

#[test]
fn no_client_is_told_to_come_back_at_once() {
    let waits = [
        (Duration::ZERO, 1),
        (Duration::from_nanos(1), 1),
        (Duration::from_secs(1), 1),
        (Duration::from_millis(1001), 2),
        (Duration::MAX, (1 << 31) - 1),
    ];
    for (wait, seconds) in waits {
        let limited = rejected(Pattern::RateLimit, Reason::RateLimited, Some(wait));
        assert_eq!(
            Problem::from(limited).retry_after(),
            Some(seconds),
            "{wait:?}"
        );
    }
    for row in TABLE {
        let unknown = Problem::from(rejected(Pattern::Bulkhead, row.reason, None));
        assert_eq!(unknown.retry_after(), row.retry_by_default.then_some(1));
    }
    assert_eq!(whole_millis(Duration::MAX), MAX_EXACT);
}

#[test]
fn names_stay_inside_unless_they_are_asked_for() {
    let full = rejected(Pattern::Bulkhead, Reason::Full, None);
    let hidden: Response<Bytes> = Problems::new().answer(&full);
    let text = String::from_utf8(hidden.body().to_vec()).unwrap();
    assert!(!text.contains("orders-db"), "{text}");
    let (_, shown) = answer(Problems::new().show_names(true), &full);
    assert_eq!(shown["name"], "orders-db-replica-2");
}

#[test]
fn a_handlers_own_problem_is_a_document_too() {
    let problem = Problem::new(StatusCode::NOT_FOUND, "No such order")
        .with_type("/problems/no-such-order")
        .with_detail("Order 17 does not exist.");
    assert_eq!(
        problem.to_string(),
        "404: No such order: Order 17 does not exist."
    );
    let response: Response<String> = problem.into();
    assert_eq!(response.status(), 404);
    assert!(!response.headers().contains_key("retry-after"));
    let document: Value = serde_json::from_str(response.body()).unwrap();
    assert_eq!(document["type"], "/problems/no-such-order");
    assert!(document.get("pattern").is_none());
}

#[test]
fn a_rejection_is_found_in_a_boxed_error() {
    let late = rejected(Pattern::Deadline, Reason::TimedOut, None);
    let boxed: Box<dyn StdError + Send + Sync> = Box::new(Error::<std::io::Error>::Rejected(late));
    assert_eq!(Problem::of_error(&boxed).status(), 504);
}

#[test]
fn a_closure_answers_as_it_likes() {
    let teapot = |rejected: &Rejected| {
        let mut response = Response::new(rejected.reason().as_str());
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    };
    let answer = teapot.answer(&rejected(Pattern::Bulkhead, Reason::Full, None));
    assert_eq!((answer.status().as_u16(), *answer.body()), (418, "full"));
}
