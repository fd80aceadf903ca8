//! Streams in Redis.
//!
//! A stream is a stream of Redis, and a group a consumer group of Redis. What those do not have lies beside them: times at which a
//! message is due again, failures, dead letters, effects, bookmarks, producers' numbers. The steps and their meaning are
//! those of [`StreamBroker`]; each is one script, one round trip. Reads that wait are plain commands, on connections of their own.
//!
//! | key | type | content | TTL |
//! |---|---|---|---|
//! | `{prefix:stream:NAME}:log` | stream | the messages; fields as in the table of [`Envelope`](resilience_core::stream::Envelope), and `v`, the format; the group `~NUMBER` marks the incarnation | the longest time that a consumer or a retention keeps the stream; 1 day before there is one |
//! | `{..}:meta` | hash | format, how long the stream is kept, numbers of removed and delayed messages; by group: part of its keys, bookmark, when it was removed | as the log |
//! | `{..}:delayed` | zset | number and packed fields; when the message is due (ms) | as the log, and the delay |
//! | `{..}:producer:PRODUCER` | string | format, highest number | how long the producer is remembered |
//! | `{..}:group:GROUP` | hash | format, how long the group is kept, when it was seen, skipped messages, pause, count; by consumer: lease, when it was seen, number of records held | how long the group is kept |
//! | `{..}:group:GROUP:records` | hash | by position, of messages that wait or were delivered more than once: packed holder, end of lease or wait, deliveries, failures, and the fields of what was redriven | as the group |
//! | `{..}:group:GROUP:due` | zset | position; when another delivery is due (ms) | as the group |
//! | `{..}:group:GROUP:order` | zset | position, in order | as the group |
//! | `{..}:group:GROUP:dead` | hash | by position, of dead letters: packed deliveries, reason, when, failures, fields | as the group |
//! | `{..}:group:GROUP:dead:order` | zset | position, in order | as the group |
//! | `{..}:group:GROUP:effect:KEY` | string | packed position, fence, attempt, outcome | how long the effect is kept |
//! | `{prefix:stream}:names` | zset | stream, last announced (ms) | 1 day |
//!
//! All keys of a stream are in one slot of a Cluster. Positions in keys are padded to 40 digits. A group whose name begins with
//! `~` has another `~` in front of it in Redis.
//!
//! # Leases
//! A first delivery lies in the group's list of pending entries (PEL), and its lease is over when it has been there for as long as
//! its consumer joined for. XACK and XCLAIM ask for no owner: only the scripts here do, so that consumers of other programs in the
//! same group can take messages and acknowledge those of others. A message is moved from the PEL to a record when it waits
//! for a retry, and when it is delivered again. Not newer than Redis 6.2: no step needs XAUTOCLAIM, XACKDEL or XNACK.
//!
//! Times are the server's. When its clock is set back, the next claim begins leases and waits that would last longer than
//! they were to last again; delayed messages come later by the step.
//!
//! # Reads
//! A read that waits holds a connection of its own (one per read that waits at a time), because Redis answers in order: any other
//! command would wait behind it. It waits by the second, so that a lost connection is noticed and a shutdown does not take longer
//! than that. Several streams are read in one command, which asks for a share of the messages from each. On Cluster, and
//! where fewer messages than streams are asked for, they are read in turn instead, every 1 to 20 milliseconds.
//!
//! # Memory
//! Set the server's `maxmemory-policy` to `noeviction`: an evicted stream is lost. A full server refuses publishes
//! and new groups, and lets messages that were delivered be settled, extended and claimed.
//!
//! # Foreign entries
//! What another program adds to the stream is delivered too, read as far as it can be. A key of another type is an error, and left
//! unchanged.
//!
//! # Failover
//! Redis replicates after it has answered. Messages that were published, and settlements, that were answered just before the
//! master failed may be unknown to the replica that takes over: such messages are lost, and such deliveries come
//! again.
//!
//! # References
//! [Redis Streams](https://redis.io/docs/latest/develop/data-types/streams/),
//! [scripting](https://redis.io/docs/latest/develop/programmability/eval-intro/).
//!
//! ```no_run
//! use resilience_core::stream::StreamBroker;
//! use resilience_redis::Redis;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let streams = Redis::connect("redis://redis.internal:6379")?.streams();
//! if let Some(state) = streams.state("orders").await? {
//!     println!("{} messages, {} groups", state.length, state.groups.len());
//! }
//! # Ok(()) }
//! ```

mod reading;
mod steps;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt, sync::Arc};

use redis::Value;
use resilience_core::{
    fleet::StoreHandle,
    stream::{
        Action, Batch, Begin, Begun, Claim, Claimed, DeadLetter, Held, Join, Joined, Pause,
        PendingMessage, Position, Publish, Published, RawMessage, Read, Retention, Settled,
        Settlement, Start, StreamBroker, StreamState, Trimmed,
        broker::{StoreError, StoreFuture, validate},
    },
};

use self::{
    reading::Readers,
    steps::{
        BEGIN, CLAIM, EXTEND, JOIN, LEAVE, LETTERS, PAUSE, PEEK, PENDING, PUBLISH, REDRIVE, REMOVE,
        SEEK, SETTLE, STATE, TRIM,
    },
};
use crate::{error::CommandError, keys, script::Script, store::StoreContext};

/// In keys.
const PATTERN: &str = "stream";

/// The streams of one Redis and prefix. Made by [`Redis::streams`](crate::Redis::streams); cheap to clone.
#[derive(Clone)]
pub struct RedisStreams {
    context: StoreContext,
    /// Shared by clones.
    readers: Arc<Readers>,
}

/// The keys of one stream, and what all of them begin with.
struct StreamKeys {
    tag: String,
    all: Vec<String>,
}

impl StreamKeys {
    fn refs(&self) -> Vec<&str> {
        self.all.iter().map(String::as_str).collect()
    }
}

/// Words of a script.
#[derive(Default)]
struct Words(Vec<Vec<u8>>);

impl Words {
    fn text(&mut self, word: impl ToString) -> &mut Self {
        self.0.push(word.to_string().into_bytes());
        self
    }

    fn bytes(&mut self, word: impl AsRef<[u8]>) -> &mut Self {
        self.0.push(word.as_ref().to_vec());
        self
    }

    fn refs(&self) -> Vec<&[u8]> {
        self.0.iter().map(Vec::as_slice).collect()
    }
}

impl RedisStreams {
    pub(crate) fn new(context: StoreContext) -> Self {
        Self {
            context,
            readers: Arc::default(),
        }
    }

    /// The key that holds the messages of a stream: to look at. A message that another program adds to it is delivered.
    #[must_use]
    pub fn key(&self, stream: &str) -> String {
        keys::tag(&self.context.prefix, PATTERN, stream) + ":log"
    }

    /// The names of all streams that the fleets on this Redis used within the last day, sorted.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        self.context.names(PATTERN).await
    }

    fn of_stream(&self, stream: &str) -> Result<StreamKeys, StoreError> {
        validate::name("name of the stream", stream)?;
        let tag = keys::tag(&self.context.prefix, PATTERN, stream);
        let all = ["log", "meta", "delayed"];
        let all = all.iter().map(|part| format!("{tag}:{part}")).collect();
        Ok(StreamKeys { tag, all })
    }

    fn of_group(&self, stream: &str, group: &str) -> Result<StreamKeys, StoreError> {
        validate::name("name of the group", group)?;
        let mut keys = self.of_stream(stream)?;
        keys.tag = format!("{}:group:{}", keys.tag, keys::bounded_part(group));
        let parts = ["", ":records", ":due", ":order", ":dead", ":dead:order"];
        let parts = parts.iter().map(|part| format!("{}{part}", keys.tag));
        keys.all.extend(parts);
        Ok(keys)
    }

    async fn step<T>(
        &self,
        script: &Script,
        keys: &StreamKeys,
        words: &Words,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let connection = &self.context.connection;
        let answer = script.run(connection, &keys.refs(), &words.refs()).await;
        let answer = answer.map_err(|error| self.context.of_key(error))?;
        read(answer).ok_or_else(|| wire::unexpected("not what the script of a stream returns"))
    }
}

/// The name of a group in Redis, where names that begin with `~` mark incarnations.
fn native(group: &str) -> String {
    if group.starts_with('~') {
        format!("~{group}")
    } else {
        group.to_owned()
    }
}

/// The first words of a step on a group.
fn of_group(group: &str, consumer: &str) -> Words {
    let mut words = Words::default();
    words.text(native(group)).text(consumer);
    words
}

/// The lowest and the highest position of a list, as two words.
fn range(positions: impl Iterator<Item = Position> + Clone, words: &mut Words) {
    let (first, last) = (positions.clone().min(), positions.max());
    words.text(first.unwrap_or_default());
    words.text(last.unwrap_or_default());
}

/// Where a group begins, as two words.
fn start(start: Start, words: &mut Words) -> Result<(), StoreError> {
    let (to, ago) = match start {
        Start::Oldest => (Position::START.to_string(), 0),
        Start::Next => ("$".to_owned(), 0),
        Start::After(position) => (position.to_string(), 0),
        Start::Ago(ms) => ("ago".to_owned(), ms.min(validate::MAX_MS)),
        other => {
            let reason = format!("this broker does not know {other:?}");
            return Err(StoreError::new(reason, false));
        }
    };
    words.text(to).text(ago);
    Ok(())
}

/// A number for a stream or incarnation that does not exist.
fn incarnation() -> u64 {
    fastrand::u64(1..validate::BEYOND)
}

impl fmt::Debug for RedisStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreams")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl StreamBroker for RedisStreams {
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        publish: &'a Publish,
    ) -> StoreFuture<'a, Vec<Published>> {
        Box::pin(async move {
            let mut keys = self.of_stream(stream)?;
            validate::publish(publish)?;
            let mut words = Words::default();
            words.text(incarnation());
            let (first, keep_ms) = publish
                .sequence
                .as_ref()
                .map_or((0, 0), |it| (it.first, it.keep_ms));
            words.text(first).text(keep_ms).text(publish.messages.len());
            if let Some(sequence) = &publish.sequence {
                let producer = keys::bounded_part(&sequence.producer);
                keys.all.push(format!("{}:producer:{producer}", keys.tag));
            }
            for message in &publish.messages {
                wire::outgoing(message, &mut words.0);
            }
            self.step(&PUBLISH, &keys, &words, wire::published).await
        })
    }

    fn join<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        join: &'a Join,
    ) -> StoreFuture<'a, Joined> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            validate::join(join)?;
            let mut words = of_group(group, &join.consumer);
            words
                .text(incarnation())
                .text(join.lease_ms)
                .text(join.keep_ms);
            start(join.start, &mut words)?;
            let (known, after) = join.resume.map_or((0, Position::START), |resume| {
                (resume.incarnation, resume.after)
            });
            words.text(known).text(after);
            words.text(keys::bounded_part(group));
            self.step(&JOIN, &keys, &words, wire::joined).await
        })
    }

    fn leave<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            let words = of_group(group, consumer);
            self.step(&LEAVE, &keys, &words, |it| wire::flag(&it)).await
        })
    }

    fn read<'a>(&'a self, group: &'a str, read: Read<'a>) -> StoreFuture<'a, Batch> {
        Box::pin(self.read_soon(group, read))
    }

    fn claim<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        claim: Claim<'a>,
    ) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            validate::claim(&claim)?;
            let mut words = of_group(group, claim.consumer);
            words.text(claim.max);
            let read = |answer| wire::claimed(stream, answer);
            self.step(&CLAIM, &keys, &words, read).await
        })
    }

    fn extend<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<Held>> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            validate::positions(positions.iter().copied())?;
            if positions.is_empty() {
                return Ok(Vec::new());
            }
            let mut words = of_group(group, consumer);
            range(positions.iter().copied(), &mut words);
            for position in positions {
                words.text(position);
            }
            self.step(&EXTEND, &keys, &words, wire::held).await
        })
    }

    fn begin<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        begins: &'a [Begin],
    ) -> StoreFuture<'a, Vec<Begun>> {
        Box::pin(async move {
            let mut keys = self.of_group(stream, group)?;
            validate::begins(begins)?;
            if begins.is_empty() {
                return Ok(Vec::new());
            }
            let mut words = of_group(group, consumer);
            range(begins.iter().map(|it| it.position), &mut words);
            for begin in begins {
                words.text(begin.position).text(begin.keep_ms);
                keys.add_effect(&begin.key);
            }
            self.step(&BEGIN, &keys, &words, wire::begun).await
        })
    }

    fn settle<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        settlements: &'a [Settlement],
    ) -> StoreFuture<'a, Vec<Settled>> {
        Box::pin(async move {
            let mut keys = self.of_group(stream, group)?;
            validate::settlements(settlements)?;
            if settlements.is_empty() {
                return Ok(Vec::new());
            }
            let mut words = of_group(group, consumer);
            range(settlements.iter().map(|it| it.position), &mut words);
            for settlement in settlements {
                words.text(settlement.position);
                action(&settlement.action, &mut words, &mut keys)?;
            }
            self.step(&SETTLE, &keys, &words, wire::settled).await
        })
    }

    fn seek<'a>(&'a self, stream: &'a str, group: &'a str, to: Start) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            let mut words = of_group(group, "");
            start(to, &mut words)?;
            words.text(keys::bounded_part(group));
            self.step(&SEEK, &keys, &words, |it| wire::flag(&it)).await
        })
    }

    fn trim<'a>(&'a self, stream: &'a str, retention: &'a Retention) -> StoreFuture<'a, Trimmed> {
        Box::pin(async move {
            let keys = self.of_stream(stream)?;
            validate::retention(retention)?;
            let mut words = Words::default();
            let lengths = retention.max_length.map(|it| it.min(validate::BEYOND - 1));
            for bound in [retention.max_age_ms, lengths, retention.settled] {
                match bound {
                    Some(bound) => words.text(bound),
                    None => words.text(-1),
                };
            }
            words.text(retention.keep_ms);
            self.step(&TRIM, &keys, &words, wire::trimmed).await
        })
    }

    fn pause<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        pause: Option<&'a Pause>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            let mut words = of_group(group, "");
            match pause {
                None => words.text(""),
                Some(pause) => {
                    match pause.for_ms {
                        Some(ms) => words.text(ms.min(validate::MAX_MS)),
                        None => words.text(-1),
                    };
                    words.text(&pause.by).text(&pause.reason)
                }
            };
            self.step(&PAUSE, &keys, &words, |it| wire::flag(&it)).await
        })
    }

    fn state<'a>(&'a self, stream: &'a str) -> StoreFuture<'a, Option<StreamState>> {
        Box::pin(async move {
            let keys = self.of_stream(stream)?;
            self.step(&STATE, &keys, &Words::default(), wire::state)
                .await
        })
    }

    fn peek<'a>(
        &'a self,
        stream: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<(Position, RawMessage)>> {
        Box::pin(async move {
            let keys = self.of_stream(stream)?;
            let mut words = Words::default();
            words.text(from).text(max.min(validate::MAX_BATCH));
            self.step(&PEEK, &keys, &words, wire::entries).await
        })
    }

    fn pending<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<PendingMessage>> {
        Box::pin(self.page(&PENDING, (stream, group), from, max, wire::pending))
    }

    fn dead_letters<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>> {
        Box::pin(self.page(&LETTERS, (stream, group), from, max, wire::dead_letters))
    }

    fn redrive<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        Box::pin(self.end_dead(stream, group, positions, 1))
    }

    fn drop_dead<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        Box::pin(self.end_dead(stream, group, positions, 0))
    }

    fn remove_group<'a>(&'a self, stream: &'a str, group: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            let words = of_group(group, "");
            self.step(&REMOVE, &keys, &words, |it| wire::flag(&it))
                .await
        })
    }

    fn announce<'a>(&'a self, stream: &'a str) -> Option<StoreFuture<'a, ()>> {
        Some(Box::pin(async move {
            let entered = self.context.enter(PATTERN, &[stream]).await;
            Ok(entered.map(drop)?)
        }))
    }

    fn is_sharded(&self) -> bool {
        self.context.connection.is_cluster()
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.context.handle)
    }
}

impl RedisStreams {
    async fn page<T>(
        &self,
        script: &Script,
        (stream, group): (&str, &str),
        from: Position,
        max: usize,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let keys = self.of_group(stream, group)?;
        let mut words = of_group(group, "");
        words.text(from).text(max.min(validate::MAX_BATCH));
        self.step(script, &keys, &words, read).await
    }

    async fn end_dead(
        &self,
        stream: &str,
        group: &str,
        positions: &[Position],
        redrives: u8,
    ) -> Result<Vec<bool>, StoreError> {
        let keys = self.of_group(stream, group)?;
        validate::positions(positions.iter().copied())?;
        let mut words = of_group(group, "");
        words.text(redrives);
        for position in positions {
            words.text(position);
        }
        self.step(&REDRIVE, &keys, &words, wire::flags).await
    }
}

impl StreamKeys {
    /// The key of an effect, of the group that the keys are of.
    fn add_effect(&mut self, key: &str) {
        let key = keys::bounded_part(key);
        self.all.push(format!("{}:effect:{key}", self.tag));
    }
}

fn action(action: &Action, words: &mut Words, keys: &mut StreamKeys) -> Result<(), StoreError> {
    match action {
        Action::Ack(None) => words.text("a"),
        Action::Ack(Some(effect)) => {
            keys.add_effect(&effect.key);
            let words = words.text("e").text(effect.fence).text(effect.ttl_ms);
            words.bytes(&effect.outcome)
        }
        Action::Retry { after_ms, reason } => words.text("r").text(after_ms).text(reason),
        Action::GiveBack { after_ms } => words.text("g").text(after_ms),
        Action::Dead { reason } => words.text("d").text(reason),
        other => {
            let reason = format!("this broker does not know {other:?}");
            return Err(StoreError::new(reason, false));
        }
    };
    Ok(())
}
