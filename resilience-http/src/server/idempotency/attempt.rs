//! The attempt as an extractor of axum.

use std::convert::Infallible;

use axum_core::extract::FromRequestParts;
use http::request::Parts;
use resilience_core::idempotency::Attempt;

/// Extractor of the [`Attempt`] that a handler is part of: `None` for a request that passes unprotected,
/// because it has no key or is of another method.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Router, routing::post};
/// use resilience_core::Idempotency;
/// use resilience_http::{IdempotentRequests, server::RequestAttempt};
///
/// async fn pay(RequestAttempt(attempt): RequestAttempt) -> String {
///     // For the calls that the handler makes.
///     let key = attempt.map(|attempt| attempt.child_key("charge"));
///     key.unwrap_or_else(|| "no key".into())
/// }
///
/// let payments = Idempotency::builder("payments").build()?;
/// let once = IdempotentRequests::new(&payments);
/// let app: Router = Router::new().route("/payments", post(pay)).layer(once.layer());
/// # let without = http::Request::post("/payments").body(axum::body::Body::empty())?;
/// # let response = tower::ServiceExt::oneshot(app, without).await?;
/// # assert_eq!(axum::body::to_bytes(response.into_body(), 99).await?, "no key");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RequestAttempt(pub Option<Attempt>);

impl<S: Sync> FromRequestParts<S> for RequestAttempt {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get().cloned()))
    }
}
