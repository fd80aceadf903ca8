//! The breaker as a tower layer.

use std::{marker::PhantomData, sync::Arc};

use tower_layer::Layer;

use super::{
    CircuitBreaker,
    rules::{Rate, WindowRules},
    service::{CircuitBreakerService, Mode},
    shared::Shared,
};
use crate::{
    classify, completion,
    error::Pattern,
    order::{Part, setting},
};

/// Layer that guards services with a [`CircuitBreaker`]. From [`CircuitBreaker::layer`].
///
/// `M` is the mode: [`FailFast`] or [`Gate`].
#[derive(Clone, Debug)]
#[must_use]
pub struct CircuitBreakerLayer<C = classify::Standard, U = completion::OnResponse, M = FailFast> {
    breaker: CircuitBreaker,
    classify: C,
    completion: U,
    mode: PhantomData<fn() -> M>,
}

/// Mode of a layer: never keeps a caller waiting for the breaker. The default.
///
/// The inner service must be `Clone`: when a call is rejected after the inner service was made ready for it, a fresh
/// clone takes its place, so that whatever it had reserved (a place in a `ConcurrencyLimit`) goes to a call that is
/// made.
#[derive(Clone, Copy, Debug)]
pub struct FailFast;

/// Mode of a layer: `poll_ready` is pending while the breaker rejects.
#[derive(Clone, Copy, Debug)]
pub struct Gate;

impl<C, U> CircuitBreakerLayer<C, U> {
    pub(super) const fn new(breaker: CircuitBreaker, classify: C, completion: U) -> Self {
        Self {
            breaker,
            classify,
            completion,
            mode: PhantomData,
        }
    }

    /// Makes `poll_ready` pending while the breaker rejects, for use under `tower::balance`, which then passes this
    /// endpoint over. It is woken when the open interval is over and when the state changes. Of several callers that
    /// were woken for one probe, those who come too late are rejected in `call`.
    pub fn gate(self) -> CircuitBreakerLayer<C, U, Gate> {
        self.in_mode()
    }
}

impl<C, U, M> CircuitBreakerLayer<C, U, M> {
    /// What results mean. Default: [`classify::Standard`].
    pub fn classify<D>(self, classify: D) -> CircuitBreakerLayer<D, U, M> {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify,
            completion: self.completion,
            mode: PhantomData,
        }
    }

    /// When a call that was answered is over. Default: [`completion::OnResponse`], at once.
    pub fn complete_on<V>(self, completion: V) -> CircuitBreakerLayer<C, V, M> {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify: self.classify,
            completion,
            mode: PhantomData,
        }
    }

    fn in_mode<N>(self) -> CircuitBreakerLayer<C, U, N> {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify: self.classify,
            completion: self.completion,
            mode: PhantomData,
        }
    }
}

impl<C: Clone, U: Clone, M> CircuitBreakerLayer<C, U, M> {
    fn service<S>(&self, inner: S, mode: Mode<S>) -> CircuitBreakerService<S, C, U> {
        CircuitBreakerService::new(
            inner,
            self.breaker.shared.clone(),
            self.classify.clone(),
            self.completion.clone(),
            mode,
        )
    }
}

impl<S: Clone, C: Clone, U: Clone> Layer<S> for CircuitBreakerLayer<C, U, FailFast> {
    type Service = CircuitBreakerService<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        self.service(inner, Mode::fail_fast())
    }
}

impl<S, C: Clone, U: Clone> Layer<S> for CircuitBreakerLayer<C, U, Gate> {
    type Service = CircuitBreakerService<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        self.service(inner, Mode::gate())
    }
}

impl Shared {
    /// What the description of a stack says about it.
    pub(super) fn part(&self) -> Part {
        let rules = &self.machine.rules;
        let part = Part::new(Pattern::CircuitBreaker, Arc::clone(&self.name));
        let part = match rules.window {
            WindowRules::Time(length) => part.set("window", length),
            WindowRules::Count(calls) => part.set("window", calls),
        };
        let share = |rate: Rate| f64::from(rate.millionths()) / 1e6;
        part.set_some("failure_rate", rules.failure.map(share))
            .set_some("consecutive_failures", rules.streak)
            .set_some(setting::FLEET, self.member().map(|_| true))
    }
}
