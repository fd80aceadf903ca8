//! Deadlines of inbound requests, as their clients send them.

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

/// gRPC's deadline header: up to eight digits and a unit (`H`, `M`, `S`, `m`, `u`, `n`).
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Deadline of each request: the time that its client allows, up to a maximum of the server.
///
/// The time is in the header [`headers::DEADLINE`] (milliseconds that the client will still wait;
/// another name by [`header`](Self::header)) or in [`GRPC_TIMEOUT`]; if both are there, the shorter
/// counts. Without either, it is the maximum. A client can shorten its time but never extend it, so
/// the headers need no trust.
///
/// - The deadline is the [`current`](deadline::current) one in the handler and in everything that
///   it calls: retries, queues and outbound requests respect it. Tasks that the handler spawns need
///   [`deadline::inherit`].
/// - At the deadline the handler is dropped, and the client gets a 504. Work that must not be left
///   half done belongs in a task of its own (`tokio::spawn`) that the handler awaits.
/// - A request that arrives after its deadline gets a 504 at once; the handler does not run.
/// - A header that cannot be parsed is treated as [`Malformed`] says. Of several values, the
///   shortest counts.
/// - The deadline covers the response's head and not its body. A layer with
///   [`OnBodyEnd`](crate::OnBodyEnd) below extends it to the body.
///
/// The handle is cheap to clone; all of its layers share one name and one set of counters.
///
/// **Cost**: a look-up of two headers, and the cost of [`Timeout`]. **Cancellation**: drops the
/// handler.
///
/// # References
/// gRPC over HTTP/2 (`grpc-timeout`); Envoy's `x-envoy-expected-rq-timeout-ms`.
#[derive(Clone, Debug)]
pub struct InboundDeadline {
    timeout: Timeout,
    settings: Settings,
}

/// How a request is treated whose deadline header cannot be parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// It is served with the server's maximum, as without the header.
    #[default]
    Ignore,
    /// It gets a 400, and the handler does not run.
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
    /// Creates the handle. No request takes longer than `maximum`. `name` is its name in logs and
    /// metrics.
    ///
    /// # Errors
    ///
    /// If `maximum` is zero.
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

    /// Sets the name of the header with the milliseconds, such as Envoy's
    /// `x-envoy-expected-rq-timeout-ms`. Default: [`headers::DEADLINE`].
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.settings.header = name;
        self
    }

    /// Sets how a request with a header that cannot be parsed is treated. Default:
    /// [`Malformed::Ignore`].
    #[must_use]
    pub const fn malformed(mut self, policy: Malformed) -> Self {
        self.settings.malformed = policy;
        self
    }

    /// Sets the format of the 504. Default: [`Problems::new`].
    #[must_use]
    pub const fn problems(mut self, problems: Problems) -> Self {
        self.settings.problems = problems;
        self
    }

    /// Makes a layer.
    #[must_use]
    pub fn layer(&self) -> InboundDeadlineLayer {
        InboundDeadlineLayer(self.clone())
    }

    /// Returns the timeout that ends the requests. Its counters tell how many were cut off and how
    /// many arrived too late.
    #[must_use]
    pub const fn timeout(&self) -> &Timeout {
        &self.timeout
    }
}

/// Layer that gives each request a deadline. Made by [`InboundDeadline::layer`].
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

/// Service that gives each request a deadline. Made by [`InboundDeadlineLayer`].
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
    /// The time that the headers leave to the request, or the header that cannot be parsed.
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

/// Parses a value of [`GRPC_TIMEOUT`]. `None` unless it is one to eight digits and a unit. Capped
/// at [`headers::MAX_DEADLINE`].
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
    /// Response future of [`InboundDeadlineService`].
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
