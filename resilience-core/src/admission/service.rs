//! The service: asks the policy, then calls the inner service, waits or rejects.

use std::{
    fmt,
    task::{Context, Poll},
};

use tower_service::Service;

use super::{Admit, future::ResponseFuture};
use crate::{
    completion::{self, Completion},
    error::ServiceError,
    order,
};

/// Service whose calls are admitted by a policy. Created by [`AdmissionLayer`](super::AdmissionLayer).
#[derive(Clone)]
pub struct AdmissionService<S, A, C = completion::OnResponse> {
    pub(super) inner: S,
    pub(super) policy: A,
    pub(super) completion: C,
}

impl<S: fmt::Debug, A: fmt::Debug, C> fmt::Debug for AdmissionService<S, A, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter_policy(&self.policy);
        f.debug_struct("AdmissionService")
            .field("policy", &self.policy)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, A, C, Req> Service<Req> for AdmissionService<S, A, C>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    A: Admit<Req>,
    C: Completion<S::Response, A::Permit>,
{
    type Response = C::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, A::Permit, A::Wait, C>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: Req) -> Self::Future {
        let admission = self.policy.admit(&request);
        ResponseFuture::new(&mut self.inner, request, admission, self.completion.clone())
    }
}
