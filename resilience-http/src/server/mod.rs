//! The inbound side: layers for axum and any other tower HTTP server.
//!
//! | item | purpose |
//! |---|---|
//! | [`InboundDeadline`] | reads the client's deadline, and ends the request by then: 504 |
//! | [`guard`] | puts layers of this toolkit around handlers, and turns their rejections into responses: 503, 429, 504 |
//! | [`bulkhead`](fn@bulkhead) | limits concurrent requests, response bodies included: 503 |
//! | [`LimitRequests`] | limits the rate of requests per client, and reports the limits in headers: 429 |
//! | [`IdempotentRequests`] | serves requests with the same `Idempotency-Key` once, and replays the response: 409, 422 |
//! | [`RejectionLayer`] | turns rejections into responses, for services whose error is [`Error<E>`](resilience_core::Error) already |
//! | [`Problem`](crate::problem::Problem) | a problem document, as a response and as an error type for handlers |
//!
//! The layers go on a whole router, on one route, or on any `Service<http::Request<_>, Response =
//! http::Response<_>>`:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use axum::{Router, routing::get};
//! use resilience_core::{Timeout, deadline};
//! use resilience_http::{InboundDeadline, server};
//!
//! let inbound = InboundDeadline::new("inbound", Duration::from_secs(10))?;
//! let reports = Timeout::new("reports", Duration::from_secs(2))?;
//!
//! let app: Router = Router::new()
//!     .route("/report", get(async || "a report").layer(server::guard(reports.layer())))
//!     .route("/left", get(async || format!("{:?}", deadline::current())))
//!     .layer(inbound.layer());
//! # let request = http::Request::get("/report").header("request-timeout-ms", "0").body(axum::body::Body::empty())?;
//! # let response = tower::ServiceExt::oneshot(app, request).await?;
//! # assert_eq!(response.status(), 504);
//! # Ok(()) }
//! ```
//!
//! # Order
//!
//! [`InboundDeadline`] outermost, so that the time in a bulkhead's queue counts too. Then rate
//! limits and bulkheads, then [`IdempotentRequests`], then the handler. Breakers and retries belong
//! around the calls that the handler *makes*, not around the handler.
//!
//! In this order no more handlers are in progress than the bulkhead has places, whatever ends the
//! requests: clients that hang up or reset their streams, deadlines. A handler behind
//! [`IdempotentRequests`], which goes on by itself, keeps its place until it has ended; so does work
//! that a handler spawns with [`carry`](resilience_core::admission::carry) or
//! [`carry_fn`](resilience_core::admission::carry_fn). Such work should have a time limit
//! of its own: see [`deadline`](resilience_core::deadline#what-is-not-ended). A request that waits for
//! the outcome of another one with its key takes a place too. With the bulkhead inside of
//! [`IdempotentRequests`] it does not, but a request for which there is no place costs what one that is served
//! costs: its body in memory, and two steps of the store.
//!
//! # State
//!
//! axum clones services for every connection and request. The layers of this toolkit keep their
//! state in their handle, so a bulkhead is the same one on all routes and connections.

mod address;
mod digest;
mod guard;
mod idempotency;
mod inbound;
mod rate_limit;
mod rejection;

pub use address::{ClientAddress, Forwarding};
pub use guard::{GuardLayer, bulkhead, guard};
#[cfg(feature = "axum")]
pub use idempotency::RequestAttempt;
pub use idempotency::{
    IDEMPOTENT_REPLAYED, IdempotentBody, IdempotentRequests, IdempotentRequestsFuture,
    IdempotentRequestsLayer, IdempotentRequestsService, MissingCredentials,
};
pub use inbound::{
    GRPC_TIMEOUT, InboundDeadline, InboundDeadlineFuture, InboundDeadlineLayer,
    InboundDeadlineService, Malformed, parse_grpc_timeout,
};
pub use rate_limit::{
    LimitKey, LimitRequests, LimitRequestsFuture, LimitRequestsLayer, LimitRequestsService,
    MissingKey, RequestLimit,
};
pub use rejection::{RejectionFuture, RejectionLayer, RejectionService};
