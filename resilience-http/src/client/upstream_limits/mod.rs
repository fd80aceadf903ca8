//! Rate limits that upstream servers advertise, enforced before a request is sent.
//!
//! # References
//! RFC 9110 section 10.2.3 (`Retry-After`); draft-ietf-httpapi-ratelimit-headers-11 (`RateLimit`,
//! `RateLimit-Policy`).

mod layer;
mod policy;
mod reader;

pub use self::{
    layer::{UpstreamLimitsLayer, UpstreamLimitsService},
    policy::{Target, UpstreamLimitsPolicy},
    reader::UpstreamLimitsReader,
};
