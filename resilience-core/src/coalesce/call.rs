//! The future of one caller: joins or starts the shared call, and begins again once if it fails.

use std::{
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower_service::Service;

use super::{
    Coalesce, FlightPanicked, Joined,
    outcome::{Failed, Outcome},
    shared::Shared,
};
use crate::{
    admission::take_ready,
    error::{Error, ReasonKind, Rejected, ServiceError},
    execute,
};

/// Work that a caller brings along, and starts unless another caller's is in progress.
pub(super) trait Work<T, E> {
    type Future: Future<Output = Result<T, E>> + Send + 'static;

    fn start(self) -> Self::Future;

    /// Gives back what is held for a start now: the caller waits for another one's work.
    fn release(&mut self) {}

    fn rejected(_: &E) -> Option<&Rejected> {
        None
    }
}

/// A closure.
pub(super) struct Closure<F>(pub(super) F);

impl<T, E, F, Fut> Work<T, E> for Closure<F>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    type Future = Fut;

    fn start(self) -> Fut {
        (self.0)()
    }
}

/// A request to a service, which may have been polled ready for it.
pub(super) struct Request<S, Req> {
    pub(super) service: S,
    pub(super) request: Req,
}

impl<S, Req> Work<S::Response, S::Error> for Request<S, Req>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: ServiceError,
    Req: Send + 'static,
{
    type Future = execute::Call<S, Req>;

    fn start(self) -> Self::Future {
        execute::Call::new(self.service, self.request)
    }

    fn release(&mut self) {
        drop(take_ready(&mut self.service));
    }

    fn rejected(error: &S::Error) -> Option<&Rejected> {
        error.as_rejected()
    }
}

/// One caller's part in a shared call. Does nothing until polled.
pub(super) struct SharedCall<K, T, E, W>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: Send + 'static,
{
    shared: Arc<Shared<K, T, E>>,
    begin: Option<Begin<K, W>>,
    joined: Option<Joined<K, Outcome<T, E>>>,
    /// The work of a caller that has joined another one's, for when it has to begin again.
    spare: Option<W>,
}

struct Begin<K, W> {
    key: K,
    fresh: bool,
    work: W,
}

// No field is pinned.
impl<K, T, E, W> Unpin for SharedCall<K, T, E, W>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: Send + 'static,
{
}

impl<K, T, E, W> SharedCall<K, T, E, W>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: Send + 'static,
    W: Work<T, E>,
{
    pub(super) fn new(coalesce: &Coalesce<K, T, E>, key: K, fresh: bool, work: W) -> Self {
        Self {
            shared: Arc::clone(&coalesce.shared),
            begin: Some(Begin { key, fresh, work }),
            joined: None,
            spare: None,
        }
    }

    fn join(&mut self, begin: Begin<K, W>, may_begin_again: bool) {
        let Begin {
            key,
            fresh,
            mut work,
        } = begin;
        let mut joined = self.shared.flights.enter(key, fresh);
        if joined.is_leader() {
            self.shared.count.started.increment();
            joined.start(|| {
                let work = work.start();
                async { Outcome::new(work.await, W::rejected) }
            });
        } else {
            self.shared.count.joined.increment();
            work.release();
            self.spare = may_begin_again.then_some(work);
        }
        self.joined = Some(joined);
    }

    /// What this caller makes of a failure, which is a panic if there is no error: its error, or another beginning.
    fn settle(
        &mut self,
        failed: Option<&Failed<E>>,
        mut joined: Joined<K, Outcome<T, E>>,
    ) -> Result<Begin<K, W>, Error<E>> {
        let copy = self.shared.share_error.as_ref();
        if let Some(error) = failed.and_then(|failed| failed.copy(copy?)) {
            return Err(Error::Service(error));
        }
        let own = failed.filter(|_| joined.is_owner());
        if let Some(error) = own.and_then(Failed::take) {
            return Err(Error::Service(error));
        }
        let rejected = failed.and_then(|failed| failed.rejected.as_ref());
        let again = joined.take_key().zip(self.spare.take());
        match (rejected, again) {
            // The time that was over may have been another caller's.
            (Some(rejected), again) if again.is_none() || !is_out_of_time(rejected) => {
                Err(Error::Rejected(rejected.clone()))
            }
            (_, Some((key, work))) => {
                self.shared.count.rerun();
                let fresh = false;
                Ok(Begin { key, fresh, work })
            }
            (_, None) => Err(Error::Rejected(self.shared.count.reject())),
        }
    }
}

fn is_out_of_time(rejected: &Rejected) -> bool {
    rejected.reason().kind() == ReasonKind::OutOfTime
}

impl<K, T, E, W> Future for SharedCall<K, T, E, W>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: Send + 'static,
    W: Work<T, E>,
{
    type Output = Result<T, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(begin) = this.begin.take() {
            this.join(begin, true);
        }
        loop {
            let joined = this.joined.as_mut().expect("polled after it was done");
            let outcome = ready!(Pin::new(joined).poll(cx));
            let joined = this.joined.take().expect("it was just polled");
            let failed = match outcome {
                Ok(Outcome::Response(response)) => return Poll::Ready(Ok(response)),
                Ok(Outcome::Failed(failed)) => Some(failed),
                Err(FlightPanicked) => None,
            };
            match this.settle(failed.as_deref(), joined) {
                Ok(begin) => this.join(begin, false),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}
