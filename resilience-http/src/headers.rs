//! Headers that carry resilience between processes: `Retry-After`, the deadline, the idempotency
//! key, and the mark of a response without a record.
//!
//! Everything here parses untrusted input: no value causes a panic, and every duration that is
//! returned is bounded.
//!
//! ```
//! use std::time::Duration;
//! use http::{HeaderMap, HeaderValue, header};
//! use resilience_http::headers;
//!
//! let mut response = HeaderMap::new();
//! response.insert(header::RETRY_AFTER, HeaderValue::from_static("120"));
//! let cap = Duration::from_secs(60);
//! assert_eq!(headers::retry_after(&response, cap), Some(cap));
//!
//! let mut request = HeaderMap::new();
//! request.insert(headers::DEADLINE, headers::format_deadline(Duration::from_micros(1_999_900)));
//! assert_eq!(headers::deadline(&request, &headers::DEADLINE), Some(Duration::from_millis(1999)));
//! ```
//!
//! # References
//! RFC 9110 section 10.2.3 (`Retry-After`) and section 5.6.7 (dates);
//! draft-ietf-httpapi-idempotency-key-header-07.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The default deadline header: the milliseconds that the caller will still wait, as a decimal
/// integer.
///
/// A duration and not a point in time, because the clocks of two machines differ. There is no
/// standard header; Envoy's `x-envoy-expected-rq-timeout-ms` has the same meaning and format, and
/// can be used instead.
pub const DEADLINE: HeaderName = HeaderName::from_static("request-timeout-ms");

/// The header that makes a request safe to repeat, whatever its method
/// (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Marks a response to a request with an idempotency key that is not recorded: `true`. A repetition
/// with the same key may get another response.
///
/// On a 503 it says that the request was processed and that its response is held back
/// ([`Reason::Unrecorded`](resilience_core::Reason::Unrecorded)): neither a failure of the server,
/// nor to be repeated at once.
pub const IDEMPOTENCY_UNRECORDED: HeaderName = HeaderName::from_static("idempotency-unrecorded");

/// Marks a response that was recorded for an earlier request with the same idempotency key: `true`. It
/// says nothing about the server's state.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The maximum deadline that is accepted, one day. Longer ones are capped.
pub const MAX_DEADLINE: Duration = Duration::from_secs(86_400);

/// Reads `Retry-After`, the time to wait before the next request. `None` if it is absent or
/// malformed.
///
/// Both forms of RFC 9110 are supported, seconds and date. A date is compared with the `Date` of
/// the same response, so that only the sender's clock matters, or without one with the wall clock
/// of this machine. A date in the past is zero. Capped at `cap`.
#[must_use]
pub fn retry_after(headers: &HeaderMap, cap: Duration) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match integer(value) {
        Some(seconds) => Duration::from_secs(seconds),
        None => wall::until(value, headers.get(header::DATE))?,
    };
    Some(wait.min(cap))
}

/// Formats the value of `Retry-After`: whole seconds, rounded up, at least 1.
#[must_use]
pub fn format_retry_after(wait: Duration) -> HeaderValue {
    HeaderValue::from(whole_seconds(wait))
}

/// The duration in whole seconds, rounded up, at least 1.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    let up = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(up).max(1)
}

/// Reads the deadline header called `name`, the time left for this request. `None` if it is absent
/// or malformed.
///
/// If it was sent more than once, the shortest value counts. Capped at [`MAX_DEADLINE`].
#[must_use]
pub fn deadline(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    let values = headers.get_all(name).iter();
    values.filter_map(parse_deadline).min()
}

/// Parses a value of the deadline header. `None` unless it is a decimal integer. Capped at
/// [`MAX_DEADLINE`].
#[must_use]
pub fn parse_deadline(value: &HeaderValue) -> Option<Duration> {
    let millis = integer(value.to_str().ok()?.trim())?;
    Some(Duration::from_millis(millis).min(MAX_DEADLINE))
}

/// Formats the value of the deadline header: whole milliseconds, rounded down (so that no more is
/// promised than is left), at least 1.
#[must_use]
pub fn format_deadline(remaining: Duration) -> HeaderValue {
    let millis = remaining.min(MAX_DEADLINE).as_millis();
    HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX).max(1))
}

/// Parses digits alone (`parse` would accept a sign). Saturates.
fn integer(value: &str) -> Option<u64> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

/// Reading of dates.
mod wall {
    // A date in a header is of a wall clock; it is compared with the sender's own where possible.
    #![allow(clippy::disallowed_types)]

    use std::time::{Duration, SystemTime};

    use http::HeaderValue;

    pub(super) fn until(at: &str, sent: Option<&HeaderValue>) -> Option<Duration> {
        let at = httpdate::parse_http_date(at).ok()?;
        let now = sent.and_then(date).unwrap_or_else(SystemTime::now);
        Some(at.duration_since(now).unwrap_or(Duration::ZERO))
    }

    fn date(value: &HeaderValue) -> Option<SystemTime> {
        httpdate::parse_http_date(value.to_str().ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn answer(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let parse = |(name, value): &(HeaderName, &str)| (name.clone(), value.parse().unwrap());
        pairs.iter().map(parse).collect()
    }

    fn asked(value: &str) -> Option<Duration> {
        retry_after(&answer(&[(header::RETRY_AFTER, value)]), HOUR)
    }

    #[test]
    fn seconds_are_read_and_capped() {
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked(" 0 "), Some(Duration::ZERO));
        assert_eq!(asked("3601"), Some(HOUR));
        assert_eq!(asked("99999999999999999999999999"), Some(HOUR));
    }

    #[test]
    fn what_is_neither_seconds_nor_a_date_is_no_advice() {
        for value in [
            "",
            "-1",
            "+5",
            "1.5",
            "5s",
            "soon",
            "1e3",
            "0x10",
            "Sun, 99 Nov 1994",
        ] {
            assert_eq!(asked(value), None, "{value:?}");
        }
    }

    #[test]
    fn a_date_is_measured_by_the_senders_own_clock() {
        // Both dates are long past: only their difference counts.
        let headers = answer(&[
            (header::DATE, "Sun, 06 Nov 1994 08:49:07 GMT"),
            (header::RETRY_AFTER, "Sun, 06 Nov 1994 08:49:37 GMT"),
        ]);
        assert_eq!(retry_after(&headers, HOUR), Some(Duration::from_secs(30)));
    }

    #[test]
    fn all_three_forms_of_date_are_read() {
        for value in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            let headers = answer(&[
                (header::DATE, "Sun, 06 Nov 1994 08:49:30 GMT"),
                (header::RETRY_AFTER, value),
            ]);
            let expected = Some(Duration::from_secs(7));
            assert_eq!(retry_after(&headers, HOUR), expected, "{value}");
        }
    }

    #[test]
    fn a_date_without_the_senders_clock_is_measured_by_ours() {
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("Fri, 31 Dec 9999 23:59:59 GMT"), Some(HOUR));
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        let text = |wait| format_retry_after(wait).to_str().unwrap().to_owned();
        assert_eq!(text(Duration::ZERO), "1");
        assert_eq!(text(Duration::from_millis(1001)), "2");
        assert_eq!(text(Duration::from_secs(5)), "5");
        assert_eq!(text(Duration::MAX), u64::MAX.to_string());
    }

    #[test]
    fn a_deadline_is_rounded_down_and_a_call_that_is_made_has_a_millisecond() {
        let text = |left| format_deadline(left).to_str().unwrap().to_owned();
        assert_eq!(text(Duration::from_micros(1999)), "1");
        assert_eq!(text(Duration::ZERO), "1");
        assert_eq!(text(Duration::MAX), "86400000");
    }

    #[test]
    fn of_several_deadlines_the_shortest_counts() {
        let mut headers = answer(&[(DEADLINE, "500")]);
        headers.append(DEADLINE, HeaderValue::from_static("nonsense"));
        headers.append(DEADLINE, HeaderValue::from_static("200"));
        let left = deadline(&headers, &DEADLINE);
        assert_eq!(left, Some(Duration::from_millis(200)));
        assert_eq!(deadline(&HeaderMap::new(), &DEADLINE), None);
    }

    proptest! {
        #[test]
        fn whatever_bytes_arrive_nothing_panics_and_all_is_bounded(
            value in prop::collection::vec(any::<u8>(), 0..64),
            date in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(header::RETRY_AFTER, value.clone());
                headers.insert(DEADLINE, value);
            }
            if let Ok(date) = HeaderValue::from_bytes(&date) {
                headers.insert(header::DATE, date);
            }
            prop_assert!(retry_after(&headers, HOUR).is_none_or(|wait| wait <= HOUR));
            prop_assert!(deadline(&headers, &DEADLINE).is_none_or(|left| left <= MAX_DEADLINE));
        }

        #[test]
        fn near_misses_of_a_date_do_not_panic(
            value in "(Sun|Mon|[A-Z][a-z]{0,8}),? [0-9]{0,3}[ -](Nov|Feb|[A-Z][a-z]{2})[ -][0-9]{0,5} [0-9]{0,3}:[0-9]{0,3}:[0-9]{0,3}( GMT)?",
        ) {
            prop_assert!(asked(&value).is_none_or(|wait| wait <= HOUR));
        }

        #[test]
        fn a_deadline_survives_the_wire_to_the_millisecond(millis in 1u64..=86_400_000, extra in 0u32..1_000_000) {
            let sent = Duration::from_millis(millis) + Duration::from_nanos(extra.into());
            let received = parse_deadline(&format_deadline(sent)).unwrap();
            prop_assert_eq!(received, Duration::from_millis(millis).min(MAX_DEADLINE));
        }

        #[test]
        fn a_wait_survives_the_wire_and_is_never_shortened(wait in 0u64..100_000_000) {
            let wait = Duration::from_millis(wait);
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, format_retry_after(wait))]);
            let received = retry_after(&headers, Duration::MAX).unwrap();
            prop_assert!(received >= wait && received <= wait + Duration::from_secs(1));
        }

        #[test]
        fn a_date_says_how_many_seconds_after_its_answer(sent in 0u64..4_000_000_000, wait in 0u64..3600) {
            let date = |seconds| wall_date(seconds);
            let headers = answer(&[
                (header::DATE, &date(sent)),
                (header::RETRY_AFTER, &date(sent + wait)),
            ]);
            prop_assert_eq!(retry_after(&headers, HOUR), Some(Duration::from_secs(wait)));
        }
    }

    #[allow(clippy::disallowed_types)]
    fn wall_date(seconds: u64) -> String {
        httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(seconds))
    }
}
