//! The handle of a fallback, and its layer.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tower_layer::Layer;

use super::{
    Fallback, FallbackService,
    response::{FallbackResponse, OnError, OnFailure, WhenError},
};
use crate::{
    error::Pattern,
    stripe::Striped,
    telemetry::{self, Reading, Source, counters},
};

/// Layer that responds in place of a failed service. Made by [`Fallback::layer`](super::Fallback::layer).
#[must_use]
pub struct FallbackLayer<A, W = OnError>(Fallback<A, W>);

pub(super) struct Shared<A> {
    pub(super) answer: A,
    pub(super) count: Arc<Count>,
}

/// Name and counters, as the exporter reads them: without type parameters, so that the response needs no bounds.
pub(super) struct Count {
    pub(super) name: Arc<str>,
    counters: Counters,
}

counters! {
    /// Counters of a fallback.
    struct Counters;
    /// Counts of a [`Fallback`] since it was built. From [`Fallback::snapshot`].
    pub struct FallbackSnapshot;
    used = FALLBACK_FALLBACKS, "Calls answered by the fallback.";
}

impl<A, W> Fallback<A, W> {
    pub(super) fn new(name: Arc<str>, answer: A, when: W) -> Self {
        let count = Arc::new(Count {
            name,
            counters: Counters::default(),
        });
        telemetry::register(&count);
        let shared = Striped::new(Shared { answer, count });
        Self { shared, when }
    }

    /// Falls back only on errors for which `applies` is true.
    pub fn when<E, P: Fn(&E) -> bool>(self, applies: P) -> Fallback<A, WhenError<P>> {
        Fallback {
            shared: self.shared,
            when: WhenError(applies),
        }
    }

    /// Falls back on errors and responses that `classifier` judges as failures, and on rejections. Results that it
    /// ignores (the caller's own fault) are returned unchanged.
    ///
    /// [`by`](Self::by) and [`by_async`](Self::by_async) handle errors only: with them a failed response is returned
    /// unchanged.
    pub fn classify<C>(self, classifier: C) -> Fallback<A, OnFailure<C>> {
        Fallback {
            shared: self.shared,
            when: OnFailure(classifier),
        }
    }

    /// A layer with this fallback. All layers share the response and the counters.
    pub fn layer(&self) -> FallbackLayer<A, W>
    where
        W: Clone,
    {
        FallbackLayer(self.clone())
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.count.name
    }

    /// The counts since it was built.
    #[must_use]
    pub fn snapshot(&self) -> FallbackSnapshot {
        self.shared.count.counters.snapshot()
    }
}

impl Source for Count {
    fn pattern(&self) -> Pattern {
        Pattern::Fallback
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.counters.read(out);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl<S, A, W: Clone> Layer<S> for FallbackLayer<A, W> {
    type Service = FallbackService<S, A, W>;

    fn layer(&self, inner: S) -> Self::Service {
        let Fallback { shared, when } = &self.0;
        FallbackService::new(inner, shared.clone(), when.clone())
    }
}

impl<A> Shared<A> {
    #[cold]
    pub(super) fn fall_back<Req, Res, E>(
        &self,
        failed: Result<Res, E>,
        note: A::Note,
    ) -> Result<A::Future, Result<Res, E>>
    where
        A: FallbackResponse<Req, Res, E>,
    {
        let was_error = failed.is_err();
        let answer = self.answer.answer(failed, note)?;
        let name = &*self.count.name;
        self.count.counters.used.fetch_add(1, Relaxed);
        let pattern = Pattern::Fallback.as_str();
        tracing::debug!(target: "resilience", pattern, name, was_error, "fell back");
        Ok(answer)
    }
}

impl<A, W: Clone> Clone for Fallback<A, W> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            when: self.when.clone(),
        }
    }
}

impl<A, W: Clone> Clone for FallbackLayer<A, W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A, W> fmt::Debug for Fallback<A, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

impl<A, W> fmt::Debug for FallbackLayer<A, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FallbackLayer").field(&self.0).finish()
    }
}
