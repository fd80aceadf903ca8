//! Rejections as HTTP answers: status, `Retry-After`, and an `application/problem+json` document
//! (RFC 9457).
//!
//! | reason | status | `Retry-After` if the layer knows no wait | title |
//! |---|---|---|---|
//! | `open` | 503 | 1 | A dependency is failing |
//! | `no_probe_left` | 503 | 1 | A dependency is failing |
//! | `ramping_up` | 503 | 1 | A dependency is failing |
//! | `forced_open` | 503 | none | A dependency is switched off |
//! | `full` | 503 | 1 | Too busy |
//! | `queue_timed_out` | 503 | 1 | Too busy |
//! | `timed_out` | 504 | none | Out of time |
//! | `no_time_left` | 504 | none | Out of time |
//! | `overloaded` | 503 | 1 | Too busy |
//! | `rate_limited` | 429 | 1 | Too many requests |
//! | `too_costly` | 422 | none | Request too costly |
//! | `store_unreachable` | 503 | 1 | A dependency is failing |
//! | `in_flight` | 409 | 1 | A request is outstanding for this key |
//! | `key_reused` | 422 | none | Idempotency key is already used |
//! | `lease_lost` | 503 | none | Request abandoned |
//! | `outcome_unknown` | 409 | none | The outcome is unknown |
//! | `superseded` | 409 | 1 | The outcome is unknown |
//! | `outcome_unreadable` | 500 | none | Processed before, and cannot be replayed |
//! | `outcome_not_kept` | 409 | none | Processed before, and cannot be replayed |
//!
//! The same table is [`TABLE`] for programs. A layer that knows how long to wait says so in
//! `Retry-After`, whatever the table says. `Retry-After` is in whole seconds, rounded up, at least
//! 1: a client that is told "0" comes straight back. A reason that a later version of the core adds
//! has the status of its [kind](ReasonKind).
//!
//! A document looks like this:
//!
//! ```json
//! {
//!   "type": "urn:problem-type:resilience:circuit_breaker:open",
//!   "title": "A dependency is failing",
//!   "status": 503,
//!   "detail": "A service that this request depends on is failing, so it was not called. Try again in 3 s.",
//!   "pattern": "circuit_breaker",
//!   "reason": "open",
//!   "retry_after_ms": 2480
//! }
//! ```
//!
//! `type` is `urn:problem-type:resilience:` + [`Pattern::as_str`] + `:` + [`Reason::as_str`]. It
//! names the problem, it is no address to fetch. It is stable, as are the members `pattern` and
//! `reason`, so a client may match on them. `retry_after_ms` is there when the layer that said no
//! knew the wait; it is the exact figure for clients that can use one.
//!
//! The **name** of the breaker or bulkhead is not told to clients: "orders-db-replica-2" is the
//! server's own business, and for a keyed handle it may be somebody's key. [`Problems::show_names`]
//! adds it as `name`, for services whose clients are their own.
//!
//! In a handler, [`Problem`] is an error type that `?` converts rejections to. With the feature
//! `axum` it is a response as well:
//!
//! ```
//! use resilience_core::{Error, Pattern, Reason, Rejected};
//! use resilience_http::problem::Problem;
//!
//! fn reserve() -> Result<u32, Rejected> {
//!     Err(Rejected::new(Pattern::Bulkhead, Reason::Full, "orders-db"))
//! }
//!
//! fn handler() -> Result<String, Problem> {
//!     Ok(reserve()?.to_string())
//! }
//!
//! let problem = handler().unwrap_err();
//! assert_eq!(problem.status(), 503);
//! let response: http::Response<String> = problem.into_response();
//! assert_eq!(response.headers()["retry-after"], "1");
//! assert!(!response.body().contains("orders-db"));
//! ```

use std::{borrow::Cow, convert::Infallible, error::Error as StdError, fmt, time::Duration};

use http::{HeaderValue, Response, StatusCode, header};
use resilience_core::{Error, Pattern, Reason, Rejected, ServiceError, error::ReasonKind};
use serde::Serialize;

/// The media type of a problem document.
pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// What the `type` of every rejection's document starts with.
pub const TYPE_PREFIX: &str = "urn:problem-type:resilience:";

/// The answer to one [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The reason.
    pub reason: Reason,
    /// The status of the answer.
    pub status: StatusCode,
    /// Whether the answer has `Retry-After: 1` when the layer does not know how long to wait.
    pub retry_by_default: bool,
    /// The document's `title`: the same for every occurrence.
    pub title: &'static str,
    /// The document's `detail`; how long to wait is added where it is known.
    pub detail: &'static str,
}

impl Row {
    /// The answer to `reason`.
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

/// The answers to all reasons.
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

/// How rejections become answers. Settings, `Copy`; [`new`](Self::new) is the default.
///
/// It is one of the ways to [`RejectionResponse`]; a closure of your own is another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Problems {
    show_names: bool,
}

impl Problems {
    /// Names hidden.
    #[must_use]
    pub const fn new() -> Self {
        Self { show_names: false }
    }

    /// Whether the document's `name` tells clients the name that the pattern's handle was built
    /// with. Default: no.
    #[must_use]
    pub const fn show_names(mut self, show: bool) -> Self {
        self.show_names = show;
        self
    }

    /// The document for a rejection.
    #[must_use]
    pub fn problem(&self, rejected: &Rejected) -> Problem {
        let mut problem = Problem::from(rejected);
        if self.show_names {
            problem.0.name = Some(rejected.name().to_owned());
        }
        problem
    }
}

/// Makes the response for a rejection: [`Problems`], or a closure from `&Rejected` to a response.
pub trait RejectionResponse<B> {
    /// The response that a client gets when `rejected` ended its request.
    fn answer(&self, rejected: &Rejected) -> Response<B>;
}

impl<B: From<String>> RejectionResponse<B> for Problems {
    fn answer(&self, rejected: &Rejected) -> Response<B> {
        self.problem(rejected).into_response()
    }
}

impl<B, F: Fn(&Rejected) -> Response<B>> RejectionResponse<B> for F {
    fn answer(&self, rejected: &Rejected) -> Response<B> {
        self(rejected)
    }
}

/// A problem document and the response that carries it.
///
/// Made from a [`Rejected`], or by hand for a handler's own errors, so that one error type serves
/// the whole handler. One pointer in size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(Box<Document>);

impl Problem {
    /// A problem of the handler's own. `type` is `about:blank` until [`with_type`](Self::with_type)
    /// says otherwise.
    #[must_use]
    pub fn new(status: StatusCode, title: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Document {
            kind: Cow::Borrowed("about:blank"),
            title: title.into(),
            status: status.as_u16(),
            detail: None,
            pattern: None,
            reason: None,
            name: None,
            retry_after_ms: None,
            violated_policies: Vec::new(),
            retry_after: None,
        }))
    }

    /// For a `BoxError` of a tower stack: the rejection somewhere in it, or a plain 500 that tells
    /// nothing of it.
    ///
    /// ```
    /// # use resilience_http::problem::Problem;
    /// let error: Box<dyn std::error::Error + Send + Sync> = "the disk of host db-3 is full".into();
    /// let problem = Problem::of_error(&error);
    /// assert_eq!(problem.status(), 500);
    /// assert_eq!(problem.detail(), None);
    /// ```
    #[must_use]
    #[expect(
        clippy::borrowed_box,
        reason = "what looks for the rejection is implemented for the box"
    )]
    pub fn of_error(error: &Box<dyn StdError + Send + Sync>) -> Self {
        let internal = || Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error");
        error.as_rejected().map_or_else(internal, Self::from)
    }

    /// Sets `type`: a URI that names the kind of problem.
    #[must_use]
    pub fn with_type(mut self, uri: impl Into<Cow<'static, str>>) -> Self {
        self.0.kind = uri.into();
        self
    }

    /// Sets `detail`: what happened this time, for a human. Clients see it.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Sets `Retry-After` and `retry_after_ms`.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(whole_seconds(wait));
        self.0.retry_after_ms = Some(whole_millis(wait));
        self
    }

    /// Names a policy that was violated, as draft-ietf-httpapi-ratelimit-headers has it.
    pub(crate) fn violating(mut self, policy: String) -> Self {
        self.0.violated_policies.push(policy);
        self
    }

    /// Sets `retry_after_ms` alone: where `Retry-After` says a little more, on purpose.
    pub(crate) fn exactly(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after_ms = wait.map(whole_millis);
        self
    }

    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        // It was one when it came in.
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The document's `type`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    /// The document's `title`.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.0.title
    }

    /// The document's `detail`.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// What `Retry-After` says, in seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.0.retry_after
    }

    /// The document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and integers only: there is nothing that could fail.
        serde_json::to_string(&*self.0).unwrap_or_default()
    }

    /// The response: status, `Content-Type`, `Retry-After` where there is one, and the document.
    #[must_use]
    pub fn into_response<B: From<String>>(self) -> Response<B> {
        let mut response = Response::new(B::from(self.to_json()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.status, self.0.title)?;
        match self.detail() {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl StdError for Problem {}

impl From<&Rejected> for Problem {
    fn from(rejected: &Rejected) -> Self {
        let (pattern, reason) = (rejected.pattern(), rejected.reason());
        let row = Row::of(reason);
        let wait = rejected.retry_after();
        let mut problem = Self::new(row.status, row.title)
            .with_type(type_uri(pattern, reason))
            .with_detail(row.detail);
        problem.0.pattern = Some(pattern.as_str());
        problem.0.reason = Some(reason.as_str());
        match wait {
            Some(wait) => {
                let seconds = whole_seconds(wait);
                problem
                    .with_detail(format!("{} Try again in {seconds} s.", row.detail))
                    .with_retry_after(wait)
            }
            None => {
                problem.0.retry_after = row.retry_by_default.then_some(1);
                problem
            }
        }
    }
}

impl From<Rejected> for Problem {
    fn from(rejected: Rejected) -> Self {
        Self::from(&rejected)
    }
}

impl From<Infallible> for Problem {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// For the result of a guarded call whose own error says how it is to be answered.
impl<E: Into<Self>> From<Error<E>> for Problem {
    fn from(error: Error<E>) -> Self {
        match error {
            Error::Rejected(rejected) => rejected.into(),
            Error::Service(error) => error.into(),
        }
    }
}

impl<B: From<String>> From<Problem> for Response<B> {
    fn from(problem: Problem) -> Self {
        problem.into_response()
    }
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for Problem {
    fn into_response(self) -> axum_core::response::Response {
        Self::into_response(self)
    }
}

/// The `type` of the document for a rejection by `pattern` for `reason`.
#[must_use]
pub fn type_uri(pattern: Pattern, reason: Reason) -> String {
    format!("{TYPE_PREFIX}{}:{}", pattern.as_str(), reason.as_str())
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Document {
    #[serde(rename = "type")]
    kind: Cow<'static, str>,
    title: Cow<'static, str>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<String>,
    /// The header, not part of the document.
    #[serde(skip)]
    retry_after: Option<u64>,
}

/// Rounded up, at least 1, and within the 31 bits that every client can be expected to read.
fn whole_seconds(wait: Duration) -> u64 {
    let seconds = wait
        .as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0));
    seconds.clamp(1, (1 << 31) - 1)
}

/// Rounded up, and within what a JSON number holds exactly everywhere.
fn whole_millis(wait: Duration) -> u64 {
    let millis = wait.as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).map_or(MAX_EXACT, |millis| millis.min(MAX_EXACT))
}

const MAX_EXACT: u64 = (1 << 53) - 1;

#[cfg(test)]
mod tests;
