//! The end of a call: reading the limits that the response advertises.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use resilience_core::{
    Verdict,
    completion::Completion,
    limit::upstream::{Advertised, Permit},
};

use crate::{
    headers,
    rate_limit::{self, ServiceLimit},
};

/// Completion of [`UpstreamLimitsLayer`](super::UpstreamLimitsLayer): reads the headers of a
/// response and tells [`UpstreamLimits`](resilience_core::limit::upstream::UpstreamLimits) what
/// they advertise.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamLimitsReader {
    budgets: bool,
}

impl UpstreamLimitsReader {
    pub(super) const fn new() -> Self {
        Self { budgets: true }
    }

    pub(super) const fn with_budgets(mut self, kept: bool) -> Self {
        self.budgets = kept;
        self
    }

    fn observe(self, status: StatusCode, headers: &HeaderMap, permit: Permit) {
        if let Some(advertised) = self.advertised(status, headers) {
            permit.observe(advertised);
        }
    }

    fn advertised(self, status: StatusCode, headers: &HeaderMap) -> Option<Advertised> {
        if matches!(status.as_u16(), 429 | 503)
            && let Some(wait) = headers::retry_after(headers, Duration::MAX)
        {
            return Some(Advertised::RetryAfter(wait));
        }
        if !headers.contains_key(rate_limit::RATE_LIMIT) {
            return None;
        }
        let limits = rate_limit::read_limits(headers);
        let nothing = limits.iter().filter(|limit| limit.available == 0);
        if let Some(wait) = nothing.filter_map(|limit| limit.window).max() {
            return Some(Advertised::RetryAfter(wait));
        }
        let requests = limits
            .iter()
            .filter(|limit| counts_requests(limit, headers));
        let left = requests.filter_map(|limit| Some((limit.available, limit.window?)));
        let (calls, window) = left.min().filter(|_| self.budgets)?;
        (calls > 0).then_some(Advertised::Remaining(calls, window))
    }
}

fn counts_requests(limit: &ServiceLimit, headers: &HeaderMap) -> bool {
    let policies = rate_limit::read_policies(headers);
    let policy = policies.iter().find(|policy| policy.name == limit.name);
    let unit = policy.and_then(|policy| policy.unit.as_deref());
    unit.is_none_or(|unit| unit == "requests")
}

impl Completion<reqwest::Response, Permit> for UpstreamLimitsReader {
    type Response = reqwest::Response;

    const DEFERS: bool = false;

    fn hold(&self, response: reqwest::Response, _: Verdict, permit: Permit) -> reqwest::Response {
        self.observe(response.status(), response.headers(), permit);
        response
    }
}

impl<B> Completion<http::Response<B>, Permit> for UpstreamLimitsReader {
    type Response = http::Response<B>;

    const DEFERS: bool = false;

    fn hold(&self, response: http::Response<B>, _: Verdict, permit: Permit) -> http::Response<B> {
        self.observe(response.status(), response.headers(), permit);
        response
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use resilience_core::limit::upstream::Advertised::{Remaining, RetryAfter};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn advertised(status: u16, fields: &[(&str, &str)]) -> Option<Advertised> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        UpstreamLimitsReader::new().advertised(status, &headers)
    }

    #[test]
    fn what_servers_say_is_understood_as_the_table_has_it() {
        let after = ("retry-after", "30");
        assert_eq!(advertised(429, &[after]), Some(RetryAfter(30 * SECOND)));
        assert_eq!(advertised(503, &[after]), Some(RetryAfter(30 * SECOND)));
        assert_eq!(advertised(200, &[after]), None);
        assert_eq!(advertised(409, &[after]), None, "that is about one request");
        assert_eq!(advertised(429, &[]), None);
        let nothing = ("ratelimit", r#""a";r=5;t=9, "b";r=0;t=7, "c";r=0;t=60"#);
        assert_eq!(advertised(200, &[nothing]), Some(RetryAfter(60 * SECOND)));
        assert_eq!(
            advertised(429, &[nothing, after]),
            Some(RetryAfter(30 * SECOND))
        );
        let some = ("ratelimit", r#""a";r=5;t=9, "b";r=3;t=7"#);
        assert_eq!(advertised(200, &[some]), Some(Remaining(3, 7 * SECOND)));
        let bytes = (
            "ratelimit-policy",
            r#""b";q=100;qu="content-bytes", "a";q=9"#,
        );
        assert_eq!(
            advertised(200, &[some, bytes]),
            Some(Remaining(5, 9 * SECOND))
        );
        assert_eq!(
            advertised(200, &[("ratelimit", r#""a";r=5"#)]),
            None,
            "for how long?"
        );
        assert_eq!(advertised(200, &[("ratelimit", "nonsense;;")]), None);
    }
}
