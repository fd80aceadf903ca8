//! The layer: decides, then calls, then tells.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use sha2::{Digest, Sha256};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    LimitHeaders, LimitRequests, MissingKey, RequestLimit,
    decide::{RequestDecision, Ruled, Told},
};
use crate::{
    problem::{Problem, TYPE_PREFIX},
    rate_limit::{self, Policy, ServiceLimit},
};

/// The type of the document of a request that exceeds a quota
/// (draft-ietf-httpapi-ratelimit-headers-11, section 5.1).
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// What requests without a key share.
const SHARED: &str = "(without key)";

/// Made by [`LimitRequests::layer`].
#[must_use]
pub struct LimitRequestsLayer<L: RequestLimit> {
    limits: LimitRequests<L>,
}

impl<L: RequestLimit> LimitRequestsLayer<L> {
    pub(super) const fn new(limits: LimitRequests<L>) -> Self {
        Self { limits }
    }
}

impl<L: RequestLimit> Clone for LimitRequestsLayer<L> {
    fn clone(&self) -> Self {
        Self::new(self.limits.clone())
    }
}

impl<L: RequestLimit + fmt::Debug> fmt::Debug for LimitRequestsLayer<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LimitRequestsLayer")
            .field(&self.limits)
            .finish()
    }
}

impl<S, L: RequestLimit> Layer<S> for LimitRequestsLayer<L> {
    type Service = LimitRequestsService<S, L>;

    fn layer(&self, inner: S) -> Self::Service {
        LimitRequestsService {
            inner,
            limits: self.limits.clone(),
        }
    }
}

/// The service of [`LimitRequestsLayer`].
pub struct LimitRequestsService<S, L: RequestLimit> {
    inner: S,
    limits: LimitRequests<L>,
}

impl<S: Clone, L: RequestLimit> Clone for LimitRequestsService<S, L> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            limits: self.limits.clone(),
        }
    }
}

impl<S: fmt::Debug, L: RequestLimit + fmt::Debug> fmt::Debug for LimitRequestsService<S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitRequestsService")
            .field("inner", &self.inner)
            .field("limits", &self.limits)
            .finish()
    }
}

impl<S, L, B, R> Service<Request<B>> for LimitRequestsService<S, L>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    L: RequestLimit,
    R: From<String>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = LimitRequestsFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = &self.limits.settings;
        let (head, body) = request.into_parts();
        let subject = match (settings.key.of(&head), settings.missing_key) {
            (Some(subject), _) => subject,
            (None, MissingKey::Share) => SHARED.to_owned(),
            (None, MissingKey::Pass) => {
                let inner = self.inner.call(Request::from_parts(head, body));
                return LimitRequestsFuture::new(State::Called { inner, told: None }, None);
            }
            (None, MissingKey::Refuse) => return self.without_call(Outcome::NoKey, None),
        };
        let price = match &settings.cost {
            Some(cost) => cost(&head),
            None => 1.into(),
        };
        let headers = settings.headers.clone();
        let headers = Some((headers, partition_of(&subject)));
        let request = Request::from_parts(head, body);
        match self.limits.limit.decide(subject, price) {
            Ruled::Now(decision) if decision.rejected.is_some() => {
                self.without_call(Outcome::Refused(decision), headers)
            }
            Ruled::Now(decision) => LimitRequestsFuture::new(
                State::Called {
                    inner: self.inner.call(request),
                    told: Some(decision.limits),
                },
                headers,
            ),
            Ruled::Later(decision) => {
                // The service that was polled ready goes along; a fresh one takes its place.
                let fresh = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, fresh);
                let call = Some((inner, request));
                LimitRequestsFuture::new(State::Deciding { decision, call }, headers)
            }
        }
    }
}

impl<S: Clone, L: RequestLimit> LimitRequestsService<S, L> {
    fn without_call<B>(
        &mut self,
        outcome: Outcome,
        headers: Option<(LimitHeaders, [u8; 8])>,
    ) -> LimitRequestsFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        // A service that was polled ready and will not be called makes room for one that holds nothing.
        let fresh = self.inner.clone();
        self.inner = fresh;
        let outcome = Some(outcome);
        LimitRequestsFuture::new(State::Refused { outcome }, headers)
    }
}

fn partition_of(subject: &str) -> [u8; 8] {
    let mut key = [0; 8];
    key.copy_from_slice(&Sha256::digest(subject)[..8]);
    key
}

/// Why the handler was not called.
enum Outcome {
    Refused(RequestDecision),
    NoKey,
}

type Deciding = Pin<Box<dyn Future<Output = RequestDecision> + Send>>;

pin_project! {
    /// The future of [`LimitRequestsService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct LimitRequestsFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future>,
        headers: Option<(LimitHeaders, [u8; 8])>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<S, B, F> {
        Deciding { decision: Deciding, call: Option<(S, Request<B>)> },
        Called { #[pin] inner: F, told: Option<Vec<Told>> },
        Refused { outcome: Option<Outcome> },
    }
}

impl<S: Service<Request<B>>, B> LimitRequestsFuture<S, B> {
    const fn new(state: State<S, B, S::Future>, headers: Option<(LimitHeaders, [u8; 8])>) -> Self {
        Self { state, headers }
    }
}

impl<S, B, R> Future for LimitRequestsFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: From<String>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                Projected::Deciding { decision, call } => {
                    let decision = ready!(decision.as_mut().poll(cx));
                    let (mut inner, request) = call.take().expect("polled after completion");
                    let next = if decision.rejected.is_some() {
                        let outcome = Some(Outcome::Refused(decision));
                        State::Refused { outcome }
                    } else {
                        State::Called {
                            inner: inner.call(request),
                            told: Some(decision.limits),
                        }
                    };
                    this.state.set(next);
                }
                Projected::Called { inner, told } => {
                    let mut response = ready!(inner.poll(cx))?;
                    if let Some((limits, (headers, key))) = told.take().zip(this.headers.as_ref()) {
                        headers.tell(&limits, *key, response.headers_mut());
                    }
                    return Poll::Ready(Ok(response));
                }
                Projected::Refused { outcome } => {
                    let outcome = outcome.take().expect("polled after completion");
                    return Poll::Ready(Ok(refusal(outcome, this.headers.as_ref())));
                }
            }
        }
    }
}

fn refusal<R: From<String>>(
    outcome: Outcome,
    headers: Option<&(LimitHeaders, [u8; 8])>,
) -> Response<R> {
    let Outcome::Refused(decision) = outcome else {
        return Problem::new(StatusCode::BAD_REQUEST, "No key to be limited by")
            .with_type(format!("{TYPE_PREFIX}rate_limit:no_key"))
            .with_detail("The request does not say whom it is to be charged to.")
            .into_response();
    };
    let problem = match (decision.rejected, headers) {
        (Some(rejected), Some((headers, _))) => {
            let wait = rejected.retry_after();
            let later = wait.map(|wait| headers.later(wait));
            let said = match later {
                Some(later) => rejected.with_retry_after(later),
                None => rejected,
            };
            Problem::from(said).exactly(wait)
        }
        (rejected, _) => rejected.map_or_else(
            || Problem::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Problem::from,
        ),
    };
    let problem = match decision.binding {
        Some(name) if problem.status() == StatusCode::TOO_MANY_REQUESTS => {
            problem.with_type(QUOTA_EXCEEDED).violating(name)
        }
        _ => problem,
    };
    let mut response = problem.into_response();
    if let Some((headers, key)) = headers {
        headers.tell(&decision.limits, *key, response.headers_mut());
    }
    response
}

impl LimitHeaders {
    fn tell(&self, limits: &[Told], key: [u8; 8], headers: &mut HeaderMap) {
        if !self.fields {
            return;
        }
        let partition = self.partition.then(|| key.to_vec());
        let (mut policies, mut left) = (Vec::new(), Vec::new());
        for limit in limits {
            let (quota, window) = by_the_second(limit);
            let mut policy = Policy::new(&limit.name, quota).window(window);
            policy.unit = self.unit_of(&limit.name);
            policy.partition.clone_from(&partition);
            policies.push(policy);
            let mut service = ServiceLimit::new(&limit.name, limit.remaining);
            service.window = limit.next_in;
            service.partition.clone_from(&partition);
            left.push(service);
        }
        rate_limit::write_policies(headers, &policies);
        rate_limit::write_limits(headers, &left);
    }

    fn unit_of(&self, limit: &str) -> Option<String> {
        let named = self.units.iter().find(|(name, _)| name == limit);
        named.map(|(_, unit)| unit.clone())
    }

    /// Whole seconds, up to the jitter later than the wait, rounded up.
    fn later(&self, wait: Duration) -> Duration {
        let earliest = seconds(wait);
        if self.jitter == 0.0 {
            return Duration::from_secs(earliest);
        }
        let stretched = wait.as_secs_f64() * (1.0 + self.jitter);
        // Saturates: a wait of centuries is as good as one of more centuries.
        let latest = (stretched.ceil() as u64).max(earliest.saturating_add(1));
        Duration::from_secs(fastrand::u64(earliest..=latest))
    }
}

fn seconds(wait: Duration) -> u64 {
    let up = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(up).max(1)
}

/// A window is a whole number of seconds: of a shorter one, what the limit allows in a second.
fn by_the_second(limit: &Told) -> (u64, Duration) {
    let (permits, period) = (limit.quota.permits(), limit.quota.period());
    if period.subsec_nanos() == 0 {
        return (permits, period);
    }
    let window = seconds(period);
    let in_window = u128::from(permits) * u128::from(window) * 1_000_000 / period.as_micros();
    let in_window = u64::try_from(in_window).unwrap_or(u64::MAX);
    (in_window, Duration::from_secs(window))
}

impl<S: Service<Request<B>>, B> fmt::Debug for LimitRequestsFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitRequestsFuture")
            .finish_non_exhaustive()
    }
}
