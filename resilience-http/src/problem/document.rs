//! Problem documents.

use std::{borrow::Cow, convert::Infallible, error::Error as StdError, fmt, time::Duration};

use http::{HeaderValue, Response, StatusCode, header};
use resilience_core::{Error, Reason, Rejected, ServiceError};
use serde::Serialize;

use super::table::{Row, type_uri};
use crate::headers::{IDEMPOTENCY_UNRECORDED, whole_seconds};

/// Media type of a problem document.
pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Problem document (RFC 9457) and the response that carries it.
///
/// Made from a [`Rejected`], or by hand for a handler's own errors, so that a handler needs one
/// error type only. One pointer in size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(Box<Document>);

impl Problem {
    /// Creates a document with this status and title. Its `type` is `about:blank` until
    /// [`with_type`](Self::with_type) sets one.
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

    /// Makes the document for a `BoxError` of a tower stack: that of the rejection in it, or else a
    /// plain 500 that reveals nothing of the error.
    ///
    /// ```
    /// # use resilience_http::Problem;
    /// let error: Box<dyn std::error::Error + Send + Sync> = "the disk of host db-3 is full".into();
    /// let problem = Problem::of_error(&error);
    /// assert_eq!(problem.status(), 500);
    /// assert_eq!(problem.detail(), None);
    /// ```
    #[must_use]
    #[expect(
        clippy::borrowed_box,
        reason = "the look-up of the rejection is implemented for the box"
    )]
    pub fn of_error(error: &Box<dyn StdError + Send + Sync>) -> Self {
        let internal = || Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error");
        error.as_rejected().map_or_else(internal, Self::from)
    }

    /// Sets `type`, a URI that names the kind of problem.
    #[must_use]
    pub fn with_type(mut self, uri: impl Into<Cow<'static, str>>) -> Self {
        self.0.kind = uri.into();
        self
    }

    /// Sets `detail`, a sentence for humans about this occurrence. Clients see it.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Sets `Retry-After` (in seconds, rounded up, at least 1) and `retry_after_ms`.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(retry_seconds(wait));
        self.0.retry_after_ms = Some(whole_millis(wait));
        self
    }

    pub(super) fn with_name(mut self, name: &str) -> Self {
        self.0.name = Some(name.to_owned());
        self
    }

    /// Adds a member of `violated-policies` (draft-ietf-httpapi-ratelimit-headers).
    pub(crate) fn with_violated_policy(mut self, policy: String) -> Self {
        self.0.violated_policies.push(policy);
        self
    }

    /// Sets `retry_after_ms` alone, where `Retry-After` has a random part added.
    pub(crate) fn with_exact_wait(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after_ms = wait.map(whole_millis);
        self
    }

    /// Returns the status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        // It was made from a `StatusCode`.
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Returns the document's `type`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    /// Returns the document's `title`.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.0.title
    }

    /// Returns the document's `detail`.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// Returns the value of `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.0.retry_after
    }

    /// Returns the document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and integers only: serializing them cannot fail.
        serde_json::to_string(&*self.0).unwrap_or_default()
    }

    /// Makes the response: status, `Content-Type`, `Retry-After` if there is a wait, and the
    /// document.
    #[must_use]
    pub fn into_response<B: From<String>>(self) -> Response<B> {
        let mut response = Response::new(B::from(self.to_json()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.reason == Some(Reason::Unrecorded.as_str()) {
            headers.insert(IDEMPOTENCY_UNRECORDED, HeaderValue::from_static("true"));
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
                let seconds = retry_seconds(wait);
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

/// For the error of a guarded call whose own error converts into a problem.
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
    /// Value of the header, not part of the document.
    #[serde(skip)]
    retry_after: Option<u64>,
}

/// Whole seconds, within the 31 bits that every client can be expected to parse.
fn retry_seconds(wait: Duration) -> u64 {
    whole_seconds(wait).min((1 << 31) - 1)
}

/// Milliseconds, rounded up, and within the integers that are exact in every JSON implementation.
pub(super) fn whole_millis(wait: Duration) -> u64 {
    let millis = wait.as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).map_or(MAX_EXACT, |millis| millis.min(MAX_EXACT))
}

pub(super) const MAX_EXACT: u64 = (1 << 53) - 1;
