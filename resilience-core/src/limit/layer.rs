//! The rate limit as policies of the admission layer.

use std::{fmt, hash::Hash};

use super::{
    KeyedRateLimit, RateLimit,
    held_tokens::HeldTokens,
    queue::{WaitForTokens, admit},
};
use crate::{
    admission::{Admission, AdmissionLayer, AdmissionService, Admit},
    completion::OnResponse,
    cost::{Cost, Each},
};

/// Makes [`RateLimitService`]s. From [`RateLimit::layer`] and [`KeyedRateLimit::layer`]; the policy is [`Whole`] or
/// [`ByKey`].
pub type RateLimitLayer<A, C = OnResponse> = AdmissionLayer<A, C>;

/// A service that takes a limited number of calls per time. Made by [`RateLimitLayer`].
pub type RateLimitService<S, A, C = OnResponse> = AdmissionService<S, A, C>;

/// The policy of one limit for all requests.
#[derive(Clone)]
pub struct Whole<P = Each> {
    limit: RateLimit,
    cost: P,
}

impl Whole {
    pub(super) const fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            cost: Each(1),
        }
    }
}

impl<P, C> AdmissionLayer<Whole<P>, C> {
    /// Sets the cost of a request. Default: one token.
    pub fn cost<Q>(self, cost: Q) -> AdmissionLayer<Whole<Q>, C> {
        let limit = self.policy.limit;
        AdmissionLayer {
            policy: Whole { limit, cost },
            completion: self.completion,
        }
    }
}

impl<P> fmt::Debug for Whole<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Whole").field(&self.limit).finish()
    }
}

impl<Req, P: Cost<Req> + Clone> Admit<Req> for Whole<P> {
    type Permit = HeldTokens;
    type Wait = WaitForTokens;

    #[inline]
    fn admit(&self, request: &Req) -> Admission<HeldTokens, WaitForTokens> {
        admit(self.limit.shared(), self.cost.cost(request))
    }
}

/// The policy of one limit per key.
pub struct ByKey<K, F, P = Each> {
    limits: KeyedRateLimit<K>,
    key: F,
    cost: P,
}

impl<K, F> ByKey<K, F> {
    pub(super) const fn new(limits: KeyedRateLimit<K>, key: F) -> Self {
        Self {
            limits,
            key,
            cost: Each(1),
        }
    }
}

impl<K, F, P, C> AdmissionLayer<ByKey<K, F, P>, C> {
    /// Sets the cost of a request. Default: one token.
    pub fn cost<Q>(self, cost: Q) -> AdmissionLayer<ByKey<K, F, Q>, C> {
        let ByKey { limits, key, .. } = self.policy;
        AdmissionLayer {
            policy: ByKey { limits, key, cost },
            completion: self.completion,
        }
    }
}

impl<Req, K, F, P> Admit<Req> for ByKey<K, F, P>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Fn(&Req) -> K + Clone,
    P: Cost<Req> + Clone,
{
    type Permit = HeldTokens;
    type Wait = WaitForTokens;

    #[inline]
    fn admit(&self, request: &Req) -> Admission<HeldTokens, WaitForTokens> {
        let (key, cost) = ((self.key)(request), self.cost.cost(request));
        self.limits.with(&key, |limit| admit(limit.shared(), cost))
    }
}

impl<K, F: Clone, P: Clone> Clone for ByKey<K, F, P> {
    fn clone(&self) -> Self {
        Self {
            limits: self.limits.clone(),
            key: self.key.clone(),
            cost: self.cost.clone(),
        }
    }
}

impl<K, F, P> fmt::Debug for ByKey<K, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByKey").field(&self.limits).finish()
    }
}
