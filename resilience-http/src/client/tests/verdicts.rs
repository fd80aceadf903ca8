//! Verdicts on reqwest's errors, each produced for real.

use std::{
    io,
    task::{Context, Poll},
};

use resilience_core::Classify;
use tower_layer::Layer;

use super::*;
use crate::HttpClassifier;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The verdict on an error: the same if it is plain, in a stack, or boxed.
fn verdict(error: reqwest::Error) -> Verdict {
    let plain = HttpClassifier::new().classify(Err::<&Response, _>(&error));
    let stack = Error::Service(error);
    assert_eq!(
        HttpClassifier::new().classify(Err::<&Response, _>(&stack)),
        plain
    );
    let boxed: BoxError = stack.into();
    assert_eq!(
        HttpClassifier::new().classify(Err::<&Response, _>(&boxed)),
        plain
    );
    plain
}

fn plain() -> reqwest::Client {
    reqwest_builder().build().unwrap()
}

async fn get(server: &Server) -> reqwest::Result<Response> {
    plain().get(server.url()).send().await
}

/// A connector that fails before it connects.
#[derive(Clone)]
struct Refuse(fn() -> io::Error);

impl<S> Layer<S> for Refuse {
    type Service = Refused<S>;

    fn layer(&self, inner: S) -> Refused<S> {
        Refused(inner, self.0)
    }
}

#[derive(Clone)]
struct Refused<S>(S, fn() -> io::Error);

impl<S: Service<R, Error = BoxError>, R> Service<R> for Refused<S> {
    type Response = S::Response;
    type Error = BoxError;
    type Future = std::future::Ready<Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, _: R) -> Self::Future {
        std::future::ready(Err(self.1().into()))
    }
}

async fn connecting_fails_with(error: fn() -> io::Error) -> reqwest::Error {
    let http = reqwest_builder().connector_layer(Refuse(error)).build();
    let error = http.unwrap().get("http://a.test/").send().await;
    let error = error.unwrap_err();
    assert!(error.is_connect());
    error
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_is_transient() {
    let refused = connecting_fails_with(|| io::ErrorKind::ConnectionRefused.into()).await;
    assert_eq!(verdict(refused), Verdict::transient());
    let timed_out = connecting_fails_with(|| io::ErrorKind::TimedOut.into()).await;
    assert_eq!(verdict(timed_out), Verdict::transient());
    let gone = || io::Error::other(io::Error::from(io::ErrorKind::UnexpectedEof));
    let gone_in_the_handshake = connecting_fails_with(gone).await;
    assert_eq!(verdict(gone_in_the_handshake), Verdict::transient());
}

/// As made by `tokio-rustls` (invalid data) and wrapped by `hyper-rustls` (in one more io error).
#[tokio::test]
async fn a_handshake_that_tls_refuses_is_permanent() {
    let untrusted = || {
        let error = io::Error::new(io::ErrorKind::InvalidData, "unknown issuer");
        io::Error::other(error)
    };
    let refused = connecting_fails_with(untrusted).await;
    assert_eq!(verdict(refused), Verdict::Permanent);
}

#[tokio::test]
async fn a_connection_that_breaks_is_transient() {
    for end in [Step::Reset, Step::Close] {
        let server = Server::start(move |_| vec![end.clone()]).await;
        assert_eq!(
            verdict(get(&server).await.unwrap_err()),
            Verdict::transient()
        );
    }
}

#[tokio::test]
async fn a_timeout_of_reqwests_own_is_transient() {
    let server = Server::start(|_| vec![Step::Hang]).await;
    let error = plain().get(server.url()).timeout(20 * MS).send().await;
    let error = error.unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(verdict(error), Verdict::transient());
}

#[tokio::test]
async fn a_request_body_that_fails_is_ignored() {
    let server = Server::start(|_| answer("200 OK", "", "")).await;
    let pieces = [Ok("1"), Err(io::Error::other("the caller's disk"))];
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let error = plain().put(server.url()).body(body).send().await;
    assert_eq!(verdict(error.unwrap_err()), Verdict::Ignored);
}

#[tokio::test]
async fn a_response_body_that_breaks_off_is_transient_and_one_of_another_type_is_ignored() {
    let cut = || vec![head("200 OK", "", 100), write("[1,"), Step::Close];
    let server = Server::start(move |_| cut()).await;
    let error = get(&server)
        .await
        .unwrap()
        .json::<Vec<u8>>()
        .await
        .unwrap_err();
    assert!(error.is_decode(), "reqwest calls both so");
    assert_eq!(verdict(error), Verdict::transient());
    let mut response = get(&server).await.unwrap();
    let error = loop {
        match response.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("whole?"),
            Err(error) => break error,
        }
    };
    assert_eq!(verdict(error), Verdict::transient());

    let server = Server::start(|_| answer("200 OK", "", "{}")).await;
    let error = get(&server)
        .await
        .unwrap()
        .json::<Vec<u8>>()
        .await
        .unwrap_err();
    assert_eq!(verdict(error), Verdict::Ignored);
}

#[tokio::test]
async fn an_error_made_of_a_status_is_judged_by_it() {
    for (status, expected) in [
        ("503 No", Verdict::transient()),
        ("501 Never", Verdict::Permanent),
        ("404 Where", Verdict::Ignored),
    ] {
        let server = Server::start(move |_| answer(status, "", "")).await;
        let error = get(&server).await.unwrap().error_for_status().unwrap_err();
        assert_eq!(verdict(error), expected, "{status}");
    }
}

#[tokio::test]
async fn what_the_caller_got_wrong_is_ignored() {
    let bad_url = plain().get("nowhere").send().await.unwrap_err();
    assert_eq!(verdict(bad_url), Verdict::Ignored);
    let server = Server::start(|_| answer("302 Found", "location: /\r\n", "")).await;
    let error = get(&server).await.unwrap_err();
    assert!(error.is_redirect());
    assert_eq!(verdict(error), Verdict::Ignored);
}

#[test]
fn a_boxed_error_of_something_else_is_transient() {
    let boxed: BoxError = io::Error::other("?").into();
    let verdict = HttpClassifier::new().classify(Err::<&Response, _>(&boxed));
    assert_eq!(verdict, Verdict::transient());
}
