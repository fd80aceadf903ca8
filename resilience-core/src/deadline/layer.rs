//! Layer of the timeout, and the choice of a timeout per request.

use std::{fmt, time::Duration};

use tower_layer::Layer;

use super::{TimeoutService, timeout::Shared};
use crate::stripe::Striped;

/// Timeout per request. Implemented by closures `Fn(&Req) -> Option<Duration>`.
pub trait PerRequest<Req> {
    /// Returns the timeout of this call; `None` for the handle's own. Zero rejects the call: no time is left.
    fn timeout(&self, req: &Req) -> Option<Duration>;
}

impl<Req, F: Fn(&Req) -> Option<Duration>> PerRequest<Req> for F {
    fn timeout(&self, req: &Req) -> Option<Duration> {
        self(req)
    }
}

/// The handle's timeout for every call: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameForAll;

impl<Req> PerRequest<Req> for SameForAll {
    #[inline]
    fn timeout(&self, _: &Req) -> Option<Duration> {
        None
    }
}

/// Layer that bounds calls by a deadline and makes it the current one below. Made by
/// [`Timeout::layer`](super::Timeout::layer).
///
/// The inner service must be `Clone`: when a call is rejected, a fresh clone replaces the inner service that was ready
/// for it, or still waits to become ready. What that one has reserved (e.g. a permit of a `ConcurrencyLimit`) is
/// released.
pub struct TimeoutLayer<P = SameForAll> {
    shared: Striped<Shared>,
    per_request: P,
    form: Form,
}

/// What a layer is for; the same for all of its services.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Form {
    /// Readiness is passed on unchanged.
    pub(super) gate: bool,
    /// The timeout may depend on the request.
    pub(super) per_request: bool,
    /// It bounds one attempt of a retry above it.
    pub(super) per_attempt: bool,
}

impl<P> TimeoutLayer<P> {
    pub(super) const fn new(shared: Striped<Shared>, per_request: P) -> Self {
        Self {
            shared,
            per_request,
            form: Form {
                gate: false,
                per_request: false,
                per_attempt: false,
            },
        }
    }

    /// Sets the timeout of each call by `choose`, shorter or longer than the handle's. The current deadline still bounds
    /// the call.
    #[must_use]
    pub fn per_request<Req, F>(self, choose: F) -> TimeoutLayer<F>
    where
        F: Fn(&Req) -> Option<Duration>,
    {
        TimeoutLayer {
            shared: self.shared,
            per_request: choose,
            form: Form {
                per_request: true,
                ..self.form
            },
        }
    }

    /// Passes the inner service's readiness on unchanged, without a bound: for use under `tower::balance`, which must
    /// not pick a service that is only ready to reject.
    #[must_use]
    pub fn gate(mut self) -> Self {
        self.form.gate = true;
        self
    }

    /// Declares that it bounds one attempt of a retry above it, and that another deadline bounds the whole call. Changes
    /// nothing but the [warnings](crate::order::Rule::DeadlineBelowRetry) about the order of layers.
    #[must_use]
    pub fn per_attempt(mut self) -> Self {
        self.form.per_attempt = true;
        self
    }
}

impl<S: Clone, P: Clone> Layer<S> for TimeoutLayer<P> {
    type Service = TimeoutService<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        TimeoutService::new(
            inner,
            self.shared.clone(),
            self.per_request.clone(),
            self.form,
        )
    }
}

impl<P: Clone> Clone for TimeoutLayer<P> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            per_request: self.per_request.clone(),
            form: self.form,
        }
    }
}

impl<P> fmt::Debug for TimeoutLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutLayer")
            .field("name", &self.shared.name)
            .field("after", &self.shared.after)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}
