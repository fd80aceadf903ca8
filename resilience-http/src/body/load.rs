//! tower's balancer: a call counts as load until its body has ended.

use http::Response;
use http_body::Body;
use resilience_core::{
    Verdict,
    completion::{Completion, Guard},
};
use tower::load::completion::TrackCompletion;

use super::{GuardedBody, OnBodyEnd};

/// Handle of a load metric, which is dropped when the call is over.
struct Load<H> {
    _handle: H,
}

/// The load does not depend on how the call ends.
impl<H> Guard for Load<H> {
    fn settle(&mut self, _: Verdict) {}
}

/// Keeps the handle of `tower::load` inside the body, so that a balancer counts a call as load, and `PeakEwma` measures it,
/// until the end of the body.
///
/// ```
/// use std::time::Duration;
/// use resilience_http::{OnBodyEnd, client::{ReqwestService, reqwest_builder}};
/// use tower::load::PeakEwma;
///
/// let endpoint = ReqwestService::new(reqwest_builder().build()?);
/// let (first_estimate, decay) = (Duration::from_millis(30), Duration::from_secs(10));
/// let measured = PeakEwma::new(endpoint, first_estimate, 10e9, OnBodyEnd::new());
/// # let _ = (measured, decay);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
impl<H, B> TrackCompletion<H, Response<B>> for OnBodyEnd
where
    H: Send + 'static,
    B: Body,
{
    type Output = Response<GuardedBody<B>>;

    fn track_completion(&self, handle: H, response: Response<B>) -> Self::Output {
        self.hold(response, Verdict::Success, Load { _handle: handle })
    }
}

/// As for `http::Response`; the response stays a `reqwest::Response`.
impl<H: Send + 'static> TrackCompletion<H, reqwest::Response> for OnBodyEnd {
    type Output = reqwest::Response;

    fn track_completion(&self, handle: H, response: reqwest::Response) -> reqwest::Response {
        self.hold(response, Verdict::Success, Load { _handle: handle })
    }
}
