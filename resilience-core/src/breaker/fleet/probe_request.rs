//! A call that waits for one of the fleet's probes: only while a shared breaker is half-open.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::task::JoinHandle;

use super::{Lease, StoreUnavailable};
use crate::{
    breaker::{Permit, refusal::Refusal, shared::Shared},
    error::{Reason, Rejected},
    stripe::Striped,
};

/// Holds the request, and the inner service that was made ready for it, until the store has answered.
///
/// The question is asked by a task of its own: a caller that stops waiting for the answer leaves a task behind that gives
/// the probe back. A question without an answer is a rejection, not a probe: other instances may have all of them.
pub(in crate::breaker) struct ProbeRequest<S, Req> {
    answer: JoinHandle<Result<Option<Lease>, StoreUnavailable>>,
    held: Option<(S, Req)>,
    breaker: Striped<Shared>,
}

/// What it ends in: a call to make with the service and the request, or a rejection.
pub(in crate::breaker) type ProbeAnswer<S, Req> = Result<(Permit, S, Req), Rejected>;

impl<S, Req> ProbeRequest<S, Req> {
    /// Asks, if `refusal` is for want of a probe and this instance may ask now. `take` gives the readied service.
    pub(in crate::breaker) fn start(
        breaker: &Striped<Shared>,
        refusal: &Refusal,
        req: Req,
        take: impl FnOnce() -> S,
    ) -> Result<Self, Req> {
        let member = breaker.member().filter(|_| refusal.needs_lease);
        let Some(member) = member.filter(|member| member.may_ask(breaker.clock().now()).is_ok())
        else {
            return Err(req);
        };
        Ok(Self {
            answer: member.runtime().spawn(Arc::clone(member).ask()),
            held: Some((take(), req)),
            breaker: breaker.clone(),
        })
    }

    pub(in crate::breaker) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ProbeAnswer<S, Req>> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        let call = match answer.unwrap_or(Ok(None)) {
            Ok(Some(lease)) => Permit::admit_leased(&self.breaker, lease).ok_or(()),
            Ok(None) => return Poll::Ready(Err(self.no_probe_left())),
            Err(StoreUnavailable) => {
                self.breaker.probe_alone();
                Err(())
            }
        };
        // The fleet has moved on, or this instance is on its own now: like any other call.
        let call = call.or_else(|()| Permit::admit(&self.breaker));
        let (inner, req) = self.held.take().expect("polled after it was ready");
        Poll::Ready(call.map(|call| (call, inner, req)))
    }

    fn no_probe_left(&self) -> Rejected {
        let refusal = self.breaker.check().err().unwrap_or(Refusal {
            reason: Reason::NoProbeLeft,
            until: None,
            needs_lease: false,
            retry_after: None,
        });
        self.breaker.reject(refusal)
    }
}
