//! The sink, without its types.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use super::{
    change::Batch,
    sweep::{Answer, Away},
};
use crate::{classify::Classify, verdict::Verdict};

pub(super) type Sinking = Pin<Box<dyn Future<Output = Answer> + Send>>;
/// Boxed: called once per batch.
pub(super) type Sink<V> = Arc<dyn Fn(Batch<V>) -> Sinking + Send + Sync>;

/// Makes a sink of a closure and a classifier of its results. To be run in a task: a panic goes on.
pub(super) fn sink<V, F, Fut, R, E, C>(sink: F, classifier: C) -> Sink<V>
where
    V: Send + Sync + 'static,
    F: Fn(Batch<V>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
    E: fmt::Display,
    C: Classify<R, E> + Send + Sync + 'static,
{
    let parts = Arc::new((sink, classifier));
    Arc::new(move |batch| {
        let parts = Arc::clone(&parts);
        Box::pin(async move {
            let sinking = (parts.0)(batch);
            answer(&parts.1, &sinking.await)
        })
    })
}

fn answer<R, E: fmt::Display>(classifier: &impl Classify<R, E>, result: &Result<R, E>) -> Answer {
    let reason = || match result {
        Ok(_) => "its result was classified as a failure".to_owned(),
        Err(error) => error.to_string(),
    };
    match (classifier.classify(result.as_ref()), result) {
        (Verdict::Success, _) | (Verdict::Ignored, Ok(_)) => Answer::Sunk,
        (Verdict::Transient { retry_after }, _) => Answer::Away(Away {
            reason: reason(),
            wait: retry_after,
        }),
        // Also the caller's own fault: that of the batch.
        (Verdict::Permanent | Verdict::Ignored, _) => Answer::Refused(reason()),
    }
}
