//! Rate limits around handlers, shown to clients in headers.
//!
//! # References
//! draft-ietf-httpapi-ratelimit-headers-11 (`RateLimit`, `RateLimit-Policy`, the problem type);
//! RFC 6585 section 4 (429); RFC 9110 section 10.2.3 (`Retry-After`).

mod decision;
mod fields;
mod future;
mod key;
mod layer;
mod refusal;
mod service;
mod settings;

use std::{fmt, sync::Arc};

use http::request::Parts;
use resilience_core::InvalidConfig;

use self::settings::{Cost, Settings};
pub use self::{
    decision::RequestLimit,
    future::LimitRequestsFuture,
    key::{LimitKey, MissingKey},
    layer::LimitRequestsLayer,
    service::LimitRequestsService,
};

/// Rate limit for requests, with its state in the headers of every response: `RateLimit-Policy` and
/// `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11), and 429 with `Retry-After` and a problem
/// document when a limit is reached.
///
/// The limit is a [`FleetRateLimit`](resilience_core::limit::fleet::FleetRateLimit) with all of its
/// limits and plans, or a [`KeyedRateLimit`](resilience_core::limit::KeyedRateLimit) or
/// [`RateLimit`](resilience_core::limit::RateLimit) of this process. The [`key`](Self::key) selects
/// the bucket of a request, the [`cost`](Self::cost) says how many tokens it takes. The decision
/// comes first: a rejected request never reaches the handler. Requests do not wait for tokens; for
/// that, put the layer of a limit with a queue into [`guard`](super::guard).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use axum::{Router, routing::get};
/// use resilience_core::{FleetRateLimit, Quota, limit::store::InProcessLimits};
/// use resilience_http::{LimitKey, LimitRequests};
///
/// let limit = FleetRateLimit::builder("api")
///     .store(InProcessLimits::new()) // or `redis.limits()`
///     .limit("per-minute", Quota::per(1, Duration::from_secs(60))?)
///     .build()?;
/// let by_token = LimitRequests::new(&limit).key(LimitKey::header("authorization"));
/// let app: Router = Router::new().route("/", get(async || "hello")).layer(by_token.layer());
/// # let ask = || http::Request::get("/").header("authorization", "Bearer 1").body(axum::body::Body::empty()).unwrap();
/// # use tower::ServiceExt;
/// # let response = app.clone().oneshot(ask()).await?;
/// # assert_eq!(response.status(), 200);
/// # assert_eq!(response.headers()["ratelimit-policy"], "\"per-minute\";q=1;w=60");
/// # assert_eq!(response.headers()["ratelimit"], "\"per-minute\";r=0;t=60");
/// # assert_eq!(app.oneshot(ask()).await?.status(), 429);
/// # Ok(()) }
/// ```
///
/// # Headers
/// | header | content |
/// |---|---|
/// | `RateLimit-Policy` | for each limit its name, the permits (`q`) and the period (`w`; a period below one second is shown as one second) |
/// | `RateLimit` | for each limit the calls that can be made at once (`r`; above `q` if a burst has been saved up), and the time until there is one more (`t`), rounded up |
/// | `Retry-After`, with 429 | the time until the same request would pass, rounded up, plus a random part, so that clients that were rejected together do not come back together |
///
/// The document of a 429 has the type
/// `https://iana.org/assignments/http-problem-types#quota-exceeded` of the draft, and names the
/// limit in `violated-policies`. A request that costs more than the limit can ever hold gets a 422.
/// While the store is unavailable, the limit's [outage policy](resilience_core::fleet::OnOutage)
/// decides; if it is to fail closed, requests get a 503.
///
/// **Cost**: the decision, and a few small allocations for the headers. **Cancellation**: a client
/// that disconnects during the decision may have been charged; one that disconnects later has been.
pub struct LimitRequests<L: RequestLimit> {
    limit: L,
    settings: Arc<Settings<L>>,
}

impl<L: RequestLimit> LimitRequests<L> {
    /// Creates a rate limit with one bucket for all requests, each costing one token, until
    /// [`key`](Self::key) and [`cost`](Self::cost) say otherwise.
    #[must_use]
    pub fn new(limit: &L) -> Self {
        Self {
            limit: limit.clone(),
            settings: Arc::new(Settings::new()),
        }
    }

    /// Sets the key that requests are counted under. Default: [`LimitKey::whole`].
    #[must_use]
    pub fn key(self, key: LimitKey) -> Self {
        self.with(|settings| settings.key = key)
    }

    /// Sets how requests without a key are treated, such as those without the header of the key.
    /// Default: [`MissingKey::Share`].
    #[must_use]
    pub fn missing_key(self, policy: MissingKey) -> Self {
        self.with(|settings| settings.missing_key = policy)
    }

    /// Sets the cost of a request: a number of tokens, or for a fleet limit the tokens of each of
    /// its limits. Default: 1.
    #[must_use]
    pub fn cost<P: Into<L::Price>>(
        self,
        cost: impl Fn(&Parts) -> P + Send + Sync + 'static,
    ) -> Self {
        let cost: Cost<L> = Arc::new(move |head| cost(head).into());
        self.with(|settings| settings.cost = Some(cost))
    }

    /// Sets whether responses carry `RateLimit` and `RateLimit-Policy`. Default: `true`. Without
    /// them, a 429 still has its `Retry-After`.
    #[must_use]
    pub fn fields(self, told: bool) -> Self {
        self.with(|settings| settings.headers.fields = told)
    }

    /// Sets whether the headers name the bucket (`pk`): eight bytes of a digest of the key. Helps a
    /// client that uses several buckets; a key that can be guessed, such as an address, can be
    /// recovered from it. Default: `false`.
    #[must_use]
    pub fn partition(self, told: bool) -> Self {
        self.with(|settings| settings.headers.partition = told)
    }

    /// Names the unit of the limit called `limit` (`qu`), if it does not count requests:
    /// `content-bytes`, for example.
    #[must_use]
    pub fn unit(self, limit: impl Into<String>, unit: impl Into<String>) -> Self {
        self.with(|settings| settings.headers.units.push((limit.into(), unit.into())))
    }

    /// Sets the maximum random part added to `Retry-After`, as a share of the wait, and at least
    /// one second. Zero adds nothing. Default: 0.2.
    ///
    /// # Errors
    /// If `share` is not between 0 and 10.
    pub fn jitter(self, share: f64) -> Result<Self, InvalidConfig> {
        if !(0.0..=10.0).contains(&share) {
            return Err(InvalidConfig::new("jitter", share, "must be from 0 to 10"));
        }
        Ok(self.with(|settings| settings.headers.jitter = share))
    }

    /// Makes a layer. All layers share the state of the limit.
    pub fn layer(&self) -> LimitRequestsLayer<L> {
        LimitRequestsLayer::new(self.limit.clone(), Arc::clone(&self.settings))
    }

    fn with(mut self, change: impl FnOnce(&mut Settings<L>)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }
}

impl<L: RequestLimit> Clone for LimitRequests<L> {
    fn clone(&self) -> Self {
        Self {
            limit: self.limit.clone(),
            settings: Arc::clone(&self.settings),
        }
    }
}

impl<L: RequestLimit + fmt::Debug> fmt::Debug for LimitRequests<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitRequests")
            .field("limit", &self.limit)
            .field("missing_key", &self.settings.missing_key)
            .finish_non_exhaustive()
    }
}
