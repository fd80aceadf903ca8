//! Calls that keep to what their servers have said of their limits.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use pin_project_lite::pin_project;
use resilience_core::{
    Rejected, ServiceError,
    limit::upstream::{Advertised, Permit, UpstreamLimits},
};
use tower_layer::Layer;
use tower_service::Service;

use super::Host;
use crate::{
    headers,
    rate_limit::{self, ServiceLimit},
};

/// Reads what servers say of their limits, and sends them nothing that they have asked not to be sent: calls are
/// rejected instead, with the time to wait. What is known is kept in a [`UpstreamLimits`], by server.
///
/// | answer | what follows |
/// |---|---|
/// | 429 or 503 with `Retry-After` | no calls to that server until then |
/// | otherwise, `RateLimit` with `r=0` and `t` | no calls for `t` seconds |
/// | otherwise, `RateLimit` with `r` and `t` | no more than `r` calls within `t` seconds; of several limits, the one with the least left |
///
/// A limit on something other than requests (`qu` in `RateLimit-Policy`) counts only when nothing is left of it. An
/// answer without such headers changes nothing, and neither does a 429: when to come back is then the retry's to guess.
///
/// It belongs beneath the retry, so that each attempt is held to it, and above the bulkhead, so that what is not sent
/// takes no place. A retry waits for the `Retry-After` of the answer that it retries anyway; to have it wait for the
/// rejections of this layer too, see `RetryBuilder::retry_rejections`. A [`Client`](super::Client) has it where
/// [`ClientBuilder::upstream_limits`](super::ClientBuilder::upstream_limits) puts it.
///
/// ```
/// use std::time::Duration;
/// use http::{Request, Response};
/// use resilience_core::{Error, limit::upstream::UpstreamLimits};
/// use resilience_http::client::UpstreamLimitsLayer;
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
/// let ask = || Request::get("http://api.test/").body(());
/// assert_eq!(service.clone().oneshot(ask()?).await?.status(), 429);
/// let rejected = service.oneshot(ask()?).await.unwrap_err();
/// assert!(rejected.rejected().unwrap().retry_after() > Some(Duration::from_secs(29)));
/// # Ok(()) }
/// ```
///
/// **Errors**: [`RateLimited`](resilience_core::Reason::RateLimited), with the time to wait. **Cancellation**: a call
/// that is dropped says nothing about its server. **Cost**: the name of the server is written out for each call (one
/// allocation); a look-up in a lock-free map; the reading of headers that are there.
#[derive(Clone)]
#[must_use]
pub struct UpstreamLimitsLayer {
    limits: UpstreamLimits,
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    key: Option<Arc<KeyOf>>,
    budgets: bool,
}

type KeyOf = dyn Fn(&Target<'_>) -> String + Send + Sync;

/// Whom a request goes to, for a key of one's own.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Target<'a> {
    /// The server.
    pub host: &'a str,
    /// The path on it.
    pub path: &'a str,
    /// What the request carries.
    pub headers: &'a HeaderMap,
}

impl UpstreamLimitsLayer {
    /// Over what `limits` knows, by server (`host:port`).
    pub fn new(limits: &UpstreamLimits) -> Self {
        Self {
            limits: limits.clone(),
            settings: Settings {
                key: None,
                budgets: true,
            },
        }
    }

    /// For servers that have a limit for each account, or each path: what shares one has the same key.
    pub fn key(mut self, key: impl Fn(&Target<'_>) -> String + Send + Sync + 'static) -> Self {
        self.settings.key = Some(Arc::new(key));
        self
    }

    /// Whether calls are held to what a server says is left, or only stay away when nothing is. Default: they are.
    pub const fn budgets(mut self, kept: bool) -> Self {
        self.settings.budgets = kept;
        self
    }
}

impl Settings {
    fn upstream(&self, host: String, path: &str, headers: &HeaderMap) -> String {
        match &self.key {
            None => host,
            Some(key) => key(&Target {
                host: &host,
                path,
                headers,
            }),
        }
    }

    fn advertised(&self, status: StatusCode, headers: &HeaderMap) -> Option<Advertised> {
        if matches!(status.as_u16(), 429 | 503)
            && let Some(wait) = headers::retry_after(headers, Duration::MAX)
        {
            return Some(Advertised::RetryAfter(wait));
        }
        if !headers.contains_key(rate_limit::RATE_LIMIT) {
            return None;
        }
        let limits = rate_limit::read_limits(headers);
        let nothing = limits.iter().filter(|limit| limit.available == 0);
        if let Some(wait) = nothing.filter_map(|limit| limit.window).max() {
            return Some(Advertised::RetryAfter(wait));
        }
        let requests = limits
            .iter()
            .filter(|limit| counts_requests(limit, headers));
        let left = requests.filter_map(|limit| Some((limit.available, limit.window?)));
        let (calls, window) = left.min().filter(|_| self.budgets)?;
        (calls > 0).then_some(Advertised::Remaining(calls, window))
    }
}

fn counts_requests(limit: &ServiceLimit, headers: &HeaderMap) -> bool {
    let policies = rate_limit::read_policies(headers);
    let policy = policies.iter().find(|policy| policy.name == limit.name);
    let unit = policy.and_then(|policy| policy.unit.as_deref());
    unit.is_none_or(|unit| unit == "requests")
}

impl fmt::Debug for UpstreamLimitsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamLimitsLayer")
            .field("limits", &self.limits)
            .field("budgets", &self.settings.budgets)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for UpstreamLimitsLayer {
    type Service = UpstreamLimitsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        UpstreamLimitsService {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of [`UpstreamLimitsLayer`].
#[derive(Clone, Debug)]
pub struct UpstreamLimitsService<S> {
    inner: S,
    layer: UpstreamLimitsLayer,
}

impl<S: Clone> UpstreamLimitsService<S> {
    fn call<F>(
        &mut self,
        upstream: &str,
        call: impl FnOnce(&mut S) -> F,
    ) -> UpstreamLimitsFuture<F> {
        let state = match self.layer.limits.enter(upstream) {
            Ok(pass) => State::Called {
                inner: call(&mut self.inner),
                pass: Some(pass),
                settings: self.layer.settings.clone(),
            },
            Err(rejected) => {
                // A service that was polled ready and will not be called makes room for one that holds nothing.
                let fresh = self.inner.clone();
                self.inner = fresh;
                State::Rejected {
                    rejected: Some(rejected),
                }
            }
        };
        UpstreamLimitsFuture { state }
    }
}

impl<S> Service<reqwest::Request> for UpstreamLimitsService<S>
where
    S: Service<reqwest::Request, Response = reqwest::Response> + Clone,
    S::Error: ServiceError,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = UpstreamLimitsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: reqwest::Request) -> Self::Future {
        let url = request.url();
        let host = Host::of(url).to_string();
        let settings = &self.layer.settings;
        let upstream = settings.upstream(host, url.path(), request.headers());
        self.call(&upstream, |inner| inner.call(request))
    }
}

impl<S, B, R> Service<http::Request<B>> for UpstreamLimitsService<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone,
    S::Error: ServiceError,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = UpstreamLimitsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let uri = request.uri();
        let settings = &self.layer.settings;
        let upstream = settings.upstream(authority(uri), uri.path(), request.headers());
        self.call(&upstream, |inner| inner.call(request))
    }
}

/// As [`Host`] has it: with the port, and in lower case.
fn authority(uri: &http::Uri) -> String {
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    let of_scheme = || match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    match uri.port_u16().or_else(of_scheme) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

pin_project! {
    /// The future of [`UpstreamLimitsService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct UpstreamLimitsFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Called { #[pin] inner: F, pass: Option<Permit>, settings: Settings },
        Rejected { rejected: Option<Rejected> },
    }
}

/// An answer, of either kind.
trait Head {
    fn head(&self) -> (StatusCode, &HeaderMap);
}

impl Head for reqwest::Response {
    fn head(&self) -> (StatusCode, &HeaderMap) {
        (self.status(), self.headers())
    }
}

impl<B> Head for http::Response<B> {
    fn head(&self) -> (StatusCode, &HeaderMap) {
        (self.status(), self.headers())
    }
}

impl<F, R, E> Future for UpstreamLimitsFuture<F>
where
    F: Future<Output = Result<R, E>>,
    R: Head,
    E: From<Rejected>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Called {
                inner,
                pass,
                settings,
            } => {
                let result = ready!(inner.poll(cx));
                let pass = pass.take();
                if let Ok(response) = &result {
                    let (status, headers) = response.head();
                    let advertised = settings.advertised(status, headers);
                    if let Some((pass, advertised)) = pass.zip(advertised) {
                        pass.observe(advertised);
                    }
                }
                Poll::Ready(result)
            }
            Projected::Rejected { rejected } => {
                let rejected = rejected.take().expect("polled after completion");
                Poll::Ready(Err(rejected.into()))
            }
        }
    }
}

impl<F> fmt::Debug for UpstreamLimitsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamLimitsFuture")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use resilience_core::limit::upstream::Advertised::{Remaining, RetryAfter};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn advertised(status: u16, fields: &[(&str, &str)]) -> Option<Advertised> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let settings = Settings {
            key: None,
            budgets: true,
        };
        settings.advertised(StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn what_servers_say_is_understood_as_the_table_has_it() {
        let after = ("retry-after", "30");
        assert_eq!(advertised(429, &[after]), Some(RetryAfter(30 * SECOND)));
        assert_eq!(advertised(503, &[after]), Some(RetryAfter(30 * SECOND)));
        assert_eq!(advertised(200, &[after]), None);
        assert_eq!(advertised(409, &[after]), None, "that is about one request");
        assert_eq!(advertised(429, &[]), None);
        let nothing = ("ratelimit", r#""a";r=5;t=9, "b";r=0;t=7, "c";r=0;t=60"#);
        assert_eq!(advertised(200, &[nothing]), Some(RetryAfter(60 * SECOND)));
        assert_eq!(
            advertised(429, &[nothing, after]),
            Some(RetryAfter(30 * SECOND))
        );
        let some = ("ratelimit", r#""a";r=5;t=9, "b";r=3;t=7"#);
        assert_eq!(advertised(200, &[some]), Some(Remaining(3, 7 * SECOND)));
        let bytes = (
            "ratelimit-policy",
            r#""b";q=100;qu="content-bytes", "a";q=9"#,
        );
        assert_eq!(
            advertised(200, &[some, bytes]),
            Some(Remaining(5, 9 * SECOND))
        );
        assert_eq!(
            advertised(200, &[("ratelimit", r#""a";r=5"#)]),
            None,
            "for how long?"
        );
        assert_eq!(advertised(200, &[("ratelimit", "nonsense;;")]), None);
    }

    #[test]
    fn all_spellings_of_a_server_are_one() {
        let of = |uri: &str| authority(&uri.parse().unwrap());
        assert_eq!(of("http://API.test/x"), "api.test:80");
        assert_eq!(of("https://api.test"), "api.test:443");
        assert_eq!(of("http://[::1]:8080/"), "[::1]:8080");
        assert_eq!(of("/only/a/path"), "");
    }
}
