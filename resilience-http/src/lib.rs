//! resilience-core for HTTP.
//!
//! | module | for whom |
//! |---|---|
//! | [`client`] | who calls others with reqwest: a guarded client, and services and layers for a stack of one's own |
//! | [`problem`] | who answers: every [`Rejected`](resilience_core::Rejected) as a problem document |
//! | [`server`] | who answers with axum or any tower HTTP server: inbound deadlines, limits around handlers |
//! | [`body`] | both: an answer is over when its body is |
//! | [`classify`] | both: what an answer says about the server |
//! | [`headers`] | both: `Retry-After`, the deadline, the idempotency key |
//! | [`idempotency`] | both: the key in its header; for servers, fingerprints and recorded responses |
//! | [`rate_limit`] | both: `RateLimit` and `RateLimit-Policy` |
//!
//! Features: `client` and `server` (both on by default); `rustls` or `native-tls` for `https`; `otel` to pass the
//! OpenTelemetry context on; `axum` to return a [`problem::Problem`] from its handlers.

pub mod body;
pub mod classify;
#[cfg(feature = "client")]
pub mod client;
pub mod headers;
#[cfg(any(feature = "client", feature = "server"))]
pub mod idempotency;
#[cfg(feature = "server")]
pub mod problem;
#[cfg(any(feature = "client", feature = "server"))]
pub mod rate_limit;
#[cfg(feature = "server")]
pub mod server;

pub use body::OnBodyEnd;
pub use classify::HttpClassifier;
#[cfg(feature = "client")]
pub use client::Client;
