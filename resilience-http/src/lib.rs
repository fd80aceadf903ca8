//! HTTP integration of [`resilience_core`]: a guarded reqwest client, and layers for axum and any
//! other tower HTTP server.
//!
//! | module | side | content |
//! |---|---|---|
//! | [`client`] | outbound | a guarded reqwest client, and the services and layers for a stack of your own |
//! | [`server`] | inbound | deadlines, rate limits, bulkheads and idempotency around handlers |
//! | [`problem`] | inbound | problem documents for every [`Rejected`](resilience_core::Rejected) |
//! | [`body`] | both | calls that end with the response body |
//! | [`classify`] | both | classification of responses and errors |
//! | [`headers`] | both | `Retry-After`, the deadline, the idempotency key |
//! | [`idempotency`] | both | `Idempotency-Key`; for servers, fingerprints and recorded responses |
//! | [`rate_limit`] | both | `RateLimit` and `RateLimit-Policy` |
//!
//! # Features
//! `client` and `server` (both on by default); `rustls` or `native-tls` for `https`; `otel` to
//! propagate the OpenTelemetry context; `axum` to return a [`problem::Problem`] from its handlers.

#![cfg_attr(docsrs, feature(doc_cfg))]

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
pub use client::{Client, IdempotencyKeys, Propagation, UpstreamLimitsLayer};
#[cfg(feature = "server")]
pub use problem::Problem;
#[cfg(feature = "server")]
pub use server::{IdempotentRequests, InboundDeadline, LimitKey, LimitRequests, RejectionLayer};

/// The examples of the README, as tests.
#[cfg(all(doctest, feature = "client", feature = "server"))]
#[doc = include_str!("../README.md")]
struct Readme;
