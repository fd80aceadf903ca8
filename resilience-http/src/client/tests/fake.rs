//! A transport without a network, so that a paused clock keeps exact time.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use reqwest::ResponseBuilderExt;
use tokio::time::Sleep;
use tower_service::Service;

use super::*;

/// Responds to the nth attempt, counted from 1, by a script.
#[derive(Clone)]
pub(super) struct Fake {
    timeouts: Arc<Mutex<Vec<Option<Duration>>>>,
    script: Arc<dyn Fn(usize) -> Answer + Send + Sync>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

pub(super) enum Answer {
    Response(http::response::Builder, reqwest::Body),
    Hang,
}

pub(super) fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> Answer {
    let builder = http::Response::builder().status(status);
    let add = |builder: http::response::Builder, header: &(&str, &str)| {
        builder.header(header.0, header.1)
    };
    Answer::Response(headers.iter().fold(builder, add), body.into())
}

/// The head at once, the word `slow` after a while.
pub(super) fn slow(status: u16, after: Duration) -> Answer {
    let body = Slow(Some(Box::pin(tokio::time::sleep(after))));
    let builder = http::Response::builder().status(status);
    Answer::Response(builder, reqwest::Body::wrap(body))
}

pub(super) const fn hang() -> Answer {
    Answer::Hang
}

impl Fake {
    pub(super) fn new(script: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            timeouts: Arc::default(),
            script: Arc::new(script),
        }
    }

    /// A client whose default stack ends here.
    pub(super) fn client(&self, builder: ClientBuilder) -> Client {
        builder.over(reqwest::Client::new(), self.clone()).unwrap()
    }

    pub(super) fn attempts(&self) -> usize {
        self.timeouts.lock().unwrap().len()
    }

    /// The timeout that each attempt gave to reqwest.
    pub(super) fn timeouts(&self) -> Vec<Option<Duration>> {
        self.timeouts.lock().unwrap().clone()
    }
}

impl Service<Request> for Fake {
    type Response = Response;
    type Error = Error<reqwest::Error>;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> ResponseFuture {
        self.timeouts
            .lock()
            .unwrap()
            .push(request.timeout().copied());
        let answer = (self.script)(self.attempts());
        let url = request.url().clone();
        Box::pin(async move {
            match answer {
                Answer::Hang => std::future::pending().await,
                Answer::Response(builder, body) => Ok(builder.url(url).body(body).unwrap().into()),
            }
        })
    }
}

struct Slow(Option<Pin<Box<Sleep>>>);

impl Body for Slow {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let Some(sleep) = &mut self.0 else {
            return Poll::Ready(None);
        };
        std::task::ready!(sleep.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Some(Ok(Frame::data("slow".into()))))
    }
}
