//! The default stack, part by part.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{Request, Response};
use resilience_core::{
    Classify, Error, InvalidConfig, Verdict,
    breaker::{CircuitBreaker, KeyedCircuitBreaker, OpenFor},
    bulkhead::{Bulkhead, KeyedBulkhead},
    deadline::Timeout,
    keyed::Keyed,
    limit::upstream::UpstreamLimits,
    retry::{Replay, Retry},
};
use tower::{ServiceBuilder, util::option_layer};
use tower_service::Service;

use super::{
    CallTimeoutLayer, Client, Host, HttpReplay, IdempotencyKeys, Parts, Propagation,
    ReqwestService, RetryInFlight, UpstreamLimitsLayer, reqwest_builder,
};
use crate::{HttpClassifier, OnBodyEnd};

/// Configures a [`Client`]. The order of the layers is fixed; for another, see
/// [`Client::from_service`].
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{breaker::CircuitBreaker, keyed::Keyed, retry::Retry};
/// use resilience_http::{Client, client::reqwest_builder};
///
/// let client = Client::builder("payments")
///     .http(reqwest_builder().user_agent("shop/1.0"))
///     .deadline(Duration::from_secs(3))
///     .attempt_timeout(Duration::from_millis(800))
///     .retry(Retry::builder("payments").max_attempts(2).build()?)
///     .breaker(CircuitBreaker::builder("payments").failure_rate(0.3).keyed(Keyed::new())?)
///     .without_bulkhead()
///     .build()?;
/// assert!(client.bulkheads().is_none());
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
#[must_use]
pub struct ClientBuilder {
    name: Arc<str>,
    http: Http,
    deadline: Part<Timeout, Duration>,
    retry: Part<Retry>,
    bulkhead: Part<KeyedBulkhead<Host>>,
    breaker: Part<KeyedCircuitBreaker<Host>>,
    attempt_timeout: Option<Duration>,
    verdicts: Arc<Verdicts>,
    replay: Arc<Replays>,
    keys: Option<IdempotencyKeys>,
    upstream_limits: Option<UpstreamLimits>,
    propagation: Propagation,
    body_end: OnBodyEnd,
}

type Verdicts = dyn Classify<Response, Error<reqwest::Error>> + Send + Sync;
type Replays = dyn Replay<Request> + Send + Sync;

/// One part of the stack: built with defaults, handed in, or left out.
enum Part<T, D = ()> {
    Default(D),
    Own(T),
    Off,
}

impl<T, D> Part<T, D> {
    fn build(
        self,
        default: impl FnOnce(D) -> Result<T, InvalidConfig>,
    ) -> Result<Option<T>, InvalidConfig> {
        match self {
            Self::Default(settings) => default(settings).map(Some),
            Self::Own(part) => Ok(Some(part)),
            Self::Off => Ok(None),
        }
    }
}

impl ClientBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            body_end: OnBodyEnd::new(Arc::clone(&name)),
            name,
            http: Http::Default,
            deadline: Part::Default(Duration::from_secs(10)),
            retry: Part::Default(()),
            bulkhead: Part::Default(()),
            breaker: Part::Default(()),
            attempt_timeout: None,
            verdicts: Arc::new(HttpClassifier::new()),
            replay: Arc::new(HttpReplay::new()),
            keys: None,
            upstream_limits: None,
            propagation: Propagation::new(),
        }
    }

    /// How reqwest's client is built: proxies, certificates, pools. Begin with [`reqwest_builder`]; whatever you
    /// begin with, reqwest's own retries are turned off.
    pub fn http(mut self, http: reqwest::ClientBuilder) -> Self {
        self.http = Http::Build(Box::new(http));
        self
    }

    /// A client of reqwest's that is there already, with its connections. It should have been built with
    /// `.retry(reqwest::retry::never())`: see [`ReqwestService`].
    pub fn http_client(mut self, http: reqwest::Client) -> Self {
        self.http = Http::Ready(http);
        self
    }

    /// How long a whole call may take: all attempts, the waits between them, and the body. Default: 10 seconds.
    /// A single request says otherwise by [`timeout`](super::RequestBuilder::timeout).
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Part::Default(after);
        self
    }

    /// A handle of your own for the deadline, shared with other stacks.
    pub fn deadline_handle(mut self, timeout: Timeout) -> Self {
        self.deadline = Part::Own(timeout);
        self
    }

    /// No deadline of the client's own. One that is set around the call is still told to the server and still bounds
    /// the retries and the body, but an attempt whose head does not come is awaited for as long as it takes.
    pub fn without_deadline(mut self) -> Self {
        self.deadline = Part::Off;
        self
    }

    /// Another retry. Give several clients of one dependency the same [budget](resilience_core::retry::RetryBudget).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Part::Own(retry);
        self
    }

    /// Every request is sent once.
    pub fn without_retry(mut self) -> Self {
        self.retry = Part::Off;
        self
    }

    /// Other bulkheads. One family can serve several clients.
    pub fn bulkhead(mut self, bulkheads: KeyedBulkhead<Host>) -> Self {
        self.bulkhead = Part::Own(bulkheads);
        self
    }

    /// No limit on the calls in flight.
    pub fn without_bulkhead(mut self) -> Self {
        self.bulkhead = Part::Off;
        self
    }

    /// Other breakers. One family can serve several clients.
    pub fn breaker(mut self, breakers: KeyedCircuitBreaker<Host>) -> Self {
        self.breaker = Part::Own(breakers);
        self
    }

    /// No breakers.
    pub fn without_breaker(mut self) -> Self {
        self.breaker = Part::Off;
        self
    }

    /// How long one attempt may take to its head. Default: as long as the whole call. Once the head is there no
    /// other attempt can follow, so the body has until the deadline of the whole call. In metrics and rejections it
    /// is called `NAME.attempt`.
    pub const fn attempt_timeout(mut self, after: Duration) -> Self {
        self.attempt_timeout = Some(after);
        self
    }

    /// Another judgement of answers and errors, for breaker and retry alike. Default: [`HttpClassifier`]. To change
    /// single rows of it, see [`classify`](crate::classify).
    pub fn classify<C>(mut self, classifier: C) -> Self
    where
        C: Classify<Response, Error<reqwest::Error>> + Send + Sync + 'static,
    {
        self.verdicts = Arc::new(classifier);
        self
    }

    /// Other rules for what may be sent again. Default: [`HttpReplay`].
    pub fn replay<R: Replay<Request> + Send + Sync + 'static>(mut self, replay: R) -> Self {
        self.replay = Arc::new(replay);
        self
    }

    /// Gives calls that are not safe to repeat an `Idempotency-Key` each, the same on all attempts, so that they are
    /// repeated like the others. Default: off, because only a server that knows the header keeps its side of it.
    ///
    /// The retry then also comes back when the server answers that the first attempt is still under way
    /// ([`RetryInFlight`]).
    pub fn idempotency_keys(mut self, keys: IdempotencyKeys) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Keeps to what servers say of their limits, and shares that with everything else that has this handle: see
    /// [`UpstreamLimitsLayer`]. Default: off; a 429 is then an answer like any other, that the retry may wait out.
    pub fn upstream_limits(mut self, limits: UpstreamLimits) -> Self {
        self.upstream_limits = Some(limits);
        self
    }

    /// What each attempt tells the server. Default: [`Propagation::new`]; for third parties, [`Propagation::none`].
    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = propagation;
        self
    }

    /// What bodies that are dropped half read say. Default: see [`PartialRead`](crate::body::PartialRead).
    pub fn body_end(mut self, body_end: OnBodyEnd) -> Self {
        self.body_end = body_end;
        self
    }

    /// Builds the client.
    ///
    /// # Errors
    ///
    /// A duration is zero, or reqwest cannot build its client (its TLS library does not start).
    pub fn build(mut self) -> Result<Client, InvalidConfig> {
        let http = std::mem::take(&mut self.http).build()?;
        let transport = ReqwestService::new(http.clone());
        self.over(http, transport)
    }

    /// The stack over any transport.
    pub(super) fn over<S>(
        self,
        http: reqwest::Client,
        transport: S,
    ) -> Result<Client, InvalidConfig>
    where
        S: Service<Request, Response = Response, Error = Error<reqwest::Error>>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let name = || Arc::clone(&self.name);
        let parts = Parts {
            deadline: self.deadline.build(|after| Timeout::new(name(), after))?,
            retry: self.retry.build(|()| Retry::builder(name()).build())?,
            bulkheads: self.bulkhead.build(|()| default_bulkheads(name()))?,
            breakers: self.breaker.build(|()| default_breakers(name()))?,
        };
        // A name of its own, so that what is cut off here and what is cut off there are told apart.
        let of_attempts = || format!("{}.attempt", self.name);
        let attempt = self
            .attempt_timeout
            .map(|after| Timeout::new(of_attempts(), after));
        let attempt = attempt.transpose()?;
        let of_request: fn(&Request) -> Host = |request| Host::of(request.url());
        let (verdicts, body_end) = (Shared(self.verdicts), self.body_end);
        let of_retry = match &self.keys {
            Some(_) => Shared(Arc::new(RetryInFlight(verdicts.clone())) as Arc<Verdicts>),
            None => verdicts.clone(),
        };

        let deadline = parts.deadline.as_ref().map(CallTimeoutLayer::new);
        let retry = parts.retry.as_ref().map(|retry| {
            let layer = retry.layer().classify(of_retry);
            layer.replay(Shared(self.replay))
        });
        let upstream_limits = self.upstream_limits.as_ref().map(UpstreamLimitsLayer::new);
        let bulkhead = parts.bulkheads.as_ref().map(|bulkheads| {
            let layer = bulkheads.layer(of_request);
            layer.complete_on(body_end.clone())
        });
        let breaker = parts.breakers.as_ref().map(|breakers| {
            let layer = breakers.layer(of_request).classify(verdicts);
            layer.complete_on(body_end)
        });
        let stack = ServiceBuilder::new()
            .layer(option_layer(deadline))
            .layer(option_layer(self.keys.map(|keys| keys.layer())))
            .layer(option_layer(retry))
            .layer(option_layer(upstream_limits))
            .layer(option_layer(bulkhead))
            .layer(option_layer(breaker))
            .layer(option_layer(attempt.map(|timeout| timeout.layer())))
            .layer(self.propagation.layer())
            .service(transport);
        Ok(Client::from_parts(http, Box::new(stack), parts))
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("name", &self.name)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("idempotency_keys", &self.keys)
            .field("upstream_limits", &self.upstream_limits)
            .field("propagation", &self.propagation)
            .field("body_end", &self.body_end)
            .finish_non_exhaustive()
    }
}

/// Enough for a busy service, few enough that a host that hangs cannot take all the memory there is.
fn default_bulkheads(name: Arc<str>) -> Result<KeyedBulkhead<Host>, InvalidConfig> {
    Bulkhead::builder(name)
        .max_concurrent(128)
        .queue(256, Duration::from_secs(1))
        .keyed(Keyed::new())
}

fn default_breakers(name: Arc<str>) -> Result<KeyedCircuitBreaker<Host>, InvalidConfig> {
    let open_for = OpenFor::exponential(Duration::from_secs(5), Duration::from_secs(60));
    CircuitBreaker::builder(name)
        .open_for(open_for.honour_retry_after(Duration::from_secs(60)))
        .keyed(Keyed::new())
}

#[derive(Default)]
enum Http {
    #[default]
    Default,
    Build(Box<reqwest::ClientBuilder>),
    Ready(reqwest::Client),
}

impl Http {
    fn build(self) -> Result<reqwest::Client, InvalidConfig> {
        let builder = match self {
            Self::Ready(http) => return Ok(http),
            Self::Default => reqwest_builder(),
            Self::Build(builder) => builder.retry(reqwest::retry::never()),
        };
        let rule = "must be something that reqwest can build";
        let built = builder.build();
        built.map_err(|error| InvalidConfig::new("http", error, rule))
    }
}

/// A classifier or replay of any type, so that a client's own type does not depend on it.
struct Shared<T: ?Sized>(Arc<T>);

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl Classify<Response, Error<reqwest::Error>> for Shared<Verdicts> {
    fn classify(&self, result: Result<&Response, &Error<reqwest::Error>>) -> Verdict {
        self.0.classify(result)
    }
}

impl Replay<Request> for Shared<Replays> {
    fn replay(&self, request: &Request) -> Option<Request> {
        self.0.replay(request)
    }

    fn set_attempt(&self, request: &mut Request, attempt: u32) {
        self.0.set_attempt(request, attempt);
    }
}
