//! The layer: an admission layer over the policy, whose calls end in the reader.

use resilience_core::{
    admission::{AdmissionLayer, AdmissionService},
    limit::upstream::UpstreamLimits,
};
use tower_layer::Layer;

use super::{
    policy::{Target, UpstreamLimitsPolicy},
    reader::UpstreamLimitsReader,
};

/// Layer that reads the rate limits in the responses of upstream servers and keeps calls within
/// them: a call that an upstream asked not to receive is rejected here, with the time to wait. What
/// is known is kept in an [`UpstreamLimits`], by server.
///
/// | response | effect |
/// |---|---|
/// | 429 or 503 with `Retry-After` | no calls to that server until then |
/// | otherwise, `RateLimit` with `r=0` and `t` | no calls for `t` seconds |
/// | otherwise, `RateLimit` with `r` and `t` | at most `r` calls within `t` seconds; of several limits, the one with the least left |
///
/// A limit on something other than requests (`qu` in `RateLimit-Policy`) counts only when nothing
/// is left of it. A response without these headers changes nothing, not even a 429: the retry's
/// backoff decides then when to try again.
///
/// Put it below the retry, so that each attempt is checked, and above the bulkhead, so that a call
/// that is not sent takes no permit. A retry waits for the `Retry-After` of a response that it
/// retries anyway; to let it wait for the rejections of this layer too, see
/// `RetryBuilder::retry_rejections`. In a [`Client`](super::super::Client) the layer is switched on
/// by [`ClientBuilder::upstream_limits`](super::super::ClientBuilder::upstream_limits).
///
/// ```
/// use std::time::Duration;
/// use http::{Request, Response};
/// use resilience_core::{Error, UpstreamLimits};
/// use resilience_http::UpstreamLimitsLayer;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let upstreams = UpstreamLimits::builder("partners").build()?;
/// let service = ServiceBuilder::new()
///     .layer(UpstreamLimitsLayer::new(&upstreams))
///     .service(service_fn(|_: Request<()>| async {
///         let busy = Response::builder().status(429).header("retry-after", "30").body(());
///         busy.map_err(Error::Service)
///     }));
/// let request = || Request::get("http://api.test/").body(());
/// assert_eq!(service.clone().oneshot(request()?).await?.status(), 429);
/// let rejected = service.oneshot(request()?).await.unwrap_err();
/// assert!(rejected.rejected().unwrap().retry_after() > Some(Duration::from_secs(29)));
/// # Ok(()) }
/// ```
///
/// **Errors**: [`RateLimited`](resilience_core::Reason::RateLimited), with the time to wait.
/// **Cancellation**: a dropped call says nothing about its server. **Cost**: one allocation per
/// call for the name of the server, a look-up in a lock-free map, and parsing the headers that are
/// there.
#[derive(Clone, Debug)]
#[must_use]
pub struct UpstreamLimitsLayer {
    policy: UpstreamLimitsPolicy,
    reader: UpstreamLimitsReader,
}

/// Service made by [`UpstreamLimitsLayer`], for `reqwest::Request` and `http::Request`.
pub type UpstreamLimitsService<S> = AdmissionService<S, UpstreamLimitsPolicy, UpstreamLimitsReader>;

impl UpstreamLimitsLayer {
    /// Creates a layer over `limits`, with one entry per server (`host:port`).
    pub fn new(limits: &UpstreamLimits) -> Self {
        Self {
            policy: UpstreamLimitsPolicy::new(limits),
            reader: UpstreamLimitsReader::new(),
        }
    }

    /// Sets the key of a request's limit, for servers with a limit per account or per path.
    /// Requests with the same key share a limit. Default: the server (`host:port`).
    pub fn key(mut self, key: impl Fn(&Target<'_>) -> String + Send + Sync + 'static) -> Self {
        self.policy = self.policy.with_key(key);
        self
    }

    /// Sets whether calls are also held to a remaining quota above zero, rather than only stopped
    /// once nothing is left. Default: `true`.
    pub const fn budgets(mut self, kept: bool) -> Self {
        self.reader = self.reader.with_budgets(kept);
        self
    }
}

impl<S> Layer<S> for UpstreamLimitsLayer {
    type Service = UpstreamLimitsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionLayer::new(self.policy.clone())
            .complete_on(self.reader)
            .layer(inner)
    }
}
