//! Statuses and texts by reason.

use http::StatusCode;
use resilience_core::{Pattern, Reason, error::ReasonKind};

/// Prefix of the `type` of every rejection's document.
pub const TYPE_PREFIX: &str = "urn:problem-type:resilience:";

/// The response to rejections for one [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// Reason of the rejection.
    pub reason: Reason,
    /// Status of the response.
    pub status: StatusCode,
    /// Whether the response has `Retry-After: 1` when the layer does not know how long to wait.
    pub retry_by_default: bool,
    /// The document's `title`, the same for every occurrence.
    pub title: &'static str,
    /// The document's `detail`, to which the time to wait is added where it is known.
    pub detail: &'static str,
}

impl Row {
    /// Returns the row of `reason`.
    #[must_use]
    pub const fn of(reason: Reason) -> Self {
        Self {
            reason,
            status: status(reason.kind()),
            retry_by_default: reason.retry_soon(),
            title: reason.title(),
            detail: reason.detail(),
        }
    }
}

const fn status(kind: ReasonKind) -> StatusCode {
    match kind {
        ReasonKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ReasonKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ReasonKind::OutOfTime => StatusCode::GATEWAY_TIMEOUT,
        ReasonKind::Conflict => StatusCode::CONFLICT,
        ReasonKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        ReasonKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The responses to all reasons, in the order of [`Reason::ALL`].
pub const TABLE: &[Row] = &ROWS;

const ROWS: [Row; Reason::ALL.len()] = {
    let mut rows = [Row::of(Reason::ALL[0]); Reason::ALL.len()];
    let mut at = 1;
    while at < rows.len() {
        rows[at] = Row::of(Reason::ALL[at]);
        at += 1;
    }
    rows
};

/// Returns the `type` of the document for a rejection by `pattern` for `reason`.
#[must_use]
pub fn type_uri(pattern: Pattern, reason: Reason) -> String {
    format!("{TYPE_PREFIX}{}:{}", pattern.as_str(), reason.as_str())
}
