//! A fleet's bulkhead as an admission policy, and its layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{acquire::acquire, permit::FleetPermit, shared::Shared};
use crate::{
    admission::{self, Admission, AdmissionLayer, AdmissionService, Admit, Refused},
    completion::OnResponse,
    cost::{Cost, Each},
    error::{Pattern, Rejected},
    order::{self, Part, setting},
};

/// Admission policy of a [`FleetBulkhead`](super::FleetBulkhead): each request takes as many
/// permits as it costs.
#[derive(Clone)]
pub struct FleetAdmission<C = Each> {
    shared: Arc<Shared>,
    cost: C,
}

impl FleetAdmission {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        let cost = Each(1);
        Self { shared, cost }
    }
}

impl<C> fmt::Debug for FleetAdmission<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        order::policy_part(|| {
            let shared = &*self.shared;
            Part::new(Pattern::Bulkhead, Arc::clone(&shared.name))
                .set("max_concurrent", shared.limit.load(Relaxed))
                .set(setting::FLEET, true)
                .set_some(setting::QUEUE, shared.queue.map(|queue| queue.length))
        });
        f.debug_struct("FleetAdmission")
            .field("bulkhead", &self.shared.name)
            .finish_non_exhaustive()
    }
}

/// Layer that limits the concurrent calls of a fleet. Created by
/// [`FleetBulkhead::layer`](super::FleetBulkhead::layer).
///
/// `cost` sets how many permits a request takes, [`complete_on`](AdmissionLayer::complete_on) when
/// a call gives them back.
pub type FleetBulkheadLayer<C = Each, D = OnResponse> = AdmissionLayer<FleetAdmission<C>, D>;

/// Service with a limit on the concurrent calls of a fleet. Created by [`FleetBulkheadLayer`].
pub type FleetBulkheadService<S, C = Each, D = OnResponse> =
    AdmissionService<S, FleetAdmission<C>, D>;

/// Response future of [`FleetBulkheadService`].
pub type ResponseFuture<S, Req, D = OnResponse> =
    admission::ResponseFuture<S, Req, FleetPermit, Wait, D>;

/// Wait for the store's answer, or in the queue.
pub type Wait = Pin<Box<dyn Future<Output = Result<FleetPermit, Rejected>> + Send>>;

impl<C, D> FleetBulkheadLayer<C, D> {
    /// Sets how many permits a request takes. Default: one.
    pub fn cost<E>(self, cost: E) -> FleetBulkheadLayer<E, D> {
        let shared = self.policy.shared;
        AdmissionLayer {
            policy: FleetAdmission { shared, cost },
            completion: self.completion,
        }
    }
}

impl<Req, C: Cost<Req> + Clone> Admit<Req> for FleetAdmission<C> {
    type Permit = FleetPermit;
    type Wait = Wait;

    fn admit(&self, request: &Req) -> Admission<FleetPermit, Wait> {
        let (shared, cost) = (Arc::clone(&self.shared), self.cost.cost(request));
        Err(Refused::wait(Box::pin(acquire(shared, cost))))
    }
}
