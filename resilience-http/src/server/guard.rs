//! Layers around handlers whose error type has no room for a rejection.

use resilience_core::{
    bulkhead::{Bulkhead, BulkheadLayer},
    error::wrap::{WrapErrorLayer, WrapErrorService},
};
use tower_layer::Layer;

use super::rejection::{RejectionLayer, RejectionService};
use crate::{body::OnBodyEnd, problem::Problems};

/// Puts `layers` around a handler, a route or a router whose error type has no room for a rejection
/// (axum's is `Infallible`). Inside, the error is [`Error<E>`](resilience_core::Error), as the
/// layers need it; outside it is `E` again, and a rejection is a response.
///
/// `layers` is one layer, or a `tower::ServiceBuilder` of several.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use axum::{Router, routing::get};
/// use resilience_core::Timeout;
/// use resilience_http::server;
/// use tower::ServiceBuilder;
///
/// let timeout = Timeout::new("handlers", Duration::from_secs(2))?;
/// let app: Router = Router::new()
///     .route("/", get(async || "hello"))
///     .layer(server::guard(ServiceBuilder::new().layer(timeout.layer())));
/// # Ok(()) }
/// ```
///
/// The layers must keep the error type, as those of this toolkit do. Tower layers that turn it into
/// a `BoxError` (`Timeout`, `LoadShed`, `Buffer`) need axum's `HandleErrorLayer` outside, where
/// [`Problem::of_error`](crate::problem::Problem::of_error) makes the response.
///
/// **Cost**: none of its own for a call that passes.
pub const fn guard<L>(layers: L) -> GuardLayer<L> {
    GuardLayer {
        layers,
        answer: RejectionLayer::new(),
    }
}

/// Puts a bulkhead around handlers. Each request holds its permit until the end of the response's
/// body, so that a response that streams for a minute counts for a minute. Short for [`guard`] with
/// [`OnBodyEnd`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Router, routing::get};
/// use resilience_core::Bulkhead;
/// use resilience_http::server;
///
/// let reports = Bulkhead::builder("reports").max_concurrent(8).build()?;
/// let app: Router = Router::new()
///     .route("/report", get(async || "a long report").layer(server::bulkhead(&reports)))
///     .route("/health", get(async || "ok"));
/// # Ok(()) }
/// ```
///
/// **Cost**: two allocations per response with a body, in addition to the bulkhead's cost.
/// **Cancellation**: a client that disconnects releases its permit, whether the handler was running
/// or the body was being sent. A handler that goes on (see [`IdempotentRequests`]), or work that it
/// has [carried](resilience_core::admission::carry), keeps the permit until it has ended.
///
/// [`IdempotentRequests`]: super::IdempotentRequests
pub fn bulkhead(bulkhead: &Bulkhead) -> GuardLayer<BulkheadLayer<OnBodyEnd>> {
    guard(bulkhead.layer().complete_on(OnBodyEnd::new()))
}

/// Layer around handlers. Made by [`guard`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct GuardLayer<L, A = Problems> {
    layers: L,
    answer: RejectionLayer<A>,
}

impl<L> GuardLayer<L> {
    /// Sets how rejections become responses: [`Problems`] with other settings, or a closure from
    /// `&Rejected` to a response.
    pub fn answer<A>(self, answer: A) -> GuardLayer<L, A> {
        GuardLayer {
            layers: self.layers,
            answer: RejectionLayer::with(answer),
        }
    }
}

impl<S, L, A> Layer<S> for GuardLayer<L, A>
where
    L: Layer<WrapErrorService<S>>,
    A: Clone,
{
    type Service = RejectionService<L::Service, A>;

    fn layer(&self, inner: S) -> Self::Service {
        let wrapped = WrapErrorLayer::new().layer(inner);
        self.answer.layer(self.layers.layer(wrapped))
    }
}
