//! Streams in Redis.
//!
//! A stream is a stream of Redis, and a group a consumer group of Redis. What those do not have lies beside them: times at which a
//! message is due again, failures, dead letters, effects, bookmarks, producers' numbers. The steps and their meaning are
//! those of [`StreamBroker`](resilience_core::stream::StreamBroker); each is one script, one round trip. A publish of eight messages
//! or more without numbers and delays is one XADD for each in one round trip instead (not in a Cluster), at half the cost. Reads that
//! wait are plain commands, on connections of their own.
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

mod broker;
mod message;
mod publishing;
mod reading;
mod steps;
#[cfg(test)]
mod tests;
mod wire;
mod words;

use std::{fmt, sync::Arc};

use redis::Value;
use resilience_core::stream::broker::{StoreError, validate};

use self::{
    reading::Readers,
    words::{StreamKeys, Words},
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

impl fmt::Debug for RedisStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreams")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}
