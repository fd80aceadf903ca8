//! One message in the hands of its service.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{error::Elapsed, timeout};
use tower_service::Service;

use super::{
    decision::Ending,
    message::{About, Message},
    settings::Settings,
};
use crate::{
    classify::{Classify, judge},
    codec::Codec,
    deadline::{self, Deadline},
    error::{Error, ServiceError},
    stream::message::RawMessage,
    verdict::Verdict,
};

/// What every message of a consumer is handled with.
pub(super) struct Handling<T, S, C> {
    pub(super) codec: Arc<dyn Codec<T>>,
    pub(super) classifier: C,
    pub(super) service: S,
}

impl<T, S: Clone, C: Clone> Clone for Handling<T, S, C> {
    fn clone(&self) -> Self {
        Self {
            codec: Arc::clone(&self.codec),
            classifier: self.classifier.clone(),
            service: self.service.clone(),
        }
    }
}

impl<T, S, C> Handling<T, S, C>
where
    T: 'static,
    S: Service<Message<T>>,
    S::Error: ServiceError + fmt::Display,
    C: Classify<S::Response, S::Error>,
{
    /// Decodes the message and calls the service, within the deadline.
    pub(super) async fn handle(
        mut self,
        raw: RawMessage,
        about: Arc<About>,
        limits: Limits,
    ) -> Ending {
        let event = match self.codec.decode(&raw.body) {
            Ok(event) => event,
            Err(error) => return Ending::Unreadable(error.to_string()),
        };
        let message = Message::new(event, about);
        let within = limits.within();
        let calling = async {
            poll_fn(|cx| self.service.poll_ready(cx)).await?;
            self.service.call(message).await
        };
        match limits.run(calling).await {
            Ok(result) => ending(&self.classifier, &result),
            Err(_) => Ending::TimedOut(within),
        }
    }
}

/// How long a message may be handled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    deadline: Option<Duration>,
    longest: Duration,
}

impl Limits {
    pub(super) const fn of(settings: &Settings) -> Self {
        Self {
            deadline: settings.deadline,
            longest: settings.longest_lease,
        }
    }

    fn within(self) -> Duration {
        self.deadline.unwrap_or(self.longest)
    }

    async fn run<F: Future>(self, calling: F) -> Result<F::Output, Elapsed> {
        let calling = timeout(self.within(), calling);
        match self.deadline {
            Some(after) => deadline::scope(Deadline::after(after), calling).await,
            None => calling.await,
        }
    }
}

fn ending<C, R, E>(classifier: &C, result: &Result<R, E>) -> Ending
where
    C: Classify<R, E>,
    E: ServiceError + fmt::Display,
{
    let verdict = judge(classifier, result.as_ref());
    let rejected = result.as_ref().err().and_then(ServiceError::as_rejected);
    match rejected {
        // A timeout is none: the dependency had its time.
        Some(rejected) if verdict == Verdict::Ignored => Ending::Rejected(rejected.clone()),
        _ => Ending::Verdict {
            verdict,
            reason: match result {
                _ if verdict == Verdict::Success => String::new(),
                Ok(_) => "its response was classified as a failure".to_owned(),
                Err(error) => error.to_string(),
            },
        },
    }
}

pin_project! {
    /// The future of a closure, whose error is lifted into [`Error::Service`].
    pub struct Wrapped<F> {
        #[pin]
        future: F,
    }
}

impl<F> Wrapped<F> {
    pub(super) const fn new(future: F) -> Self {
        Self { future }
    }
}

impl<F: Future<Output = Result<R, E>>, R, E> Future for Wrapped<F> {
    type Output = Result<R, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.project().future.poll(cx));
        Poll::Ready(result.map_err(Error::Service))
    }
}
