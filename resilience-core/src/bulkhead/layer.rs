//! The bulkhead as an admission policy, and its layer.

use super::{Bulkhead, permit::Permit, queue::Wait};
use crate::{
    admission::{self, Admission, AdmissionLayer, AdmissionService, Admit},
    completion::OnResponse,
};

/// Layer that limits concurrent calls. Created by [`Bulkhead::layer`].
///
/// [`complete_on`](AdmissionLayer::complete_on) sets when a call gives its permit back.
pub type BulkheadLayer<C = OnResponse> = AdmissionLayer<Bulkhead, C>;

/// Service with a limit on concurrent calls. Created by [`BulkheadLayer`].
pub type BulkheadService<S, C = OnResponse> = AdmissionService<S, Bulkhead, C>;

/// Response future of [`BulkheadService`] and [`KeyedBulkheadService`](super::KeyedBulkheadService).
pub type ResponseFuture<S, Req, C = OnResponse> =
    admission::ResponseFuture<S, Req, Permit, Wait, C>;

impl<Req> Admit<Req> for Bulkhead {
    type Permit = Permit;
    type Wait = Wait;

    #[inline(always)]
    fn admit(&self, _: &Req) -> Admission<Permit, Wait> {
        self.admission()
    }
}
