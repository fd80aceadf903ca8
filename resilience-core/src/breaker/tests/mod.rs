//! The breaker from outside: each test is named after what it protects.

mod dropped;
mod events;
mod half_open;
mod keyed;
mod layer;
mod model;
mod overrides;
mod readiness;

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::{Layer, Service, ServiceExt};

use super::{
    BreakerSnapshot, CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerService, HalfOpen,
    OpenFor, Window,
};
use crate::{Error, Reason, Rejected, Verdict, completion::Guard};

const SECOND: Duration = Duration::from_secs(1);

/// Opens at two failures of four, for five seconds; two probes.
fn builder() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("test")
        .window(Window::count(10))
        .minimum_calls(4)
        .failure_rate(0.5)
        .open_for(OpenFor::fixed(5 * SECOND))
        .half_open(HalfOpen::probes(2))
}

/// What the dependency does with a request.
#[derive(Clone, Copy, Debug)]
enum Do {
    Succeed,
    Fail,
    /// The caller's own fault.
    Refuse,
    Hang,
    /// Succeeds after this many seconds.
    Take(u64),
    PanicInCall,
    PanicInPoll,
}

/// The dependency. Counts how often it was called.
#[derive(Clone, Debug, Default)]
struct Dependency {
    calls: Arc<AtomicUsize>,
}

impl Dependency {
    fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

/// What the dependency itself has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct Failure(&'static str);

type Answer = Result<(), Error<Failure>>;

impl Service<Do> for Dependency {
    type Response = ();
    type Error = Error<Failure>;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Answer> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, what: Do) -> Self::Future {
        self.calls.fetch_add(1, Relaxed);
        assert!(!matches!(what, Do::PanicInCall), "panic in call");
        Box::pin(async move {
            match what {
                Do::Succeed => Ok(()),
                Do::Fail => Err(Error::Service(Failure("failed"))),
                Do::Refuse => Err(Error::Service(Failure("refused"))),
                Do::Hang => pending().await,
                Do::Take(seconds) => {
                    tokio::time::sleep(seconds as u32 * SECOND).await;
                    Ok(())
                }
                Do::PanicInCall | Do::PanicInPoll => panic!("panic in poll"),
            }
        })
    }
}

/// A refusal is ignored, everything else is a failure.
#[derive(Clone, Copy)]
struct Judge;

impl crate::Classify<(), Error<Failure>> for Judge {
    fn classify(&self, result: Result<&(), &Error<Failure>>) -> Verdict {
        match result {
            Ok(()) => Verdict::Success,
            Err(Error::Service(Failure("refused"))) => Verdict::Ignored,
            Err(_) => Verdict::transient(),
        }
    }
}

type Guarded = CircuitBreakerService<Dependency, Judge>;

fn guarded(breaker: &CircuitBreaker) -> (Guarded, Dependency) {
    let dependency = Dependency::default();
    let layer = breaker.layer().classify(Judge);
    (layer.layer(dependency.clone()), dependency)
}

/// One call, from readiness to answer.
async fn call<S: Service<Do, Response = (), Error = Error<Failure>>>(
    service: &mut S,
    what: Do,
) -> Answer {
    service.ready().await?.call(what).await
}

fn rejection(answer: Answer) -> Option<Rejected> {
    answer.err()?.rejected().cloned()
}

fn is_rejected(answer: Answer, reason: Reason) -> bool {
    rejection(answer).is_some_and(|rejected| rejected.reason() == reason)
}

/// Opens a breaker by failures.
fn trip(breaker: &CircuitBreaker) {
    for _ in 0..100 {
        let Ok(mut call) = breaker.acquire() else {
            return;
        };
        call.settle(Verdict::transient());
    }
    panic!("a hundred failures did not open it");
}

fn counts(snapshot: &BreakerSnapshot) -> (u64, u64) {
    (snapshot.counts.calls, snapshot.counts.failures)
}
