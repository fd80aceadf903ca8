//! Streams: events that one service publishes and others handle, in order per key, by many instances, taking effect once.
//!
//! For events that must not get lost between services, and for work that is to be done later or again. Not a log of all that ever
//! happened: messages are kept for a [retention](Retention). Not a queue for requests that a caller waits for. Not a
//! replacement for Kafka where one stream takes more than one server can write.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::stream::{Consumer, InProcessStreams, Message, Producer};
//!
//! # async fn bill(order: &u64) -> std::io::Result<()> { let _ = order; Ok(()) }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = InProcessStreams::new(); // or `redis.streams()`
//! let orders = Producer::<u64>::builder("orders", broker.clone()).source("/shop").build()?;
//! orders.publish("customer-3", &7).await?;
//!
//! let billing = Consumer::<u64>::builder("orders", broker)
//!     .group("billing")
//!     .lanes(|message| message.key.clone())
//!     .effect_once()
//!     .build()?;
//! let serving = billing.run(|order: Message<u64>| async move { bill(order.event()).await });
//! # let ended = async { while billing.snapshot().totals.acknowledged == 0 { tokio::time::sleep(Duration::from_millis(1)).await } };
//! tokio::select! {
//!     ended = serving => ended?,
//!     () = ended => billing.shutdown(Duration::from_secs(30)).await?, // e.g. by a signal
//! }
//! # Ok(()) }
//! ```
//!
//! # Groups
//! Each group is given every message of a stream, and each message of a group is held by one consumer at a time: under a lease
//! that is renewed while the message waits in the process, and while it is handled. A consumer that dies leaves its
//! messages to the others when their leases end. A consumer that was too slow, and finds its message with another one, changes
//! nothing more: its acknowledgement, retry and dead letter are refused.
//!
//! # What is promised
//! "Loses": a message that was published is not handled. "Twice": its handler has effects more than once.
//!
//! | setting | loses a message | an effect twice | order per key |
//! |---|---|---|---|
//! | default: at least once | never, while the broker keeps its data | after a crash, a lost lease, or a lost answer | within one process, with [`lanes`](ConsumerBuilder::lanes): messages start in the order in which they were published, one after the other. One that is retried comes later. Consumers in several processes share the messages of a key: for order over the whole group, let one consume |
//! | [`effect_once`](ConsumerBuilder::effect_once), effect = the recorded outcome | never | never: outcome and acknowledgement are one step | the same |
//! | `effect_once`, effect = a write that compares the [fence](Message::fence) | never | never: an older fence is refused by what is written to | the same |
//! | `effect_once`, other effects | never | after a crash or a lost lease in the middle of the work; then [`attempt`](Message::attempt) is above one | the same |
//! | SQL inbox (`sql::inbox`) in the handler | never | never: effect and record are committed together | the same |
//! | producer with a [sequence](ProducerSequence) | the same as without | a repeated publish is stored once | as published |
//! | producer without | the same as with | a publish that was repeated after a lost answer is stored twice; `effect_once` finds the second by its [id](Envelope::id), if the event had one of its own | as published |
//! | retention by age or length | messages that were removed before the group got to them: counted and reported as [skipped](Claimed::skipped) | as long as records of effects are kept | the same |
//!
//! A broker that loses acknowledged writes (a failover to a replica that was behind, a flush) loses messages, or brings back settled
//! ones. Neither is silent: see [`JoinedGroup`]. Records of effects are the broker's too: keep those that must outlive it in a database
//! (`sql::inbox`).
//!
//! # Errors
//! [`PublishError`] tells a publish that was not done from one of which that is not known. A message that fails is retried in the
//! broker, and at last a [dead letter](DeadLetter): nothing that fails is dropped. A broker that is away ends neither producers nor
//! consumers.
//!
//! # Cancellation
//! A dropped publish may or may not be done. A consumer whose future is dropped gives back what it has not begun, and ends what it
//! has: see [`Consumer`](Consumer#cancellation).
//!
//! # Cost
//! A publish is one step of the broker, whatever the number of events. A consumer takes one read and one settlement per batch of
//! messages, with [`effect_once`](ConsumerBuilder::effect_once) one more; batches grow with the load.
//!
//! # References
//! - Envelopes: [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md).
//! - Numbered publishes: [KIP-98](https://cwiki.apache.org/confluence/display/KAFKA/KIP-98+-+Exactly+Once+Delivery+and+Transactional+Messaging).
//! - Consumer groups: [Redis Streams](https://redis.io/docs/latest/develop/data-types/streams/).

mod announce;
pub mod broker;
mod consumer;
mod memory;
mod message;
mod names;
mod producer;
pub mod record;
mod snapshot;
mod steps;
pub(crate) use self::producer::Sequences;
#[cfg(all(test, not(loom)))]
mod tests;

pub use self::{
    broker::StreamBroker,
    consumer::{ConsumeError, Consumer, ConsumerBuilder, Message, OnLoss},
    memory::InProcessStreams,
    message::{Envelope, Position, RawMessage},
    producer::{Event, Producer, ProducerBuilder, PublishError, TraceContext},
    snapshot::{ConsumerCounts, ConsumerSnapshot, ProducerCounts, ProducerSnapshot},
    steps::{
        Action, Batch, Begin, Begun, Claim, Claimed, ConsumerState, DeadLetter, Delivery, Effect,
        Failure, GroupState, Held, Join, Joined, JoinedGroup, Outgoing, Pause, PendingMessage,
        ProducerSequence, Publish, Published, Read, Resume, Retention, Settled, Settlement, Start,
        StreamState, Trimmed,
    },
};
