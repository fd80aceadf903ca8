//! Layer and service of the retry.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

use super::{
    ByRequest, Replay, ResponseFuture,
    attempt::{self},
    builder::Shared,
};
use crate::{
    classify::{Classify, Standard},
    error::{Pattern, ServiceError},
    order::{self, Part, setting},
    stripe::Striped,
};

/// Layer that retries failed calls whose request may be sent again. Made by [`Retry::layer`](super::Retry::layer).
#[derive(Clone)]
pub struct RetryLayer<C = Standard, R = ByRequest> {
    shared: Arc<Shared>,
    classifier: C,
    replay: R,
}

impl<C, R> RetryLayer<C, R> {
    pub(super) const fn new(shared: Arc<Shared>, classifier: C, replay: R) -> Self {
        Self {
            shared,
            classifier,
            replay,
        }
    }

    /// Judges results by `classifier` instead of [`Standard`].
    #[must_use]
    pub fn classify<D>(self, classifier: D) -> RetryLayer<D, R> {
        RetryLayer::new(self.shared, classifier, self.replay)
    }

    /// Uses `replay` instead of [`ByRequest`] to decide which requests may be sent again.
    #[must_use]
    pub fn replay<Q>(self, replay: Q) -> RetryLayer<C, Q> {
        RetryLayer::new(self.shared, self.classifier, replay)
    }
}

impl<S: Clone, C: Clone, R: Clone> Layer<S> for RetryLayer<C, R> {
    type Service = RetryService<S, C, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let core = Striped::new(Core {
            template: Mutex::new(inner.clone()),
            classifier: self.classifier.clone(),
            replay: self.replay.clone(),
            shared: Arc::clone(&self.shared),
        });
        RetryService { inner, core }
    }
}

impl<C, R> fmt::Debug for RetryLayer<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("rules", &self.shared.rules)
            .finish_non_exhaustive()
    }
}

/// State that all clones of one service share.
pub(super) struct Core<S, C, R> {
    /// The service of later attempts: cloned for a retry, not for a call that passes. It is never polled, so it reserves
    /// nothing.
    template: Mutex<S>,
    pub(super) classifier: C,
    pub(super) replay: R,
    pub(super) shared: Arc<Shared>,
}

impl<S: Clone, C, R> Core<S, C, R> {
    pub(super) fn service(&self) -> S {
        self.template
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Service that retries. Made by [`RetryLayer`].
pub struct RetryService<S, C = Standard, R = ByRequest> {
    inner: S,
    core: Striped<Core<S, C, R>>,
}

impl<S, C, R> RetryService<S, C, R> {
    /// The service of first attempts.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone, C, R> Clone for RetryService<S, C, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            core: self.core.clone(),
        }
    }
}

impl<S: fmt::Debug, C, R> fmt::Debug for RetryService<S, C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter(|| {
            let shared = &self.core.shared;
            Part::new(Pattern::Retry, Arc::clone(&shared.name))
                .set(setting::MAX_ATTEMPTS, shared.rules.max_attempts)
        });
        f.debug_struct("RetryService")
            .field("inner", &self.inner)
            .field("rules", &self.core.shared.rules)
            .finish_non_exhaustive()
    }
}

impl<S, C, R, Req> Service<Req> for RetryService<S, C, R>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    C: Classify<S::Response, S::Error>,
    R: Replay<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, C, R, Req>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, req: Req) -> Self::Future {
        let core = self.core.local();
        let spare = if core.shared.rules.max_attempts > 1 {
            core.replay.replay(&req)
        } else {
            None
        };
        let attempt = {
            let _attempt = attempt::enter(1);
            self.inner.call(req)
        };
        ResponseFuture::new(attempt, core, spare)
    }
}
