//! The layer.

use std::fmt;

use tower_layer::Layer;

use super::service::AdmissionService;
use crate::completion;

/// Layer whose services admit calls by a policy.
#[derive(Clone)]
#[must_use]
pub struct AdmissionLayer<A, C = completion::OnResponse> {
    pub(crate) policy: A,
    pub(crate) completion: C,
}

impl<A> AdmissionLayer<A> {
    /// Creates a layer over `policy`.
    pub const fn new(policy: A) -> Self {
        Self {
            policy,
            completion: completion::OnResponse,
        }
    }
}

impl<A, C> AdmissionLayer<A, C> {
    /// Sets when a call ends and gives its permit back. Default: when its response is there. An
    /// HTTP body can keep the permit until it has been read.
    pub fn complete_on<D>(self, completion: D) -> AdmissionLayer<A, D> {
        AdmissionLayer {
            policy: self.policy,
            completion,
        }
    }
}

impl<S, A: Clone, C: Clone> Layer<S> for AdmissionLayer<A, C> {
    type Service = AdmissionService<S, A, C>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService {
            inner,
            policy: self.policy.clone(),
            completion: self.completion.clone(),
        }
    }
}

impl<A: fmt::Debug, C> fmt::Debug for AdmissionLayer<A, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionLayer")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
