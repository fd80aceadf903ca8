//! An event on its way to a stream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::PublishError;
use crate::{
    codec::Codec,
    fleet::millis,
    stream::{
        message::{Envelope, RawMessage},
        steps::Outgoing,
    },
};

/// One event to publish, with what is known of it beside its value. What is not set is the producer's.
#[derive(Clone, Debug)]
#[must_use]
pub struct Event<'a, T> {
    value: &'a T,
    id: Option<Arc<str>>,
    key: Option<Arc<str>>,
    event_type: Option<Arc<str>>,
    trace: Option<TraceContext>,
    attributes: Vec<(Arc<str>, Arc<str>)>,
    delay: Duration,
}

/// The trace that an event belongs to, after W3C Trace Context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent`.
    pub parent: Option<Arc<str>>,
    /// `tracestate`.
    pub state: Option<Arc<str>>,
}

/// What a producer puts into every envelope.
#[derive(Clone, Debug, Default)]
pub(super) struct Defaults {
    pub(super) source: Arc<str>,
    pub(super) event_type: Arc<str>,
    pub(super) schema: u32,
}

impl<'a, T> Event<'a, T> {
    /// An event without a key, at once.
    pub const fn new(value: &'a T) -> Self {
        Self {
            value,
            id: None,
            key: None,
            event_type: None,
            trace: None,
            attributes: Vec::new(),
            delay: Duration::ZERO,
        }
    }

    /// What the order is kept for. The empty key is none.
    pub fn key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = Some(key.into()).filter(|it| !it.is_empty());
        self
    }

    /// Identifies the event: copies of one id take effect once, with
    /// [`effect_once`](crate::stream::ConsumerBuilder::effect_once). Default: 128 random bits.
    pub fn id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Kind of event.
    pub fn event_type(mut self, event_type: impl Into<Arc<str>>) -> Self {
        self.event_type = Some(event_type.into());
        self
    }

    /// The trace that it belongs to. Default: that of [`trace_with`](super::ProducerBuilder::trace_with).
    pub fn trace(mut self, context: TraceContext) -> Self {
        self.trace = Some(context);
        self
    }

    /// An extension attribute. Names consist of `a` to `z` and `0` to `9`.
    pub fn attribute(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.attributes.push((name.into(), value.into()));
        self
    }

    /// Publishes it this long from now.
    pub const fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub(super) fn encode(
        self,
        codec: &dyn Codec<T>,
        defaults: &Defaults,
        trace: &TraceContext,
        now_ms: u64,
    ) -> Result<Outgoing, PublishError>
    where
        T: 'static,
    {
        let body = codec.encode(self.value).map_err(PublishError::Encode)?;
        let trace = self.trace.unwrap_or_else(|| trace.clone());
        let envelope = Envelope {
            id: self.id.unwrap_or_else(random_id),
            source: Arc::clone(&defaults.source),
            event_type: self
                .event_type
                .unwrap_or_else(|| Arc::clone(&defaults.event_type)),
            key: self.key,
            schema: defaults.schema,
            content_type: codec.content_type().into(),
            time_ms: now_ms,
            trace_parent: trace.parent,
            trace_state: trace.state,
            attributes: self.attributes.into(),
        };
        Ok(Outgoing {
            message: RawMessage {
                envelope,
                body: Bytes::from(body),
            },
            delay_ms: millis(self.delay),
        })
    }
}

/// 128 random bits of this process' own generator, seeded by the operating system once.
fn random_id() -> Arc<str> {
    use std::hash::{BuildHasher, RandomState};
    // Not `fastrand` alone: its generator can be seeded by the application, and then two processes draw the same id.
    thread_local! {
        static KEYS: [RandomState; 2] = [RandomState::new(), RandomState::new()];
        static DRAWN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
    let drawn = DRAWN.replace(DRAWN.get() + 1);
    let drawn = (drawn, fastrand::u64(..), std::process::id());
    KEYS.with(|[high, low]| {
        let (high, low) = (high.hash_one(drawn), low.hash_one(drawn));
        format!("{high:016x}{low:016x}").into()
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_even_under_one_seed() {
        let ids: HashSet<_> = (0..1_000)
            .map(|_| {
                fastrand::seed(7);
                random_id()
            })
            .collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
