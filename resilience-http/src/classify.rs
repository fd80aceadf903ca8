//! Classification of HTTP responses: what a response says about the server that sent it.
//!
//! [`HttpClassifier`] is one classifier for the whole stack: breaker and retry read the same
//! verdict.
//!
//! | response | verdict | reason |
//! |---|---|---|
//! | 1xx, 2xx, 3xx | success | |
//! | 408, 425, 429 | transient | the server asks for another attempt later |
//! | other 4xx | ignored | the request was wrong, the server is healthy |
//! | 501, 505, 506, 508, 510, 511 | permanent | the same request will get the same response |
//! | 503 with [`Idempotency-Unrecorded`](headers::IDEMPOTENCY_UNRECORDED) | ignored | the request was processed, only its record is missing |
//! | any failure with [`Idempotent-Replayed`](headers::IDEMPOTENT_REPLAYED) | ignored | it is the recorded response to an earlier request, and comes again each time |
//! | other 5xx (500, 502, 503, 504, 507, 52x, ..) | transient | |
//!
//! The verdict on a transient response carries its `Retry-After` (seconds or date, see
//! [`headers::retry_after`]), capped at [`HttpClassifier::max_retry_after`].
//!
//! Errors of reqwest (feature `client`):
//!
//! | error | verdict | reason |
//! |---|---|---|
//! | connection refused, reset, closed early, HTTP/2 stream or connection error | transient | |
//! | timeout (reqwest's own, or of the socket) | transient | |
//! | name not resolved | transient | a name that does not exist looks the same as a resolver that is down |
//! | TLS handshake refused by rustls (bad certificate, no common version) | permanent | counts as a failure, but another attempt would end the same way |
//! | TLS handshake refused by the platform's library | transient | its error looks the same as a broken connection |
//! | the caller's own request body failed | ignored | |
//! | response body reset, incomplete, or wrongly compressed | transient | |
//! | JSON of an unexpected shape | ignored | the server responded; which side is wrong is unknown |
//! | `error_for_status` | as the status | without `Retry-After`: the headers are gone |
//! | builder, redirect (too many, or refused by the policy), upgrade | ignored | |
//! | anything else | transient | |
//!
//! Change single rows with [`and_then`](resilience_core::classify::and_then):
//!
//! ```
//! use http::{Response, StatusCode};
//! use resilience_core::{Classify, classify::{self, Verdict}};
//! use resilience_http::HttpClassifier;
//!
//! // For this server, 404 means that its index is broken.
//! let strict = classify::and_then(HttpClassifier::new(), |result: Result<&Response<()>, &()>, verdict| match result {
//!     Ok(response) if response.status() == StatusCode::NOT_FOUND => Verdict::Permanent,
//!     _ => verdict,
//! });
//! let mut response = Response::new(());
//! *response.status_mut() = StatusCode::NOT_FOUND;
//! assert_eq!(HttpClassifier::new().classify(Ok::<_, &()>(&response)), Verdict::Ignored);
//! assert_eq!(strict.classify(Ok(&response)), Verdict::Permanent);
//! ```
//!
//! # References
//! RFC 9110 section 15 (status codes) and section 10.2.3 (`Retry-After`); RFC 6585 (429); RFC 8470
//! (425).

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use resilience_core::{Classify, Verdict};

use crate::headers;

/// Classifier for HTTP responses and errors, by the [tables](self).
///
/// Classifies `http::Response` with any error type (every error is then a transient failure, since
/// nothing is known about it), and `reqwest::Response` with reqwest's errors: plain, in
/// [`Error`](resilience_core::Error), or boxed.
#[derive(Clone, Copy, Debug)]
pub struct HttpClassifier {
    max_retry_after: Duration,
}

impl HttpClassifier {
    /// Creates the classifier of the tables, with `Retry-After` capped at one hour.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            max_retry_after: Duration::from_secs(3600),
        }
    }

    /// Sets the cap of `Retry-After` in verdicts. Default: one hour.
    ///
    /// It only bounds what a server may ask for. The retry has a maximum wait of its own; keep this
    /// cap above it, or retries come earlier than the server asked.
    #[must_use]
    pub const fn max_retry_after(mut self, cap: Duration) -> Self {
        self.max_retry_after = cap;
        self
    }

    /// Classifies the head of a response.
    #[must_use]
    pub fn head(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        match by_status(status) {
            Verdict::Transient { .. } if is_held_back(status, headers) => Verdict::Ignored,
            Verdict::Transient { .. } | Verdict::Permanent if is_replayed(headers) => {
                Verdict::Ignored
            }
            Verdict::Transient { .. } => Verdict::Transient {
                retry_after: headers::retry_after(headers, self.max_retry_after),
            },
            verdict => verdict,
        }
    }
}

impl Default for HttpClassifier {
    fn default() -> Self {
        Self::new()
    }
}

impl<B, E> Classify<Response<B>, E> for HttpClassifier {
    fn classify(&self, result: Result<&Response<B>, &E>) -> Verdict {
        match result {
            Ok(response) => self.head(response.status(), response.headers()),
            Err(_) => Verdict::transient(),
        }
    }
}

/// Whether the server has processed the request and holds the response back until it is recorded.
fn is_held_back(status: StatusCode, headers: &HeaderMap) -> bool {
    let mark = headers.get(headers::IDEMPOTENCY_UNRECORDED);
    status == StatusCode::SERVICE_UNAVAILABLE && mark.is_some_and(|mark| mark == "true")
}

/// Whether the response was recorded for an earlier request with the same idempotency key.
fn is_replayed(headers: &HeaderMap) -> bool {
    let mark = headers.get(headers::IDEMPOTENT_REPLAYED);
    mark.is_some_and(|mark| mark == "true")
}

fn by_status(status: StatusCode) -> Verdict {
    match status.as_u16() {
        408 | 425 | 429 => Verdict::transient(),
        400..=499 => Verdict::Ignored,
        501 | 505 | 506 | 508 | 510 | 511 => Verdict::Permanent,
        500.. => Verdict::transient(),
        _ => Verdict::Success,
    }
}

#[cfg(feature = "client")]
mod client {
    use std::{error::Error as StdError, io};

    use resilience_core::{Classify, Error, Verdict};

    use super::{HttpClassifier, by_status};
    use crate::body::chain;

    type BoxError = Box<dyn StdError + Send + Sync>;

    impl Classify<reqwest::Response, reqwest::Error> for HttpClassifier {
        fn classify(&self, result: Result<&reqwest::Response, &reqwest::Error>) -> Verdict {
            match result {
                Ok(response) => self.head(response.status(), response.headers()),
                Err(error) => by_error(error),
            }
        }
    }

    impl Classify<reqwest::Response, Error<reqwest::Error>> for HttpClassifier {
        fn classify(&self, result: Result<&reqwest::Response, &Error<reqwest::Error>>) -> Verdict {
            match result {
                Ok(response) => self.head(response.status(), response.headers()),
                Err(Error::Rejected(rejected)) => rejected.verdict(),
                Err(Error::Service(error)) => by_error(error),
            }
        }
    }

    impl Classify<reqwest::Response, BoxError> for HttpClassifier {
        fn classify(&self, result: Result<&reqwest::Response, &BoxError>) -> Verdict {
            match result {
                Ok(response) => self.head(response.status(), response.headers()),
                Err(error) => chain(error.as_ref())
                    .find_map(|error| error.downcast_ref())
                    .map_or(Verdict::transient(), by_error),
            }
        }
    }

    fn by_error(error: &reqwest::Error) -> Verdict {
        if let Some(status) = error.status() {
            return by_status(status);
        }
        if error.is_builder() || error.is_redirect() || error.is_upgrade() {
            return Verdict::Ignored;
        }
        if error.is_timeout() || error.is_body() {
            return Verdict::transient();
        }
        if error.is_decode() {
            return if says::<serde_json::Error>(error, |_| true) {
                Verdict::Ignored
            } else {
                Verdict::transient()
            };
        }
        // While a request is sent, a body error means that the caller's own body could not be read.
        if says(error, reqwest::Error::is_body) {
            return Verdict::Ignored;
        }
        // rustls reports a refused handshake as invalid data on the connection.
        let refused = |io: &io::Error| io.kind() == io::ErrorKind::InvalidData;
        if error.is_connect() && says(error, refused) {
            return Verdict::Permanent;
        }
        Verdict::transient()
    }

    /// Whether a source of the error is a `T` for which `so` holds.
    fn says<T: StdError + 'static>(error: &reqwest::Error, so: impl Fn(&T) -> bool) -> bool {
        let mut from = chain(error)
            .skip(1)
            .filter_map(|error| error.downcast_ref());
        from.any(so)
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    fn verdict(status: u16, retry_after: Option<&str>) -> Verdict {
        let mut response = Response::builder().status(status);
        if let Some(value) = retry_after {
            response = response.header(header::RETRY_AFTER, value);
        }
        HttpClassifier::new().classify(Ok::<_, &()>(&response.body(()).unwrap()))
    }

    #[test]
    fn every_status_has_the_verdict_of_the_table() {
        for status in 100..1000 {
            let expected = match status {
                100..400 => Verdict::Success,
                408 | 425 | 429 => Verdict::transient(),
                400..=499 => Verdict::Ignored,
                501 | 505 | 506 | 508 | 510 | 511 => Verdict::Permanent,
                _ => Verdict::transient(),
            };
            assert_eq!(verdict(status, None), expected, "{status}");
        }
    }

    #[test]
    fn a_transient_answer_carries_its_retry_after_and_no_other_does() {
        let wait = Verdict::retry_after(Duration::from_secs(9));
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert_eq!(verdict(status, Some("9")), wait, "{status}");
        }
        assert_eq!(verdict(404, Some("9")), Verdict::Ignored);
        assert_eq!(verdict(501, Some("9")), Verdict::Permanent);
        assert_eq!(verdict(503, Some("next week")), Verdict::transient());
    }

    #[test]
    fn a_response_that_is_held_back_until_it_is_recorded_says_nothing_about_the_server() {
        let marked = |status: u16, mark: &str| {
            let response = Response::builder().status(status);
            let response = response.header(headers::IDEMPOTENCY_UNRECORDED, mark);
            HttpClassifier::new().classify(Ok::<_, &()>(&response.body(()).unwrap()))
        };
        assert_eq!(marked(503, "true"), Verdict::Ignored);
        assert_eq!(marked(503, "false"), Verdict::transient());
        assert_eq!(marked(500, "true"), Verdict::transient());
        assert_eq!(marked(201, "true"), Verdict::Success);
    }

    /// Sent again, the request gets the same response.
    #[test]
    fn a_failure_that_was_recorded_is_not_tried_again_and_says_nothing_about_the_server() {
        let replayed = |status: u16, mark: &str| {
            let response = Response::builder().status(status);
            let response = response.header(headers::IDEMPOTENT_REPLAYED, mark);
            let response = response.header(header::RETRY_AFTER, "9");
            HttpClassifier::new().classify(Ok::<_, &()>(&response.body(()).unwrap()))
        };
        for status in [402, 409, 408, 429, 500, 501, 502, 503, 504] {
            assert_eq!(replayed(status, "true"), Verdict::Ignored, "{status}");
        }
        assert_eq!(replayed(201, "true"), Verdict::Success);
        let failed = Verdict::retry_after(Duration::from_secs(9));
        assert_eq!(replayed(500, "false"), failed);
    }

    #[test]
    fn an_absurd_retry_after_is_capped() {
        let hour = Verdict::retry_after(Duration::from_secs(3600));
        assert_eq!(verdict(503, Some("31536000")), hour);
        let patient = HttpClassifier::new().max_retry_after(Duration::from_secs(5));
        let response = Response::builder().status(429).header("retry-after", "60");
        let verdict = patient.classify(Ok::<_, &()>(&response.body(()).unwrap()));
        assert_eq!(verdict, Verdict::retry_after(Duration::from_secs(5)));
    }
}
