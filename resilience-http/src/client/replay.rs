//! Which requests may be sent again.

use http::{HeaderMap, Method};
use http_body::Body;
use resilience_core::retry::Replay;

use crate::headers;

/// Replay policy that sends a request again if that is safe and its body is in memory.
///
/// A request may be sent again if one of these holds:
/// - its method is idempotent by RFC 9110: `GET`, `HEAD`, `OPTIONS`, `TRACE`, `PUT`, `DELETE`;
/// - it carries an `Idempotency-Key`, by which the server recognises a repetition;
/// - it is marked [`Idempotent(true)`](Idempotent). `Idempotent(false)` forbids it whatever the
///   method.
///
/// In addition its body must be in memory and at most [`max_body`](Self::max_body) long. A stream
/// can be read once only, and sending a large body again costs the network more than a retry is
/// worth. Bodies are shared, not copied.
///
/// For `reqwest::Request`, and for `http::Request<B>` if the body is `Clone` and knows its size.
///
/// ```
/// use resilience_core::retry::Replay;
/// use resilience_http::client::HttpReplay;
///
/// let mut request = reqwest::Request::new(reqwest::Method::POST, "http://api.test/pay".parse().unwrap());
/// assert!(HttpReplay::new().replay(&request).is_none());
/// request.headers_mut().insert("idempotency-key", "8e03978e-40d5-43dd-bc93-6894a57f9324".parse().unwrap());
/// assert!(HttpReplay::new().replay(&request).is_some());
/// ```
///
/// # References
/// RFC 9110 section 9.2.2 (idempotent methods).
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct HttpReplay {
    max_body: u64,
}

impl HttpReplay {
    /// Creates the default, with a limit of 1 MiB for bodies.
    pub const fn new() -> Self {
        Self { max_body: 1 << 20 }
    }

    /// Sets the maximum body, in bytes, that is sent again. Zero allows only requests without a
    /// body.
    pub const fn max_body(mut self, bytes: u64) -> Self {
        self.max_body = bytes;
        self
    }
}

impl Default for HttpReplay {
    fn default() -> Self {
        Self::new()
    }
}

/// Mark of a request that says whether it may be sent more than once, whatever its method.
///
/// Put it into the extensions of an `http::Request`. The extensions of a `reqwest::Request` cannot
/// be read: set the mark around the call with [`scope`](Self::scope), or with
/// [`RequestBuilder::idempotent`](super::RequestBuilder::idempotent), which does so.
///
/// ```
/// use resilience_core::retry::Replay;
/// use resilience_http::client::{HttpReplay, Idempotent};
///
/// let search = http::Request::post("/search").extension(Idempotent(true)).body(String::from("{}")).unwrap();
/// assert!(HttpReplay::new().replay(&search).is_some());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idempotent(pub bool);

tokio::task_local! {
    static SAID: Idempotent;
}

impl Idempotent {
    /// Marks every request that `call` sends from its own task. A mark in a request's extensions
    /// takes precedence.
    pub fn scope<F: Future>(self, call: F) -> impl Future<Output = F::Output> {
        SAID.scope(self, call)
    }
}

impl Replay<reqwest::Request> for HttpReplay {
    fn replay(&self, request: &reqwest::Request) -> Option<reqwest::Request> {
        if !may_repeat(request.method(), request.headers(), None) {
            return None;
        }
        // A stream has no bytes in memory.
        let length = match request.body() {
            Some(body) => body.as_bytes()?.len() as u64,
            None => 0,
        };
        (length <= self.max_body).then(|| request.try_clone())?
    }
}

impl<B: Body + Clone> Replay<http::Request<B>> for HttpReplay {
    fn replay(&self, request: &http::Request<B>) -> Option<http::Request<B>> {
        let said = request.extensions().get().copied();
        if !may_repeat(request.method(), request.headers(), said) {
            return None;
        }
        let length = request.body().size_hint().upper()?;
        (length <= self.max_body).then(|| request.clone())
    }
}

fn may_repeat(method: &Method, headers: &HeaderMap, said: Option<Idempotent>) -> bool {
    let said = said.or_else(|| SAID.try_with(|said| *said).ok());
    match said {
        Some(Idempotent(said)) => said,
        None => method.is_idempotent() || headers.contains_key(headers::IDEMPOTENCY_KEY),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{Empty, Full};

    use super::*;

    fn request(method: Method, body: Option<reqwest::Body>) -> reqwest::Request {
        let mut request = reqwest::Request::new(method, "http://api.test/".parse().unwrap());
        *request.body_mut() = body;
        request
    }

    fn repeats(request: &reqwest::Request) -> bool {
        HttpReplay::new().replay(request).is_some()
    }

    #[test]
    fn only_idempotent_methods_are_sent_again() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert!(repeats(&request(method.parse().unwrap(), None)), "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "PURGE"] {
            assert!(
                !repeats(&request(method.parse().unwrap(), None)),
                "{method}"
            );
        }
    }

    #[test]
    fn an_idempotency_key_makes_any_method_repeatable() {
        let mut post = request(Method::POST, Some("{}".into()));
        post.headers_mut()
            .insert(headers::IDEMPOTENCY_KEY, "k-1".parse().unwrap());
        let again = HttpReplay::new().replay(&post).unwrap();
        assert_eq!(again.headers()[headers::IDEMPOTENCY_KEY], "k-1");
        assert_eq!(again.body().unwrap().as_bytes(), Some(&b"{}"[..]));
    }

    #[tokio::test]
    async fn what_is_said_of_a_request_counts_more_than_its_method() {
        let (get, post) = (request(Method::GET, None), request(Method::POST, None));
        assert!(Idempotent(true).scope(async { repeats(&post) }).await);
        assert!(!Idempotent(false).scope(async { repeats(&get) }).await);
        assert!(repeats(&get) && !repeats(&post));
    }

    #[test]
    fn a_body_above_the_limit_is_not_sent_again() {
        let of = |length: usize| request(Method::PUT, Some(vec![0; length].into()));
        let replay = HttpReplay::new().max_body(100);
        assert!(replay.replay(&of(100)).is_some());
        assert!(replay.replay(&of(101)).is_none());
        assert!(HttpReplay::new().replay(&of(1 << 20)).is_some());
        assert!(HttpReplay::new().replay(&of((1 << 20) + 1)).is_none());
    }

    #[test]
    fn a_stream_is_not_sent_again() {
        let body = reqwest::Body::wrap(Full::new(Bytes::from("short, but read once")));
        assert!(!repeats(&request(Method::PUT, Some(body))));
    }

    #[derive(Clone)]
    struct OfUnknownSize;

    impl Body for OfUnknownSize {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Ready(None)
        }
    }

    #[test]
    fn plain_http_requests_follow_the_same_rules() {
        let replay = HttpReplay::new().max_body(5);
        let of = |method: &str, body: &'static str| {
            let body = Full::new(Bytes::from(body));
            let request = http::Request::builder().method(method).body(body);
            replay.replay(&request.unwrap()).is_some()
        };
        assert!(of("PUT", "hello") && !of("PUT", "hello!") && !of("POST", "hello"));

        let mut post = http::Request::post("/")
            .body(Empty::<Bytes>::new())
            .unwrap();
        post.extensions_mut().insert(Idempotent(true));
        assert!(replay.replay(&post).is_some());

        // A body of unknown length: the cost of sending it again is unknown too.
        let put = http::Request::put("/").body(OfUnknownSize).unwrap();
        assert!(replay.replay(&put).is_none());
    }
}
