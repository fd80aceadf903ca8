//! Propagation of deadline and trace to the next server.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName};
use resilience_core::deadline;
use tower_layer::Layer;
use tower_service::Service;

use crate::headers;

/// Headers that each attempt adds to its request: the time left, and (feature `otel`) the trace.
/// For `reqwest::Request` and `http::Request`. Put it below the retry, so that every attempt
/// carries its own remaining time.
///
/// **Deadline**: the time left until the [current deadline](resilience_core::deadline::current), in
/// whole milliseconds, in [`headers::DEADLINE`] or another header. A shorter time that the request
/// carries already is kept, a longer one is replaced. Without a deadline the header is left alone.
/// The receiving side is the deadline layer of `resilience_http::server`.
///
/// **Trace** (feature `otel`): the current OpenTelemetry context, by the global text map propagator
/// (`opentelemetry::global::set_text_map_propagator`; nothing is written until one is set).
/// `tracing` spans are in that context if the subscriber has the layer of `tracing-opentelemetry`
/// (0.32 and later, which activates the context of an entered span; leave `with_context_activation`
/// on): a call made inside an instrumented future carries its trace.
///
/// **Third parties**: a server that does not know the deadline header ignores it; one that does
/// learns the caller's patience, and the trace headers reveal trace ids. Turn both off for servers
/// that are not yours.
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use http::{Request, Response};
/// use resilience_core::{Deadline, deadline};
/// use resilience_http::{Propagation, headers};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(Propagation::new().layer())
///     .service(service_fn(|request: Request<()>| async move {
///         Ok::<_, Infallible>(headers::deadline(request.headers(), &headers::DEADLINE))
///     }));
/// let call = service.oneshot(Request::new(()));
/// let told = deadline::scope(Deadline::after(Duration::from_secs(2)), call).await.unwrap();
/// assert!(told.is_some_and(|left| left <= Duration::from_secs(2)));
/// # }
/// ```
///
/// # References
/// W3C Trace Context; Envoy's `x-envoy-expected-rq-timeout-ms`.
#[derive(Clone)]
#[must_use]
pub struct Propagation {
    deadline: Option<HeaderName>,
    #[cfg(feature = "otel")]
    trace: bool,
    extra: Option<Extra>,
}

type Extra = Arc<dyn Fn(&mut HeaderMap) + Send + Sync>;

impl Propagation {
    /// Creates the default: the deadline and, with feature `otel`, the trace.
    pub fn new() -> Self {
        Self {
            deadline: Some(headers::DEADLINE),
            #[cfg(feature = "otel")]
            trace: true,
            extra: None,
        }
    }

    /// Creates a propagation of nothing, for servers that are not yours.
    pub fn none() -> Self {
        Self {
            deadline: None,
            #[cfg(feature = "otel")]
            trace: false,
            extra: None,
        }
    }

    /// Sets the name of the deadline header. Default: [`headers::DEADLINE`].
    pub fn deadline_header(mut self, name: HeaderName) -> Self {
        self.deadline = Some(name);
        self
    }

    /// Leaves the deadline out.
    pub fn without_deadline(mut self) -> Self {
        self.deadline = None;
        self
    }

    /// Leaves the trace out.
    #[cfg(feature = "otel")]
    pub fn without_trace(mut self) -> Self {
        self.trace = false;
        self
    }

    /// Adds headers with `write` to each attempt, after the others: a tenant or a request id, for
    /// example.
    pub fn and(mut self, write: impl Fn(&mut HeaderMap) + Send + Sync + 'static) -> Self {
        self.extra = Some(Arc::new(write));
        self
    }

    /// Makes a layer.
    #[must_use]
    pub fn layer(&self) -> PropagationLayer {
        PropagationLayer {
            propagation: Arc::new(self.clone()),
        }
    }

    fn write(&self, headers: &mut HeaderMap) {
        if let Some((name, deadline)) = self.deadline.as_ref().zip(deadline::current()) {
            let remaining = deadline.remaining();
            let said = headers::deadline(headers, name);
            let told = said.map_or(remaining, |said| said.min(remaining));
            headers.insert(name, headers::format_deadline(told));
        }
        #[cfg(feature = "otel")]
        if self.trace {
            otel::inject(headers);
        }
        if let Some(extra) = &self.extra {
            extra(headers);
        }
    }
}

impl Default for Propagation {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("Propagation");
        all.field("deadline", &self.deadline);
        #[cfg(feature = "otel")]
        all.field("trace", &self.trace);
        all.finish_non_exhaustive()
    }
}

/// Layer that adds the propagation headers. Made by [`Propagation::layer`].
#[derive(Clone, Debug)]
pub struct PropagationLayer {
    propagation: Arc<Propagation>,
}

impl<S> Layer<S> for PropagationLayer {
    type Service = PropagationService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PropagationService {
            inner,
            propagation: Arc::clone(&self.propagation),
        }
    }
}

/// Service that adds the propagation headers. Made by [`PropagationLayer`].
#[derive(Clone, Debug)]
pub struct PropagationService<S> {
    inner: S,
    propagation: Arc<Propagation>,
}

impl<S: Service<reqwest::Request>> Service<reqwest::Request> for PropagationService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: reqwest::Request) -> S::Future {
        self.propagation.write(request.headers_mut());
        self.inner.call(request)
    }
}

impl<S, B> Service<http::Request<B>> for PropagationService<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        self.propagation.write(request.headers_mut());
        self.inner.call(request)
    }
}

#[cfg(feature = "otel")]
mod otel {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use opentelemetry::{Context, global, propagation::Injector};

    pub(super) fn inject(headers: &mut HeaderMap) {
        let context = Context::current();
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Headers(headers));
        });
    }

    struct Headers<'a>(&'a mut HeaderMap);

    impl Injector for Headers<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value))
            {
                self.0.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use resilience_core::deadline::Deadline;

    use super::*;

    const TWO_SECONDS: Duration = Duration::from_secs(2);

    /// The headers of a request that carries `said`, two seconds before its deadline.
    async fn told(propagation: Propagation, said: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.extend(said.map(|said| (headers::DEADLINE, HeaderValue::from_static(said))));
        let write = async { propagation.write(&mut headers) };
        deadline::scope(Deadline::after(TWO_SECONDS), write).await;
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_is_told_in_milliseconds() {
        let headers = told(Propagation::new(), None).await;
        assert_eq!(headers[headers::DEADLINE], "2000");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_time_stands_and_a_longer_one_is_corrected() {
        let shorter = told(Propagation::new(), Some("150")).await;
        assert_eq!(shorter[headers::DEADLINE], "150");
        // A proxy that forwards the headers that it received, the caller's deadline among them.
        let longer = told(Propagation::new(), Some("9000")).await;
        assert_eq!(longer[headers::DEADLINE], "2000");
        let nonsense = told(Propagation::new(), Some("soon")).await;
        assert_eq!(nonsense[headers::DEADLINE], "2000");
    }

    #[tokio::test(start_paused = true)]
    async fn the_header_can_be_another_or_none() {
        let envoy = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
        let headers = told(Propagation::new().deadline_header(envoy.clone()), None).await;
        assert_eq!(headers[envoy], "2000");
        assert!(!headers.contains_key(headers::DEADLINE));
        assert!(told(Propagation::none(), None).await.is_empty());
        let off = Propagation::new().without_deadline();
        assert!(told(off, None).await.is_empty());
    }

    #[test]
    fn without_a_deadline_nothing_is_told() {
        let mut headers = HeaderMap::new();
        Propagation::new().write(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn headers_of_ones_own_are_added() {
        let propagation = Propagation::none().and(|headers| {
            headers.insert("x-tenant", HeaderValue::from_static("7"));
        });
        let mut headers = HeaderMap::new();
        propagation.write(&mut headers);
        assert_eq!(headers["x-tenant"], "7");
    }

    #[cfg(feature = "otel")]
    #[test]
    fn the_current_trace_is_passed_on() {
        use opentelemetry::{
            Context, SpanId, TraceFlags, TraceId, global,
            trace::{SpanContext, TraceContextExt, TraceState},
        };

        global::set_text_map_propagator(
            opentelemetry_sdk::propagation::TraceContextPropagator::new(),
        );
        let trace = TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128);
        let span = SpanId::from(0xb7ad_6b71_6920_3331_u64);
        let state = TraceState::default();
        let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, state);
        let _entered = Context::current()
            .with_remote_span_context(context)
            .attach();
        let mut headers = HeaderMap::new();
        Propagation::new().write(&mut headers);
        let expected = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(headers["traceparent"], expected);
        let mut headers = HeaderMap::new();
        Propagation::new().without_trace().write(&mut headers);
        assert!(!headers.contains_key("traceparent"));
    }
}
