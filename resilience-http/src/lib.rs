//! resilience-core for HTTP.

#[cfg(feature = "server")]
pub mod problem;
