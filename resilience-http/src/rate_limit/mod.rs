//! Rate limits in headers: `RateLimit-Policy` and `RateLimit`, written by servers and read by
//! clients.
//!
//! ```
//! use std::time::Duration;
//! use http::HeaderMap;
//! use resilience_http::rate_limit::{self, Policy, ServiceLimit};
//!
//! let mut headers = HeaderMap::new();
//! let policy = Policy::new("per-minute", 50).window(Duration::from_secs(60));
//! rate_limit::write_policies(&mut headers, &[policy]);
//! let left = ServiceLimit::new("per-minute", 12).window(Duration::from_millis(1200));
//! rate_limit::write_limits(&mut headers, &[left]);
//! assert_eq!(headers["ratelimit-policy"], "\"per-minute\";q=50;w=60");
//! assert_eq!(headers["ratelimit"], "\"per-minute\";r=12;t=2");
//! assert_eq!(rate_limit::read_limits(&headers)[0].available, 12);
//! ```
//!
//! # References
//! draft-ietf-httpapi-ratelimit-headers-11; RFC 9651 (structured fields, before that RFC 8941).

mod fields;

pub use self::fields::{
    POLICY, Policy, RATE_LIMIT, ServiceLimit, read_limits, read_policies, write_limits,
    write_policies,
};
