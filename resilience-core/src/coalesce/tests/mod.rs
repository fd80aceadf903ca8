mod failures;
mod flights;
mod layer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use tokio::sync::Semaphore;
use tower::Service;

use crate::error::Error;

type TestError = Error<&'static str>;
type Response = Result<u32, TestError>;

/// A service whose calls end when they are let, by a script.
#[derive(Clone)]
struct Upstream {
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    script: fn(usize) -> Response,
}

impl Upstream {
    /// `script` is the result of each call, by its number from 1.
    fn new(script: fn(usize) -> Response) -> Self {
        Self {
            calls: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
            script,
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    fn let_end(&self, calls: usize) {
        self.gate.add_permits(calls);
    }
}

impl Service<u32> for Upstream {
    type Response = u32;
    type Error = TestError;
    type Future = futures_util::future::BoxFuture<'static, Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TestError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u32) -> Self::Future {
        let number = self.calls.fetch_add(1, SeqCst) + 1;
        let (gate, script) = (Arc::clone(&self.gate), self.script);
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            script(number)
        })
    }
}

/// Keys of one digit; other requests have none.
fn digit(request: &u32) -> Option<u32> {
    (*request < 10).then_some(*request)
}
