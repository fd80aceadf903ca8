//! Builder of a [`Client`]: the default stack, part by part.

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
    AwaitInFlightLayer, CallTimeoutLayer, Client, Host, HttpReplay, IdempotencyKeys, Parts,
    Propagation, ReqwestService, UpstreamLimitsLayer, reqwest_builder,
};
use crate::{HttpClassifier, OnBodyEnd};

/// Builder of a [`Client`]. The order of the layers is fixed; for another order, see
/// [`Client::from_service`].
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{CircuitBreaker, Keyed, Retry};
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

/// One part of the stack: built with defaults, supplied by the user, or left out.
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
            body_end: OnBodyEnd::new(),
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

    /// Sets how reqwest's client is built: proxies, certificates, pools. Start from
    /// [`reqwest_builder`]. reqwest's own retries are turned off in any case.
    pub fn http(mut self, http: reqwest::ClientBuilder) -> Self {
        self.http = Http::Build(Box::new(http));
        self
    }

    /// Uses an existing reqwest client, with its connections. Build it with
    /// `.retry(reqwest::retry::never())`: see [`ReqwestService`].
    pub fn http_client(mut self, http: reqwest::Client) -> Self {
        self.http = Http::Ready(http);
        self
    }

    /// Sets the deadline of a whole call: all attempts, the waits between them, and the body.
    /// Default: 10 seconds. A single request can set its own with
    /// [`timeout`](super::RequestBuilder::timeout).
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Part::Default(after);
        self
    }

    /// Uses this handle for the deadline, which other stacks may share.
    pub fn deadline_handle(mut self, timeout: Timeout) -> Self {
        self.deadline = Part::Own(timeout);
        self
    }

    /// Removes the client's own deadline. A deadline that is set around the call is still sent to
    /// the server and still bounds retries and body; an attempt without a response waits without
    /// limit.
    pub fn without_deadline(mut self) -> Self {
        self.deadline = Part::Off;
        self
    }

    /// Uses this retry. Give all clients of one dependency the same
    /// [budget](resilience_core::retry::RetryBudget).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Part::Own(retry);
        self
    }

    /// Removes the retry: every request is sent once.
    pub fn without_retry(mut self) -> Self {
        self.retry = Part::Off;
        self
    }

    /// Uses these bulkheads. One family can serve several clients.
    pub fn bulkhead(mut self, bulkheads: KeyedBulkhead<Host>) -> Self {
        self.bulkhead = Part::Own(bulkheads);
        self
    }

    /// Removes the bulkheads: concurrent calls are not limited.
    pub fn without_bulkhead(mut self) -> Self {
        self.bulkhead = Part::Off;
        self
    }

    /// Uses these breakers. One family can serve several clients.
    pub fn breaker(mut self, breakers: KeyedCircuitBreaker<Host>) -> Self {
        self.breaker = Part::Own(breakers);
        self
    }

    /// Removes the breakers.
    pub fn without_breaker(mut self) -> Self {
        self.breaker = Part::Off;
        self
    }

    /// Sets the timeout of one attempt, up to the head of its response. Default: none besides the
    /// deadline. Once the head is there, no other attempt can follow, so the body has until the
    /// deadline of the whole call. The timeout is called `NAME.attempt` in metrics and rejections.
    pub const fn attempt_timeout(mut self, after: Duration) -> Self {
        self.attempt_timeout = Some(after);
        self
    }

    /// Sets the classifier of responses and errors, for breaker and retry alike. Default:
    /// [`HttpClassifier`]. To change single rows of it, see [`classify`](crate::classify).
    pub fn classify<C>(mut self, classifier: C) -> Self
    where
        C: Classify<Response, Error<reqwest::Error>> + Send + Sync + 'static,
    {
        self.verdicts = Arc::new(classifier);
        self
    }

    /// Sets which requests may be sent again. Default: [`HttpReplay`].
    pub fn replay<R: Replay<Request> + Send + Sync + 'static>(mut self, replay: R) -> Self {
        self.replay = Arc::new(replay);
        self
    }

    /// Adds an `Idempotency-Key` to each call that is not safe to repeat, the same on all attempts,
    /// so that such calls are retried like the others. Default: off, because only a server that
    /// supports the header processes the attempts once.
    ///
    /// A call whose first attempt the server still processes gets that attempt's response
    /// ([`AwaitInFlightLayer`]).
    pub fn idempotency_keys(mut self, keys: IdempotencyKeys) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Enforces the rate limits that servers advertise, together with every other user of this
    /// handle: see [`UpstreamLimitsLayer`]. Default: off; a 429 is then a response like any other,
    /// which the retry may wait out.
    pub fn upstream_limits(mut self, limits: UpstreamLimits) -> Self {
        self.upstream_limits = Some(limits);
        self
    }

    /// Sets which headers each attempt adds. Default: [`Propagation::new`]; for third parties,
    /// [`Propagation::none`].
    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = propagation;
        self
    }

    /// Sets how a body that is dropped before its end is judged. Default: see
    /// [`PartialRead`](crate::body::PartialRead). It has the name of the client unless it has another one.
    pub fn body_end(mut self, body_end: OnBodyEnd) -> Self {
        self.body_end = body_end;
        self
    }

    /// Builds the client.
    ///
    /// # Errors
    ///
    /// If a duration is zero, or reqwest cannot build its client (for example because its TLS
    /// library does not start).
    pub fn build(mut self) -> Result<Client, InvalidConfig> {
        let http = std::mem::take(&mut self.http).build()?;
        let transport = ReqwestService::new(http.clone());
        self.over(http, transport)
    }

    /// Builds the stack over any transport.
    pub(super) fn over<S>(
        self,
        http: reqwest::Client,
        transport: S,
    ) -> Result<Client, InvalidConfig>
    where
        S: Service<Request, Response = Response, Error = Error<reqwest::Error>>,
        S: Clone + fmt::Debug + Send + Sync + 'static,
        S::Future: Send,
    {
        let name = || Arc::clone(&self.name);
        let parts = Parts {
            deadline: self.deadline.build(|after| Timeout::new(name(), after))?,
            retry: self.retry.build(|()| Retry::builder(name()).build())?,
            bulkheads: self.bulkhead.build(|()| default_bulkheads(name()))?,
            breakers: self.breaker.build(|()| default_breakers(name()))?,
        };
        // A name of its own, so that the two timeouts can be told apart.
        let of_attempts = || format!("{}.attempt", self.name);
        let attempt = self
            .attempt_timeout
            .map(|after| Timeout::new(of_attempts(), after));
        let attempt = attempt.transpose()?;
        let of_request: fn(&Request) -> Host = |request| Host::of(request.url());
        let (verdicts, body_end) = (Shared(self.verdicts), self.body_end.or_name(&self.name));

        let deadline = parts.deadline.as_ref().map(CallTimeoutLayer::new);
        let replay = Shared(self.replay);
        let in_flight = parts.retry.as_ref();
        let in_flight = in_flight.map(|_| AwaitInFlightLayer::with(replay.clone()));
        let retry = parts.retry.as_ref().map(|retry| {
            let layer = retry.layer().classify(verdicts.clone());
            layer.replay(replay)
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
            .layer(option_layer(in_flight))
            .layer(option_layer(retry))
            .layer(option_layer(upstream_limits))
            .layer(option_layer(bulkhead))
            .layer(option_layer(breaker))
            .layer(option_layer(
                attempt.map(|timeout| timeout.layer().per_attempt()),
            ))
            .layer(self.propagation.layer())
            .service(transport);
        Ok(Client::from_parts(http, stack, parts))
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

/// Enough for a busy service, and few enough that a server that hangs cannot exhaust memory.
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

/// A classifier or replay policy of any type, so that the type of the client does not depend on it.
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
