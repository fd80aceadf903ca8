//! What is published: bytes in an envelope.

use std::{fmt, num::ParseIntError, str::FromStr, sync::Arc};

use bytes::Bytes;

/// The place of a message in its stream, given by the broker. Rises with every message of a stream, in the order in which they
/// were stored, and is never given twice within one [incarnation](super::broker::Joined::incarnation) of the stream.
///
/// Displayed and parsed as `ms-seq`, like the entry ids of Redis Streams.
///
/// ```
/// use resilience_core::stream::Position;
///
/// let position: Position = "1718000000000-3".parse()?;
/// assert!(position < Position::new(1_718_000_000_001, 0));
/// assert_eq!(position.to_string(), "1718000000000-3");
/// # Ok::<_, std::num::ParseIntError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// When it was stored, in milliseconds of the broker's clock since its zero (of Redis: Unix time).
    pub ms: u64,
    /// Number among the messages of that millisecond.
    pub seq: u64,
}

impl Position {
    /// Before every message.
    pub const START: Self = Self::new(0, 0);
    /// After every message.
    pub const END: Self = Self::new(u64::MAX, u64::MAX);

    /// A position.
    #[must_use]
    pub const fn new(ms: u64, seq: u64) -> Self {
        Self { ms, seq }
    }

    /// The next position that a message could have.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self::new(self.ms, seq),
            None => Self::new(self.ms.saturating_add(1), 0),
        }
    }

    /// The last position before this one; [`START`](Self::START) has none but itself.
    #[must_use]
    pub const fn before(self) -> Self {
        match (self.ms, self.seq.checked_sub(1)) {
            (ms, Some(seq)) => Self::new(ms, seq),
            (0, None) => Self::START,
            (ms, None) => Self::new(ms - 1, u64::MAX),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// `ms-seq`; `ms` alone is the first position of that millisecond.
impl FromStr for Position {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (ms, seq) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self::new(ms.parse()?, seq.parse()?))
    }
}

/// What is known of a message beside its body. A broker keeps each attribute that is present and returns it unchanged.
///
/// | field | field of a stream entry, after CloudEvents 1.0 | meaning |
/// |---|---|---|
/// | [`id`](Self::id) | `id` | the same for every copy of the event: effects are recorded under it |
/// | [`source`](Self::source) | `source` | what published it |
/// | [`event_type`](Self::event_type) | `type` | kind of event |
/// | [`key`](Self::key) | `partitionkey` | messages of one key are handled in order, in [lanes](super::ConsumerBuilder::lanes) |
/// | [`schema`](Self::schema) | `schemaversion` | version of the body's type |
/// | [`content_type`](Self::content_type) | `datacontenttype` | format of the body |
/// | [`time_ms`](Self::time_ms) | `time` | when it was published, Unix time by the producer's clock: for people, never compared |
/// | [`trace_parent`](Self::trace_parent) | `traceparent` | W3C Trace Context |
/// | [`trace_state`](Self::trace_state) | `tracestate` | W3C Trace Context |
/// | [`attributes`](Self::attributes) | their own names | extension attributes of the application |
/// | body | `data` | |
///
/// # References
/// [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md), its extensions
/// [Partitioning](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/partitioning.md) and [Distributed
/// Tracing](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/distributed-tracing.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Identifies the event; the same for every copy of it. Not empty.
    pub id: Arc<str>,
    /// What published it; may be empty.
    pub source: Arc<str>,
    /// Kind of event; may be empty.
    pub event_type: Arc<str>,
    /// What the order of messages is kept for; `None`: nothing.
    pub key: Option<Arc<str>>,
    /// Version of the body's type. Zero: not versioned.
    pub schema: u32,
    /// Media type of the body; may be empty.
    pub content_type: Arc<str>,
    /// When it was published, in milliseconds of Unix time by the producer's clock.
    pub time_ms: u64,
    /// W3C `traceparent`.
    pub trace_parent: Option<Arc<str>>,
    /// W3C `tracestate`.
    pub trace_state: Option<Arc<str>>,
    /// Extension attributes. Names consist of `a` to `z` and `0` to `9` and are none of those in the table.
    pub attributes: Arc<[(Arc<str>, Arc<str>)]>,
}

/// A message as brokers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RawMessage {
    /// What is known of it.
    pub envelope: Envelope,
    /// The encoded event.
    pub body: Bytes,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written_and_ordered_as_numbers() {
        for position in [Position::START, Position::new(9, 10), Position::END] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        assert_eq!("17".parse(), Ok(Position::new(17, 0)));
        assert!(Position::new(9, 10) > Position::new(9, 9));
        assert!(Position::new(10, 0) > Position::new(9, 99));
        assert_eq!(Position::new(9, u64::MAX).next(), Position::new(10, 0));
        assert_eq!(Position::new(10, 0).before(), Position::new(9, u64::MAX));
        assert_eq!(Position::START.before(), Position::START);
        assert!("a-1".parse::<Position>().is_err() && "1-".parse::<Position>().is_err());
    }
}
