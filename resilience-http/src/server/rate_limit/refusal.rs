//! The response to a request that does not reach the handler.

use http::{Response, StatusCode};

use super::{decision::RequestDecision, fields::LimitHeaders};
use crate::problem::{Problem, TYPE_PREFIX};

/// The type of the document of a request that exceeds a quota
/// (draft-ietf-httpapi-ratelimit-headers-11, section 5.1).
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// Why the handler was not called.
pub(super) enum Refusal {
    Limited(RequestDecision),
    NoKey,
}

impl Refusal {
    pub(super) fn into_response<R: From<String>>(
        self,
        headers: Option<&(LimitHeaders, [u8; 8])>,
    ) -> Response<R> {
        let Self::Limited(decision) = self else {
            return Problem::new(StatusCode::BAD_REQUEST, "No key for the rate limit")
                .with_type(format!("{TYPE_PREFIX}rate_limit:no_key"))
                .with_detail(
                    "The request does not carry the key that its rate limit is counted by.",
                )
                .into_response();
        };
        let problem = match (decision.rejected, headers) {
            (Some(rejected), Some((headers, _))) => {
                let wait = rejected.retry_after();
                let jittered = wait.map(|wait| headers.jittered(wait));
                let rejected = match jittered {
                    Some(wait) => rejected.with_retry_after(wait),
                    None => rejected,
                };
                Problem::from(rejected).with_exact_wait(wait)
            }
            (rejected, _) => rejected.map_or_else(
                || Problem::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
                Problem::from,
            ),
        };
        let problem = match decision.binding {
            Some(name) if problem.status() == StatusCode::TOO_MANY_REQUESTS => {
                problem.with_type(QUOTA_EXCEEDED).with_violated_policy(name)
            }
            _ => problem,
        };
        let mut response = problem.into_response();
        if let Some((headers, key)) = headers {
            headers.write(&decision.limits, *key, response.headers_mut());
        }
        response
    }
}
