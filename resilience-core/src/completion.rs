//! How long a call lasts: until the response is there, or until its body has been read.
//!
//! A layer that guards a call holds a [`Guard`] for it. When the inner service has answered, the
//! layer hands the guard to an [`Completion`]: the default, [`OnResponse`], settles it there and then. An
//! HTTP body says later whether the answer was whole; `resilience_http::OnBodyEnd` keeps the guard
//! inside the body.

use std::sync::Arc;

use crate::verdict::Verdict;

/// What a layer holds for one call: a permit, a probe, a count in flight. Dropping it gives back
/// what it holds.
pub trait Guard {
    /// Tells how the call ended. The first call wins; later calls are ignored. What is held is
    /// given back when the guard is dropped.
    fn settle(&mut self, verdict: Verdict);

    /// The name of the handle whose layer holds it, for a [`Completion`] that tells of the call later. Default: `None`.
    fn name(&self) -> Option<&Arc<str>> {
        None
    }
}

/// Decides when a call that has been answered is over.
pub trait Completion<Res, G>: Clone {
    /// What the caller gets: the response, or the response with the guard inside.
    type Response;

    /// Whether the guard may outlive [`hold`](Self::hold). A layer that watches for how long a call
    /// has gone on may save itself a reading of the clock where it cannot.
    const DEFERS: bool = true;

    /// `response` was judged `verdict`; `guard` is to be settled and dropped when the call is over.
    fn hold(&self, response: Res, verdict: Verdict, guard: G) -> Self::Response;

    /// The same for a guard that lies in `place`, and need not be moved out of there if the call is
    /// over at once. Leaves `None`. Layers call this one.
    ///
    /// # Panics
    ///
    /// May panic if there is none.
    #[inline]
    fn complete(&self, response: Res, verdict: Verdict, place: &mut Option<G>) -> Self::Response {
        let guard = place.take().expect("a call is answered once");
        self.hold(response, verdict, guard)
    }
}

/// A call is over when its response is there. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnResponse;

impl<Res, G: Guard> Completion<Res, G> for OnResponse {
    type Response = Res;

    const DEFERS: bool = false;

    #[inline(always)]
    fn hold(&self, response: Res, verdict: Verdict, mut guard: G) -> Res {
        guard.settle(verdict);
        response
    }

    #[inline(always)]
    fn complete(&self, response: Res, verdict: Verdict, place: &mut Option<G>) -> Res {
        if let Some(guard) = place {
            guard.settle(verdict);
        }
        *place = None;
        response
    }
}
