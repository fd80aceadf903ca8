//! resilience-core for HTTP.
