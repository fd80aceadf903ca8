//! The floor of a breaker: what counting the calls of a time window costs where nothing is decided by it.
//!
//! A layer as tower's are made: its future owns a reference to what it writes to.

use std::{
    convert::Infallible,
    future::{Future, Ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
};

use resilience_core::Clock;
use tower::Service;

use crate::subject::{Request, Response, Subject, answer};

pub(crate) const TIME_WINDOW: &str = "sketch: striped ring of ten seconds, one clock reading";

pub(super) fn subjects() -> Vec<Subject> {
    let stripes = (0..STRIPES).map(|_| Arc::new(Ring::default())).collect();
    vec![Subject::new(TIME_WINDOW, Counted { stripes }).on_two_cores()]
}

const STRIPES: usize = 4;
const BUCKETS: usize = 10;
const SECOND: u64 = 1_000_000_000;

/// Ten buckets of a second, of one thread: `second (32 bits) | calls (32 bits)`, successes and failures apart.
#[derive(Default)]
#[repr(align(128))]
struct Ring([[AtomicU64; 2]; BUCKETS]);

impl Ring {
    #[inline]
    fn add(&self, second: u64, failed: bool) {
        let cell = &self.0[second as usize % BUCKETS][usize::from(failed)];
        let mut seen = cell.load(Relaxed);
        loop {
            let next = if seen >> 32 == second {
                seen + 1
            } else {
                second << 32 | 1
            };
            match cell.compare_exchange_weak(seen, next, SeqCst, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }
}

#[derive(Clone)]
struct Counted {
    stripes: Vec<Arc<Ring>>,
}

/// The number of this thread.
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Relaxed));
    NUMBER.with(|number| *number)
}

impl Service<Request> for Counted {
    type Response = Response;
    type Error = Infallible;
    type Future = Counting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Request) -> Counting {
        let ring = Arc::clone(&self.stripes[thread() % STRIPES]);
        let answer = answer(request);
        Counting { ring, answer }
    }
}

struct Counting {
    ring: Arc<Ring>,
    answer: Ready<Result<Response, Infallible>>,
}

impl Future for Counting {
    type Output = Result<Response, Infallible>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.answer).poll(cx);
        if let Poll::Ready(result) = &polled {
            let second = Clock::fast().now().as_nanos() / SECOND;
            self.ring.add(second, result.is_err());
        }
        polled
    }
}
