//! The problem documents of requests that are not served.

use http::StatusCode;

use crate::{
    idempotency::MalformedKey,
    problem::{Problem, TYPE_PREFIX},
};

fn problem(status: StatusCode, kind: &str, title: &'static str, detail: String) -> Problem {
    Problem::new(status, title)
        .with_type(format!("{TYPE_PREFIX}idempotency:{kind}"))
        .with_detail(detail)
}

pub(super) fn no_key() -> Problem {
    let title = "Idempotency-Key is missing";
    let detail = "The request must carry an Idempotency-Key header, so that it is processed once.";
    problem(StatusCode::BAD_REQUEST, "no_key", title, detail.into())
}

pub(super) fn malformed_key(malformed: MalformedKey) -> Problem {
    let title = "Idempotency-Key is malformed";
    let detail = format!("The header Idempotency-Key cannot be read: {malformed}.");
    problem(StatusCode::BAD_REQUEST, "malformed_key", title, detail)
}

pub(super) fn no_credentials() -> Problem {
    let title = "Credentials are missing";
    let detail = "A request with an Idempotency-Key must carry credentials, so that its key is not taken for that of another client.";
    let status = StatusCode::BAD_REQUEST;
    problem(status, "no_credentials", title, detail.into())
}

pub(super) fn too_large(limit: usize) -> Problem {
    let title = "Request body is too large";
    let detail =
        format!("The body of a request with an idempotency key is limited to {limit} bytes.");
    problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", title, detail)
}

/// The limit of a layer outside of this one, which is not known here.
pub(super) fn limited_outside() -> Problem {
    let title = "Request body is too large";
    let detail = "The body is larger than the server accepts. The request was not processed.";
    problem(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        title,
        detail.into(),
    )
}

pub(super) fn unreadable_body() -> Problem {
    let title = "Request body cannot be read";
    let detail = "The request body ended early. The request was not processed.";
    let status = StatusCode::BAD_REQUEST;
    problem(status, "unreadable_body", title, detail.into())
}

pub(super) fn not_recorded() -> Problem {
    let title = "Response cannot be replayed";
    let detail = "The request was processed, but its response cannot be recorded for replays.";
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    problem(status, "not_kept", title, detail.into())
}

pub(super) fn panicked() -> Problem {
    let title = "Request failed";
    let detail = "The server failed while it processed the request; it is not known how much of it was done.";
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    problem(status, "panicked", title, detail.into())
}
