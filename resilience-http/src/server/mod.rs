//! The inbound side: layers for axum and any other tower HTTP server.
//!
//! | | what it does |
//! |---|---|
//! | [`InboundDeadline`] | reads how long the client will wait, and ends the request by then: 504 |
//! | [`guard`] | puts layers of this toolkit around handlers, and answers their rejections: 503, 429, 504 |
//! | [`bulkhead`](fn@bulkhead) | limits how many requests are served at once, bodies included: 503 |
//! | [`LimitRequests`] | holds requests to a rate limit, by client, and tells clients how they stand: 429 |
//! | [`IdempotentRequests`] | serves a request with an `Idempotency-Key` once, and gives its answer again: 409, 422 |
//! | [`RejectionLayer`] | the answering half alone, for services that speak [`Error<E>`](resilience_core::Error) themselves |
//! | [`Problem`](crate::problem::Problem) | the answer, and an error type for handlers |
//!
//! They go on a whole router, on one route, or on any `Service<http::Request<_>, Response = http::Response<_>>`:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use axum::{Router, routing::get};
//! use resilience_core::deadline::{self, Timeout};
//! use resilience_http::server::{self, InboundDeadline};
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
//! [`InboundDeadline`] outermost: what waits in the queue of a bulkhead waits within the deadline. Then limits, then
//! the handler. Breakers and retries belong around what the handler *calls*, not around the handler.
//!
//! # State
//!
//! axum clones services for every connection and request. The layers of this toolkit keep their state in their
//! handle, so one bulkhead is one bulkhead over all routes and connections that its layers are on.

mod address;
mod digest;
mod guard;
mod idempotency;
mod inbound;
mod rate_limit;
mod rejection;

pub use address::{ClientAddress, Forwarding};
pub use guard::{GuardLayer, bulkhead, guard};
pub use idempotency::{
    IDEMPOTENT_REPLAYED, IdempotentBody, IdempotentRequests, IdempotentRequestsFuture,
    IdempotentRequestsLayer, IdempotentRequestsService,
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
