//! What the steps of a broker take and answer.

use std::sync::Arc;

use bytes::Bytes;

use super::message::{Position, RawMessage};

/// Messages to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The messages, in the order in which they are stored.
    pub messages: Vec<Outgoing>,
    /// Numbers the messages, so that a repeated publish stores each once.
    pub sequence: Option<ProducerSequence>,
}

/// A message on its way to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The message.
    pub message: RawMessage,
    /// Time after which it is stored, in milliseconds; zero: at once. It has a position, and a place in the order, from then on.
    pub delay_ms: u64,
}

/// The numbers of the messages of one publish, by a producer with a stable name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerSequence {
    /// Name of the producer; used by one producer at a time.
    pub producer: Arc<str>,
    /// Number of the first message; the others follow without gaps. At least 1, and higher than those of the messages before.
    pub first: u64,
    /// How long the broker remembers the producer's highest number from now, in milliseconds.
    pub keep_ms: u64,
}

/// What became of one message of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Published {
    /// It is in the stream.
    Stored(Position),
    /// It will be in the stream after its delay.
    Delayed,
    /// It was published before, by its number; nothing was stored.
    Duplicate,
}

/// Where a group that does not exist yet begins, and where a seek goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Start {
    /// With the oldest message that the stream still has.
    Oldest,
    /// With the next message that is stored.
    Next,
    /// After the message at this position.
    After(Position),
    /// With the first message that was stored at most this many milliseconds ago, by the broker's clock.
    Ago(u64),
}

/// A consumer that takes part in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Name of the consumer: never used by two at a time, nor again later.
    pub consumer: Arc<str>,
    /// How long a delivery to this consumer is its own without [`extend`](super::StreamBroker::extend), in milliseconds.
    pub lease_ms: u64,
    /// Where the group begins if it never existed.
    pub start: Start,
    /// What the consumer knows of the group, if it has been in it before.
    pub resume: Option<Resume>,
    /// How long the stream and the group are kept without any further step, in milliseconds.
    pub keep_ms: u64,
}

/// What a consumer knows of a group that may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The incarnation of the stream.
    pub incarnation: u64,
    /// Every message that this consumer was given up to this position is settled.
    pub after: Position,
}

/// Answer to a [`Join`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// A number that the stream was given, at random, when it was created: it has another one after it was deleted, flushed, or
    /// lost by a failover. Never zero; below 2^53.
    pub incarnation: u64,
    /// How the group came to be.
    pub group: JoinedGroup,
}

/// How a group that was joined came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JoinedGroup {
    /// It existed.
    Existing,
    /// It was created as [`Join::start`] says.
    Created,
    /// It had been lost, in a stream that still exists, and was created again after this position. What was settled after it is
    /// delivered again.
    Restored(Position),
    /// It had been lost together with the stream, and was created again at the beginning of the new stream.
    Recreated,
}

/// A request for new messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read<'a> {
    /// The streams, each of which has the group.
    pub streams: &'a [&'a str],
    /// The consumer, which has joined.
    pub consumer: &'a str,
    /// Maximum number of messages, over all streams; 1 to [`MAX_BATCH`](super::broker::validate::MAX_BATCH).
    pub max: usize,
    /// How long to wait for the first one, in milliseconds; zero: not at all. At most
    /// [`MAX_BLOCK_MS`](super::broker::validate::MAX_BLOCK_MS).
    pub block_ms: u64,
}

/// Answer to a [`Read`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The messages; in order per stream. Each is now held by the consumer.
    pub deliveries: Vec<Delivery>,
    /// Streams that do not exist, or do not have the group: the consumer joins again.
    pub missing: Vec<Arc<str>>,
}

/// A message that is held by a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The stream.
    pub stream: Arc<str>,
    /// Its place in the stream, under which it is settled.
    pub position: Position,
    /// How often it was delivered to the group, this time included. Deliveries that were [given back](Action::GiveBack) are
    /// not counted.
    pub deliveries: u32,
    /// The message. `None`: it is no longer in the stream (trimmed, deleted), though it was not settled; settle it as
    /// [`Action::Ack`] or [`Action::Dead`].
    pub message: Option<RawMessage>,
}

/// A request for messages that wait for another delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// The consumer, which has joined.
    pub consumer: &'a str,
    /// Maximum number of messages; zero: only move what is due, and tell the state.
    pub max: usize,
}

/// Answer to a [`Claim`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// The messages; the longest due first. Each is now held by the consumer.
    pub deliveries: Vec<Delivery>,
    /// Milliseconds until the next message is due: a delay or a retry is over, or a lease ends. `None`: there is none. Zero:
    /// there are more now.
    pub next_ms: Option<u64>,
    /// The group is paused: no message was delivered.
    pub paused: Option<Pause>,
    /// See [`Joined::incarnation`]. Zero: the stream or the group does not exist; the consumer joins again.
    pub incarnation: u64,
    /// Messages that were trimmed before the group was given them, since the group was created.
    pub skipped: u64,
}

/// Whether a consumer still holds a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// It does.
    Held,
    /// Another consumer holds it.
    Taken,
    /// No consumer holds it: it is settled, waits for another delivery, or was lost.
    Gone,
}

/// The end of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The message.
    pub position: Position,
    /// What becomes of it.
    pub action: Action,
}

/// What becomes of a message at the end of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// It is done, as far as the group is concerned. With an effect: recorded in the same step.
    Ack(Option<Effect>),
    /// It is delivered again after a while.
    Retry {
        /// The time until then, in milliseconds.
        after_ms: u64,
        /// Why it failed.
        reason: Arc<str>,
    },
    /// It is delivered again after a while, and this delivery is not counted: the message was not tried.
    GiveBack {
        /// The time until then, in milliseconds.
        after_ms: u64,
    },
    /// It is moved to the dead letters of the group, with the failures so far.
    Dead {
        /// Why.
        reason: Arc<str>,
    },
}

/// An effect that is recorded with the acknowledgement of its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The key that it was begun under; see [`Begin`].
    pub key: Arc<str>,
    /// The fence that it was begun with.
    pub fence: u64,
    /// What a repetition is given.
    pub outcome: Bytes,
    /// How long it is kept, in milliseconds.
    pub ttl_ms: u64,
}

/// Answer to a [`Settlement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Settled {
    /// It is as the settlement says.
    Done,
    /// Another consumer holds the message, or its effect was begun again with a higher fence: nothing changed.
    Taken,
    /// No consumer holds the message: nothing changed. Also the answer to a settlement that was done before.
    Gone,
}

/// A request to begin the effect of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The message, which the consumer holds.
    pub position: Position,
    /// What the effect is recorded under, within the group: the same for every copy of the event.
    pub key: Arc<str>,
    /// How long the record is kept unless it is completed, in milliseconds.
    pub keep_ms: u64,
}

/// Answer to a [`Begin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The effect is to be made.
    Run {
        /// Higher than that of every earlier attempt under the key; below 2^53.
        fence: u64,
        /// Number of the attempt under the key, counted from one. Above one, an earlier attempt may have had effects.
        attempt: u32,
    },
    /// The effect was recorded before, with this outcome: only the acknowledgement is left to do.
    Done {
        /// The recorded outcome.
        outcome: Bytes,
    },
    /// Another message with the key is held by a consumer.
    Busy,
    /// The consumer does not hold the message.
    Lost(Held),
}

/// How long a stream keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Removes messages that were stored longer ago, in milliseconds.
    pub max_age_ms: Option<u64>,
    /// Removes the oldest messages above this number.
    pub max_length: Option<u64>,
    /// Removes messages that every group has settled; without a group, none. Groups none of whose consumers was seen for this
    /// long, in milliseconds, are not waited for, unless there is no other.
    pub settled: Option<u64>,
    /// How long the stream and what belongs to it are kept without any further step, in milliseconds.
    pub keep_ms: u64,
}

/// Answer to a trim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Number of messages that were removed.
    pub removed: u64,
    /// Number of those that some group had not been given yet.
    pub undelivered: u64,
    /// Number of messages that are left.
    pub length: u64,
}

/// Why a group is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// What paused it, for operators.
    pub by: Arc<str>,
    /// Why, for operators.
    pub reason: Arc<str>,
    /// How long, in milliseconds; in answers, what is left. `None`: until it is resumed.
    pub for_ms: Option<u64>,
}

/// One failed delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The delivery's number.
    pub delivery: u32,
    /// The consumer.
    pub consumer: Arc<str>,
    /// Milliseconds ago.
    pub ago_ms: u64,
    /// Why; `None`: its lease ended without a settlement.
    pub reason: Option<Arc<str>>,
}

/// A message that a group gave up on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The place that it had in the stream, under which it is redriven or dropped.
    pub position: Position,
    /// The message; `None`: it was no longer in the stream.
    pub message: Option<RawMessage>,
    /// How often it was delivered.
    pub deliveries: u32,
    /// Why it was given up on.
    pub reason: Arc<str>,
    /// Milliseconds since then.
    pub age_ms: u64,
    /// The last failures, oldest first; at most [`MAX_FAILURES`](super::broker::validate::MAX_FAILURES).
    pub failures: Vec<Failure>,
}

/// A message that a group was given and has not settled, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingMessage {
    /// Its place in the stream.
    pub position: Position,
    /// The consumer that holds it; `None`: it waits for another delivery.
    pub consumer: Option<Arc<str>>,
    /// Counted deliveries.
    pub deliveries: u32,
    /// Milliseconds until its lease ends, or until it is due.
    pub left_ms: u64,
}

/// The state of a stream, for snapshots and operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Messages in the stream.
    pub length: u64,
    /// Messages that wait for their delay.
    pub delayed: u64,
    /// Position of the oldest message.
    pub first: Option<Position>,
    /// Position of the newest message.
    pub last: Option<Position>,
    /// See [`Joined::incarnation`].
    pub incarnation: u64,
    /// The groups, by name.
    pub groups: Vec<GroupState>,
}

/// The state of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Name of the group.
    pub group: Arc<str>,
    /// The group was given every message up to this position.
    pub cursor: Position,
    /// Messages in the stream after the cursor: exact, after trims too.
    pub lag: u64,
    /// Messages that consumers hold.
    pub held: u64,
    /// Messages that wait for another delivery.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// See [`Claimed::skipped`].
    pub skipped: u64,
    /// Milliseconds since the oldest message that is not settled was stored: of those held, waiting, and after the cursor.
    pub oldest_ms: Option<u64>,
    /// Whether it is paused, and why.
    pub paused: Option<Pause>,
    /// The consumers, by name.
    pub consumers: Vec<ConsumerState>,
}

/// The state of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// Name of the consumer.
    pub consumer: Arc<str>,
    /// Messages that it holds.
    pub held: u64,
    /// See [`Join::lease_ms`].
    pub lease_ms: u64,
    /// Milliseconds since its last step.
    pub idle_ms: u64,
}
