//! The layer.

use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::{decision::RequestLimit, service::LimitRequestsService, settings::Settings};

/// Layer that holds requests to a rate limit. Made by
/// [`LimitRequests::layer`](super::LimitRequests::layer).
#[must_use]
pub struct LimitRequestsLayer<L: RequestLimit> {
    limit: L,
    settings: Arc<Settings<L>>,
}

impl<L: RequestLimit> LimitRequestsLayer<L> {
    pub(super) const fn new(limit: L, settings: Arc<Settings<L>>) -> Self {
        Self { limit, settings }
    }
}

impl<L: RequestLimit> Clone for LimitRequestsLayer<L> {
    fn clone(&self) -> Self {
        Self::new(self.limit.clone(), Arc::clone(&self.settings))
    }
}

impl<L: RequestLimit + fmt::Debug> fmt::Debug for LimitRequestsLayer<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitRequestsLayer")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl<S, L: RequestLimit> Layer<S> for LimitRequestsLayer<L> {
    type Service = LimitRequestsService<S, L>;

    fn layer(&self, inner: S) -> Self::Service {
        LimitRequestsService::new(inner, self.limit.clone(), Arc::clone(&self.settings))
    }
}
