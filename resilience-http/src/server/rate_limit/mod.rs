//! Rate limits around handlers, told to clients in headers.

mod decide;
mod key;
mod layer;

use std::{fmt, sync::Arc};

use http::request::Parts;
use resilience_core::InvalidConfig;

pub use self::{
    decide::RequestLimit,
    key::{LimitKey, MissingKey},
    layer::{LimitRequestsFuture, LimitRequestsLayer, LimitRequestsService},
};

/// Holds requests to a rate limit, and tells clients how they stand: `RateLimit-Policy` and `RateLimit`
/// (draft-ietf-httpapi-ratelimit-headers-11) on every response, 429 with `Retry-After` and a problem document when a
/// limit is reached.
///
/// The limit is a [`FleetRateLimit`](resilience_core::limit::fleet::FleetRateLimit) of a fleet, with all of its
/// limits and plans, or a [`KeyedRateLimit`](resilience_core::limit::KeyedRateLimit) or a
/// [`RateLimit`](resilience_core::limit::RateLimit) of this process. Whom a request is charged to says the
/// [`key`](Self::key), how much the [`cost`](Self::cost). The decision comes first: a request that is refused never
/// reaches the handler. It does not wait for tokens; for that, put the layer of a limit with a queue into
/// [`guard`](super::guard).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use axum::{Router, routing::get};
/// use resilience_core::limit::{Quota, fleet::FleetRateLimit, store::InProcessLimits};
/// use resilience_http::server::{LimitKey, LimitRequests};
///
/// let limit = FleetRateLimit::builder("api", InProcessLimits::new()) // or `redis.limits()`
///     .limit("per-minute", Quota::per(1, Duration::from_secs(60))?)
///     .build()?;
/// let by_token = LimitRequests::new(&limit).key(LimitKey::header(http::header::AUTHORIZATION));
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
/// # What clients are told
/// | field | what |
/// |---|---|
/// | `RateLimit-Policy` | for each limit its name, the permits (`q`) and the period (`w`; less than a second is told as one) |
/// | `RateLimit` | for each limit how many calls can be made at once (`r`; more than `q` where a burst is saved up), and the time until there is one more (`t`), rounded up |
/// | `Retry-After`, with 429 | when the same request would pass, rounded up, and a little later at random, so that those who were refused together do not come back together |
///
/// The document of a 429 has the type `https://iana.org/assignments/http-problem-types#quota-exceeded` of the draft, and
/// names the limit in `violated-policies`. A request that costs more than can ever be had is answered 422; one that
/// cannot be decided about is answered 503, if that is the limit's [policy](resilience_core::fleet::OnOutage).
///
/// **Cost**: the decision, and a few small allocations for the headers. **Cancellation**: a client that hangs up while
/// the store is asked may have been charged; later, it has been.
pub struct LimitRequests<L: RequestLimit> {
    limit: L,
    settings: Arc<Settings<L>>,
}

struct Settings<L: RequestLimit> {
    key: LimitKey,
    missing_key: MissingKey,
    cost: Option<Cost<L>>,
    headers: LimitHeaders,
}

type Cost<L> = Arc<dyn Fn(&Parts) -> <L as RequestLimit>::Price + Send + Sync>;

/// What clients are told beside yes and no.
#[derive(Clone)]
struct LimitHeaders {
    fields: bool,
    partition: bool,
    jitter: f64,
    units: Vec<(String, String)>,
}

impl<L: RequestLimit> LimitRequests<L> {
    /// One bucket for all requests, each costing one token, until [`key`](Self::key) and [`cost`](Self::cost) say
    /// otherwise.
    #[must_use]
    pub fn new(limit: &L) -> Self {
        Self {
            limit: limit.clone(),
            settings: Arc::new(Settings {
                key: LimitKey::whole(),
                missing_key: MissingKey::default(),
                cost: None,
                headers: LimitHeaders {
                    fields: true,
                    partition: false,
                    jitter: 0.2,
                    units: Vec::new(),
                },
            }),
        }
    }

    /// Whom a request is charged to.
    #[must_use]
    pub fn key(self, key: LimitKey) -> Self {
        self.with(|settings| settings.key = key)
    }

    /// What becomes of requests that have no key: without the header, or from who knows where.
    #[must_use]
    pub fn missing_key(self, policy: MissingKey) -> Self {
        self.with(|settings| settings.missing_key = policy)
    }

    /// What a request costs: a number, or for a shared limit the costs on each of its limits.
    #[must_use]
    pub fn cost<P: Into<L::Price>>(
        self,
        cost: impl Fn(&Parts) -> P + Send + Sync + 'static,
    ) -> Self {
        let cost: Cost<L> = Arc::new(move |head| cost(head).into());
        self.with(|settings| settings.cost = Some(cost))
    }

    /// Whether clients are told how they stand. Default: yes. Without it, a refusal has its `Retry-After` still.
    #[must_use]
    pub fn fields(self, told: bool) -> Self {
        self.with(|settings| settings.headers.fields = told)
    }

    /// Whether clients are told which bucket they share (`pk`): eight bytes of a digest of the key. It helps a client
    /// that has several; a key that can be guessed, such as an address, can be told from it. Default: no.
    #[must_use]
    pub fn partition(self, told: bool) -> Self {
        self.with(|settings| settings.headers.partition = told)
    }

    /// What the limit called `limit` counts, if it is not requests (`qu`): `content-bytes`.
    #[must_use]
    pub fn unit(self, limit: impl Into<String>, unit: impl Into<String>) -> Self {
        self.with(|settings| settings.headers.units.push((limit.into(), unit.into())))
    }

    /// How much later than necessary clients are told to come back, at most, as a share of the wait; a second at
    /// least. Zero: all at the same moment. Default: 0.2.
    ///
    /// # Errors
    /// It is not between 0 and 10.
    pub fn jitter(self, share: f64) -> Result<Self, InvalidConfig> {
        if !(0.0..=10.0).contains(&share) {
            return Err(InvalidConfig::new("jitter", share, "must be from 0 to 10"));
        }
        Ok(self.with(|settings| settings.headers.jitter = share))
    }

    /// The layer. State is the limit's: any number of layers share it.
    pub fn layer(&self) -> LimitRequestsLayer<L> {
        LimitRequestsLayer::new(self.clone())
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

impl<L: RequestLimit> Clone for Settings<L> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            missing_key: self.missing_key,
            cost: self.cost.clone(),
            headers: self.headers.clone(),
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
