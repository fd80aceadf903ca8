//! The layer.

use std::{fmt, sync::Arc};

use resilience_core::idempotency::Idempotency;
use tower_layer::Layer;

use super::{service::IdempotentRequestsService, settings::Settings};

/// Layer that gives requests with an `Idempotency-Key` one effect each. Made by
/// [`IdempotentRequests::layer`](super::IdempotentRequests::layer).
#[derive(Clone)]
#[must_use]
pub struct IdempotentRequestsLayer {
    handle: Idempotency,
    settings: Arc<Settings>,
}

impl IdempotentRequestsLayer {
    pub(super) const fn new(handle: Idempotency, settings: Arc<Settings>) -> Self {
        Self { handle, settings }
    }
}

impl<S> Layer<S> for IdempotentRequestsLayer {
    type Service = IdempotentRequestsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotentRequestsService::new(inner, self.handle.clone(), Arc::clone(&self.settings))
    }
}

impl fmt::Debug for IdempotentRequestsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentRequestsLayer")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
