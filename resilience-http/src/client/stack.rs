//! Any stack over reqwest behind one type.

use std::{future::poll_fn, pin::Pin};

use reqwest::{Request, Response};
use resilience_core::Error;
use tower_service::Service;

/// Future of one call through a [`Client`](super::Client).
pub type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<Response, Error<reqwest::Error>>> + Send>>;

/// A service that clones itself per call, so that a shared reference is enough.
pub(super) trait Stack: Send + Sync {
    fn execute(&self, request: Request) -> ResponseFuture;
}

impl<S> Stack for S
where
    S: Service<Request, Response = Response, Error = Error<reqwest::Error>>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    fn execute(&self, request: Request) -> ResponseFuture {
        let mut service = self.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        })
    }
}
