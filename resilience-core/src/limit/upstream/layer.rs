//! Upstream limits as a policy of the admission layer.

use std::{fmt, future::Ready};

use super::{Permit, UpstreamLimits};
use crate::{
    admission::{self, Admission, AdmissionLayer, Admit, Refused},
    completion::Guard,
    error::Rejected,
    verdict::Verdict,
};

/// The policy of [`UpstreamLimits::layer`]: admits a request unless its upstream server has asked for a pause.
///
/// The permit is a [`Permit`]: a [`Completion`](crate::completion::Completion) that reads what the server advertised hands
/// it to [`Permit::observe`].
#[derive(Clone)]
pub struct ByUpstream<F> {
    limits: UpstreamLimits,
    upstream: F,
}

impl UpstreamLimits {
    /// A policy for an [`AdmissionLayer`]; `upstream(&request)` is the name of the server.
    #[must_use]
    pub fn by<F>(&self, upstream: F) -> ByUpstream<F> {
        ByUpstream {
            limits: self.clone(),
            upstream,
        }
    }

    /// A layer over [`by`](Self::by). What servers advertise has to be observed by its completion.
    pub fn layer<F>(&self, upstream: F) -> AdmissionLayer<ByUpstream<F>> {
        AdmissionLayer::new(self.by(upstream))
    }
}

impl<Req, F, K> Admit<Req> for ByUpstream<F>
where
    F: Fn(&Req) -> K + Clone,
    K: AsRef<str>,
{
    type Permit = Permit;
    /// Never used: no call waits.
    type Wait = Ready<Result<Permit, Rejected>>;

    #[inline]
    fn admit(&self, request: &Req) -> Admission<Permit, Self::Wait> {
        let upstream = (self.upstream)(request);
        self.limits.enter(upstream.as_ref()).map_err(Refused::no)
    }
}

impl Guard for Permit {
    #[inline(always)]
    fn settle(&mut self, _: Verdict) {}
}

impl admission::Permit for Permit {}

impl<F> fmt::Debug for ByUpstream<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByUpstream").field(&self.limits).finish()
    }
}
