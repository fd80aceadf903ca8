//! How long the client will wait, read from its request, and kept to.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use resilience_core::{
    Clock, InvalidConfig,
    deadline::{self, Deadline, Timeout, TimeoutService},
    error::wrap::WrapErrorService,
};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    guard::guard,
    rejection::{RejectionFuture, RejectionService},
};
use crate::{
    headers,
    problem::{Problem, Problems, TYPE_PREFIX},
};

/// The deadline header of gRPC: up to eight digits and a unit (`H`, `M`, `S`, `m`, `u`, `n`).
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Gives each request the time that its client allows, but no more than a maximum of the server's.
///
/// The time comes from the header [`headers::DEADLINE`] (milliseconds that the client will still wait; another name
/// by [`header`](Self::header)) or from [`GRPC_TIMEOUT`]; from the shorter, if both are there. Without either it is
/// the maximum. So a client can shorten its time and never stretch it: the headers need no trust.
///
/// - The deadline is the [`current`](deadline::current) one in the handler and in all that it calls: retries, queues
///   and outbound requests keep to it. Tasks that it spawns need [`deadline::inherit`].
/// - At the deadline the handler is dropped, and the client gets a 504. Work that must not be left half done belongs
///   in a task of its own (`tokio::spawn`), which the handler awaits.
/// - A request whose time is over when it arrives is answered 504 at once; the handler does not run.
/// - A header that cannot be read is [`Malformed`]. Of several, the shortest counts.
/// - The response's body is outside: the request ends with the response's head. A layer with
///   [`OnBodyEnd`](crate::OnBodyEnd) beneath holds the body to the deadline too.
///
/// The handle is cheap to clone; its layers share one name and one set of counters.
///
/// **Cost**: a look-up of two headers, and what [`Timeout`] costs. **Cancellation**: drops the handler.
#[derive(Clone, Debug)]
pub struct InboundDeadline {
    timeout: Timeout,
    settings: Settings,
}

/// What becomes of a request whose deadline header cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// It is served as if the header were not there: with the server's maximum.
    #[default]
    Ignore,
    /// It is answered 400, and the handler does not run.
    Reject,
}

#[derive(Clone, Debug)]
struct Settings {
    clock: Clock,
    header: HeaderName,
    malformed: Malformed,
    problems: Problems,
}

impl InboundDeadline {
    /// No request may take longer than `maximum`. `name` is the one in logs and metrics.
    ///
    /// # Errors
    ///
    /// `maximum` is zero.
    pub fn new(name: impl Into<Arc<str>>, maximum: Duration) -> Result<Self, InvalidConfig> {
        let clock = Clock::auto();
        Ok(Self {
            timeout: Timeout::with_clock(name, maximum, clock)?,
            settings: Settings {
                clock,
                header: headers::DEADLINE,
                malformed: Malformed::default(),
                problems: Problems::new(),
            },
        })
    }

    /// Another name for the header with the milliseconds (Envoy's `x-envoy-expected-rq-timeout-ms`, say).
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.settings.header = name;
        self
    }

    /// What to do when the header cannot be read. Default: [`Malformed::Ignore`].
    #[must_use]
    pub const fn malformed(mut self, policy: Malformed) -> Self {
        self.settings.malformed = policy;
        self
    }

    /// How the 504 is written.
    #[must_use]
    pub const fn problems(mut self, problems: Problems) -> Self {
        self.settings.problems = problems;
        self
    }

    /// The layer.
    #[must_use]
    pub fn layer(&self) -> InboundDeadlineLayer {
        InboundDeadlineLayer(self.clone())
    }

    /// The timeout that ends the requests: its counters tell how many were cut off, and how many came too late.
    #[must_use]
    pub const fn timeout(&self) -> &Timeout {
        &self.timeout
    }
}

/// Made by [`InboundDeadline::layer`].
#[derive(Clone, Debug)]
pub struct InboundDeadlineLayer(InboundDeadline);

impl<S: Clone> Layer<S> for InboundDeadlineLayer {
    type Service = InboundDeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let InboundDeadline { timeout, settings } = &self.0;
        let limited = guard(timeout.layer()).answer(settings.problems);
        InboundDeadlineService {
            inner: limited.layer(inner),
            settings: settings.clone(),
        }
    }
}

/// The service made by [`InboundDeadlineLayer`].
#[derive(Clone, Debug)]
pub struct InboundDeadlineService<S> {
    inner: Limited<S>,
    settings: Settings,
}

type Limited<S> = RejectionService<TimeoutService<WrapErrorService<S>>>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for InboundDeadlineService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<String>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = InboundDeadlineFuture<
        <TimeoutService<WrapErrorService<S>> as Service<Request<ReqBody>>>::Future,
        ResBody,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Request<ReqBody>) -> Self::Future {
        let state = match self.settings.time_left(req.headers()) {
            Ok(None) => State::Called {
                inner: self.inner.call(req),
            },
            Ok(Some(left)) => {
                let clock = self.settings.clock;
                let deadline = Deadline::at(clock.now() + left, clock);
                State::Called {
                    inner: deadline::sync_scope(deadline, || self.inner.call(req)),
                }
            }
            Err(header) => State::Malformed {
                response: Some(malformed(&header).into_response()),
            },
        };
        InboundDeadlineFuture { state }
    }
}

impl Settings {
    /// What the headers leave to the request; the error is the header that cannot be read.
    fn time_left(&self, headers: &HeaderMap) -> Result<Option<Duration>, HeaderName> {
        let own = self.read(headers, &self.header, headers::parse_deadline)?;
        let grpc = self.read(headers, &GRPC_TIMEOUT, parse_grpc_timeout)?;
        Ok([own, grpc].into_iter().flatten().min())
    }

    fn read(
        &self,
        headers: &HeaderMap,
        name: &HeaderName,
        parse: fn(&HeaderValue) -> Option<Duration>,
    ) -> Result<Option<Duration>, HeaderName> {
        let mut shortest = None;
        for value in headers.get_all(name) {
            match parse(value) {
                Some(left) => shortest = Some(shortest.map_or(left, |other| left.min(other))),
                None if self.malformed == Malformed::Reject => return Err(name.clone()),
                None => {}
            }
        }
        Ok(shortest)
    }
}

fn malformed(header: &HeaderName) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "Malformed deadline")
        .with_type(format!("{TYPE_PREFIX}deadline:malformed"))
        .with_detail(format!("The header {header} does not hold a duration."))
}

/// Reads one value of [`GRPC_TIMEOUT`]. `None` unless it is one to eight digits and a unit. Nothing above
/// [`headers::MAX_DEADLINE`] comes out.
#[must_use]
pub fn parse_grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let value = value.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    let duration = match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(duration.min(headers::MAX_DEADLINE))
}

pin_project! {
    /// The future of [`InboundDeadlineService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct InboundDeadlineFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F, B> {
        Called { #[pin] inner: RejectionFuture<F, Problems> },
        Malformed { response: Option<Response<B>> },
    }
}

impl<F, B, E> Future for InboundDeadlineFuture<F, B>
where
    F: Future<Output = Result<Response<B>, resilience_core::Error<E>>>,
    B: From<String>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Called { inner } => inner.poll(cx),
            Projected::Malformed { response } => {
                Poll::Ready(Ok(response.take().expect("polled after completion")))
            }
        }
    }
}

impl<F, B> fmt::Debug for InboundDeadlineFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundDeadlineFuture")
            .finish_non_exhaustive()
    }
}
