//! The trait of a broker: where streams are kept.

pub mod validate;

use std::fmt;

use super::message::{Position, RawMessage};
pub use super::steps::{
    Action, Batch, Begin, Begun, Claim, Claimed, ConsumerState, DeadLetter, Delivery, Effect,
    Failure, GroupState, Held, Join, Joined, JoinedGroup, Outgoing, Pause, PendingMessage,
    ProducerSequence, Publish, Published, Read, Resume, Retention, Settled, Settlement, Start,
    StreamState, Trimmed,
};
use crate::fleet::{Probe, StoreClient, StoreHandle};
pub use crate::fleet::{StoreError, StoreFuture};

/// Where streams are kept.
///
/// A stream is a sequence of messages. A group is given each message of the stream, in order, and each message of the group is
/// held by one consumer at a time, until it is settled. Groups are independent of each other. What a group knows of a message is a
/// [`Record`](super::record::Record): each step that concerns one acts as it does.
///
/// ```text
/// publish, delayed -- delay over --> in the stream -- read --> held(consumer, lease) -- ack --> settled
///                                                                |-- retry, give back --> waiting(due) -- claim --> held
///                                                                |-- lease ends ------------------------- claim --> held
///                                                                |-- dead --> dead letter -- redrive --> waiting
/// ```
///
/// # What holds for every step
/// - It is atomic, on the broker's own clock, and one round trip. What belongs to one stream (groups, records of effects, dead
///   letters) lies together, so that it can be changed in one step.
/// - Steps of a consumer compare the holder first: the message of another consumer is left as it is, and the answer says so.
/// - It answers for each item of a list, in the order of the list; an item that is refused does not stop the others. Lists have at
///   most [`MAX_BATCH`](validate::MAX_BATCH) items, each message at most once.
/// - A stream or a group that does not exist is no error, unless the step says so: nothing is delivered, held or listed.
/// - It needs no time budget of its own: callers give each one.
/// - An [`ambiguous`](StoreError::ambiguous) error may be repeated with the same arguments, unless the step says otherwise.
///
/// # Leases
/// A delivery to a consumer is its own for the [lease](Join::lease_ms) that the consumer joined with, counted from the delivery or
/// from the last [`extend`](Self::extend). Then any consumer of the group may be given the message by [`claim`](Self::claim). Until
/// one is, the first one holds it still, and may settle it.
pub trait StreamBroker: fmt::Debug + Send + Sync + 'static {
    /// Stores messages, in order. They become visible to groups in the order of their positions.
    ///
    /// With a [sequence](Publish::sequence): all or none, and a message whose number is not above the producer's highest one is
    /// not stored ([`Published::Duplicate`]). Numbers may have gaps. Without: messages of other publishes may lie between these, and
    /// are read before all of these are stored; after an ambiguous error, some may be stored, and a repetition stores them again.
    ///
    /// A message with a delay is kept outside of the stream until it is due and a [`claim`](Self::claim) of any group moves it
    /// in; in the order of due times. It is in exactly one of both places at every moment.
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        publish: &'a Publish,
    ) -> StoreFuture<'a, Vec<Published>>;

    /// Makes a consumer known to a group, and keeps it known; creates the stream and the group if needed. Repeated at every
    /// heartbeat.
    ///
    /// A group that does not exist is created:
    /// 1. If the broker has kept its bookmark for this incarnation of the stream: after the bookmark ([`JoinedGroup::Restored`]). A
    ///    bookmark is a position up to which the group had settled everything; every claim moves it on. It is kept apart from the
    ///    group.
    /// 2. Otherwise, if [`Join::resume`] has this incarnation: after its position (`Restored`).
    /// 3. Otherwise, if there is a bookmark or a resume of another incarnation: with the oldest message
    ///    ([`JoinedGroup::Recreated`]).
    /// 4. Otherwise as [`Join::start`] says ([`JoinedGroup::Created`]).
    fn join<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        join: &'a Join,
    ) -> StoreFuture<'a, Joined>;

    /// Makes a consumer unknown to a group, if it holds nothing. Whether it was removed, or was unknown before.
    fn leave<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
    ) -> StoreFuture<'a, bool>;

    /// Delivers messages that the group was not given yet, in order; waits for the first one, for at most
    /// [`Read::block_ms`]. Each counts as delivered once.
    ///
    /// Dropping the future may leave messages delivered: they are claimed by another consumer when their lease ends. The same holds
    /// for a lost answer. Therefore a caller does not drop it, but waits for its end. Not to be repeated by the broker itself.
    ///
    /// Whether a paused group is read is up to the broker: consumers do not read while [`claim`](Self::claim) tells of a pause.
    fn read<'a>(&'a self, group: &'a str, read: Read<'a>) -> StoreFuture<'a, Batch>;

    /// Delivers messages of the group that wait for another delivery: those whose retry is due, and those whose holder's lease has
    /// ended, the consumer's own included. Each delivery counts, by one. The longest due come first.
    ///
    /// Moves due delayed messages into the stream before, and the bookmark of the group on. Delivers nothing while the group is
    /// paused.
    fn claim<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        claim: Claim<'a>,
    ) -> StoreFuture<'a, Claimed>;

    /// Begins the lease of messages again, whether or not it has ended, unless another consumer was given them.
    fn extend<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<Held>>;

    /// Begins the effects of messages; see [`Begun`]. Extends the lease of each message that the consumer holds.
    ///
    /// The record of an effect belongs to the group, lies with the stream, and is running for as long as a consumer holds the
    /// message that it was begun for. It is kept for [`Begin::keep_ms`] from now, and once it is completed for
    /// [`Effect::ttl_ms`]. A repetition after a lost answer is a further attempt.
    fn begin<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        begins: &'a [Begin],
    ) -> StoreFuture<'a, Vec<Begun>>;

    /// Ends deliveries. Each settlement as a whole: an effect is recorded if, and only if, its message is acknowledged.
    ///
    /// An acknowledgement with an effect is refused ([`Settled::Taken`]) if the record has a higher fence or is completed by
    /// another fence; a record that was lost is written again. A retry and a dead letter are one move: at no moment is
    /// the message in two places, or in none. A repetition after a lost answer answers [`Settled::Gone`] for what was done by the
    /// first one.
    fn settle<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        settlements: &'a [Settlement],
    ) -> StoreFuture<'a, Vec<Settled>>;

    /// Moves the group's cursor, back or forth; creates the group if it does not exist, in a stream that does. What is held or waits
    /// up to the new cursor stays as it is. What is held or waits after it is read again like any other message: as a first delivery,
    /// taken from its holder. Whether the stream exists.
    fn seek<'a>(&'a self, stream: &'a str, group: &'a str, to: Start) -> StoreFuture<'a, bool>;

    /// Removes old messages, and keeps the stream, its groups and its records for another
    /// [`keep_ms`](Retention::keep_ms). Messages that a group waits for are removed as well if they are too old or too many; the
    /// group's count of [skipped](Claimed::skipped) messages tells of those that it was not given. May remove fewer messages than
    /// it could, and the rest by a later call.
    fn trim<'a>(&'a self, stream: &'a str, retention: &'a Retention) -> StoreFuture<'a, Trimmed>;

    /// Pauses the group, for all its consumers, or resumes it. Messages that are held are not affected. Whether the group exists.
    fn pause<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        pause: Option<&'a Pause>,
    ) -> StoreFuture<'a, bool>;

    /// The state of a stream, if it exists.
    fn state<'a>(&'a self, stream: &'a str) -> StoreFuture<'a, Option<StreamState>>;

    /// Up to `max` messages of the stream from a position on, in order. Changes nothing.
    fn peek<'a>(
        &'a self,
        stream: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<(Position, RawMessage)>>;

    /// Up to `max` messages from a position on that are held or wait, in order. Changes nothing.
    fn pending<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<PendingMessage>>;

    /// Up to `max` dead letters of the group, from a position on, in order. Changes nothing.
    fn dead_letters<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>>;

    /// Makes dead letters due for another delivery to their group, and to no other; deliveries are counted from zero again, and
    /// failures are forgotten. Each is one move, and independent of what was trimmed. A broker may give the message another
    /// position. Whether each was there.
    fn redrive<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>>;

    /// Removes dead letters. Whether each was there.
    fn drop_dead<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>>;

    /// Removes a group with all that belongs to it, its dead letters and records of effects included. Whether it existed. A consumer
    /// that is still at work creates it again.
    fn remove_group<'a>(&'a self, stream: &'a str, group: &'a str) -> StoreFuture<'a, bool>;

    /// Enters `stream` in the list of names that operators see. Asked for about once an hour; a failure is not reported. Default:
    /// `None`, there is no such list.
    fn announce<'a>(&'a self, stream: &'a str) -> Option<StoreFuture<'a, ()>> {
        let _ = stream;
        None
    }

    /// Whether streams are divided over servers that fail apart from each other (the shards of a Cluster). Such a broker marks the
    /// errors of one shard as [`partial`](StoreError::partial). Default: no.
    fn is_sharded(&self) -> bool {
        false
    }

    /// This process' use of the broker: return the one that it keeps, and that its clones share. Default: `None`.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(StreamBroker);

/// A client of a broker.
pub(crate) type StreamClient = StoreClient<dyn StreamBroker>;

impl Probe for dyn StreamBroker {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.peek(name, Position::END, 1).await.map(drop) })
    }

    fn is_sharded(&self) -> bool {
        StreamBroker::is_sharded(self)
    }
}
