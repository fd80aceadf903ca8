//! Write-behind in Redis.
//!
//! A write is acknowledged when Redis has it: one script, one round trip. The steps and their meaning are those of
//! [`WriteBehindStore`].
//!
//! | key | type | content | TTL |
//! |---|---|---|---|
//! | `{prefix:write_behind:NAME:SHARD}:state` | string | format, incarnation, number of shards, version, time, lease, pause | twice the time that the shard is kept |
//! | `{..}:entries` | hash | by key: format, version, times, attempts, value | the same |
//! | `{..}:due` | zset | key; when it is due (ms) | the same |
//! | `{..}:since` | zset | key; since when it is not sunk (ms) | the same |
//! | `{..}:dead`, `{..}:dead:keys` | hash, zset | dead letters; their keys in order | the same |
//! | `{..}:writer:WRITER` | string | format, number of the last write, its version | how long the number is remembered |
//! | `{prefix:write_behind}:names` | zset | name, last announced (ms) | 1 day |
//!
//! All keys of a shard are in one slot of a Cluster; shards are spread over its nodes.
//!
//! # Durability
//! A write is as durable as Redis makes it. By its settings:
//!
//! | setting | what an acknowledged write survives |
//! |---|---|
//! | `appendonly yes`, `appendfsync always` | a crash of Redis and of its machine |
//! | `appendonly yes`, `appendfsync everysec` | a crash of Redis; after one of the machine, up to the last second of writes may be lost |
//! | snapshots only | writes since the last snapshot may be lost |
//! | [`durable`](RedisWriteBehind::durable) | besides, the loss of the master, if a replica that has the write takes over |
//!
//! What is lost is noticed by the handles that know of it, and told in an event.
//!
//! # Memory
//! Set the server's `maxmemory-policy` to `noeviction`: an evicted shard is lost. A full server refuses writes, and lets what
//! it has be sunk.
//!
//! # Clock
//! Times are the server's. When its clock is set back, the time of a shard goes on from where it was; versions never go back.
//!
//! # References
//! [Persistence](https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/),
//! [WAIT](https://redis.io/docs/latest/commands/wait/).
//!
//! ```no_run
//! use resilience_core::write_behind::{Batch, WriteBehind};
//! use resilience_redis::Redis;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let redis = Redis::connect("redis://redis.internal:6379")?;
//! let carts = WriteBehind::<u64>::builder("carts", redis.write_behind())
//!     .sink(|batch: Batch<u64>| async move { println!("{} carts", batch.len()); Ok::<_, std::io::Error>(()) })
//!     .build()?;
//! carts.write("customer-3", &1200).await?;
//! # Ok(()) }
//! ```

#[cfg(test)]
mod tests;
mod wire;

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::Value;
use resilience_core::{
    InvalidConfig,
    fleet::StoreHandle,
    write_behind::{
        WriteBehindStore,
        record::{
            DeadAction, EntryResult, RawDead, RawEntry, Settle, ShardState, Take, Taken, Write,
            WriteOutcome, Written,
        },
        store::{Shard, StoreError, StoreFuture, validate},
    },
};

use crate::{
    connection::Status,
    error::CommandError,
    keys,
    script::Script,
    store::{Durable, StoreContext},
    words::Words,
};

/// In keys.
const PATTERN: &str = "write_behind";

macro_rules! step {
    ($id:ident, $file:literal) => {
        static $id: LazyLock<Script> = LazyLock::new(|| {
            let header = [
                include_str!("../record_time.lua"),
                include_str!("header.lua"),
            ];
            Script::new(&[header[0], header[1], include_str!($file)].join("\n"))
        });
    };
}

step!(WRITE, "write.lua");
step!(TAKE, "take.lua");
step!(RENEW, "renew.lua");
step!(SETTLE, "settle.lua");
step!(STATE, "state.lua");
step!(DEAD, "dead.lua");
step!(ACT_ON_DEAD, "act_on_dead.lua");
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));

/// The store for write-behinds, in one Redis and prefix. Made by [`Redis::write_behind`](crate::Redis::write_behind); cheap to
/// clone.
#[derive(Clone)]
pub struct RedisWriteBehind {
    context: StoreContext,
    durable: Option<Durable>,
}

impl RedisWriteBehind {
    pub(crate) const fn new(context: StoreContext) -> Self {
        Self {
            context,
            durable: None,
        }
    }

    /// Waits until at least `replicas` replicas have each write, for at most `within` (Redis' WAIT). With fewer by then,
    /// the write fails as [unknown](resilience_core::write_behind::WriteError::Unknown): the master has it, and it is sunk unless
    /// that fails. It is repeated, and then waited for again, until its timeout.
    ///
    /// When the master fails alone, no acknowledged write is lost, if the replica that takes over is one of those that had it. Redis
    /// does not choose the replica by what a client waited for (Sentinel and Cluster prefer the most advanced one that they can
    /// reach), and replicas hold writes in memory: this is not consensus.
    ///
    /// Writes then have a connection of their own, because WAIT holds up whatever comes behind it, and go through one after the
    /// other: some thousand a second, with a replica nearby. [`write_all`](resilience_core::WriteBehind::write_all) waits once for many.
    ///
    /// # Errors
    /// If `replicas` is zero, or `within` below a millisecond or not below the connection's
    /// [budget](crate::RedisBuilder::budget).
    pub fn durable(mut self, replicas: u32, within: Duration) -> Result<Self, InvalidConfig> {
        self.durable = Some(Durable::new(&self.context, replicas, within)?);
        Ok(self)
    }

    /// Waits until the connection is up that writes use, but no longer than `within`.
    ///
    /// # Errors
    /// The last status, when it is not up by then.
    pub async fn ready(&self, within: Duration) -> Result<(), Status> {
        match &self.durable {
            None => self.context.ready(within).await,
            Some(durable) => durable.connection.ready(within).await,
        }
    }

    /// The names of all write-behinds that the fleets on this Redis used within the last day, sorted.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        self.context.names(PATTERN).await
    }

    fn tag(&self, shard: Shard<'_>) -> Result<String, StoreError> {
        validate::shard(shard)?;
        let index = shard.index.to_string();
        Ok(keys::subject_tag(
            &self.context.prefix,
            PATTERN,
            shard.name,
            &index,
        ))
    }

    fn keys(tag: &str) -> Vec<String> {
        let parts = ["state", "entries", "due", "since", "dead", "dead:keys"];
        parts.iter().map(|part| format!("{tag}:{part}")).collect()
    }

    async fn step<T>(
        &self,
        script: &Script,
        shard: Shard<'_>,
        words: &Words,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let keys = Self::keys(&self.tag(shard)?);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let answer = script
            .run(&self.context.connection, &keys, &words.refs())
            .await;
        self.understood(answer, read)
    }

    fn understood<T>(
        &self,
        answer: Result<Value, CommandError>,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let answer = answer.map_err(|error| self.context.of_key(error))?;
        read(answer).ok_or_else(|| {
            let reason =
                "unexpected answer from Redis: not what the script of a write-behind returns";
            StoreError::new(reason, false)
        })
    }

    async fn write_checked(&self, shard: Shard<'_>, write: &Write) -> Result<Written, StoreError> {
        let tag = self.tag(shard)?;
        validate::write(write)?;
        let mut keys = Self::keys(&tag);
        keys.push(format!(
            "{tag}:writer:{}",
            keys::bounded_part(&write.writer)
        ));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let words = write_words(shard, write);
        let Some(durable) = &self.durable else {
            let answer = WRITE
                .run(&self.context.connection, &keys, &words.refs())
                .await;
            return self.understood(answer, wire::written);
        };
        let (replicas, within) = (durable.replicas, durable.within);
        let waited = WRITE
            .run_and_wait(&durable.connection, &keys, &words.refs(), replicas, within)
            .await;
        let (answer, reached) = waited.map_err(|error| self.context.of_key(error))?;
        let written = self.understood(Ok(answer), wire::written)?;
        let stored = matches!(
            written.outcome,
            WriteOutcome::Stored { .. } | WriteOutcome::Repeated { .. }
        );
        if stored && reached < u64::from(replicas) {
            let reason = format!("{reached} of {replicas} replicas have it so far");
            return Err(StoreError::new(reason, true));
        }
        Ok(written)
    }
}

fn write_words(shard: Shard<'_>, write: &Write) -> Words {
    let mut words = Words::default();
    let bounds = &write.bounds;
    words.text(&write.number).text(&write.remember_ms);
    words.text(&write.floor).text(&write.incarnation);
    words.text(&shard.of).text(&bounds.max_entries);
    words.text(&bounds.max_age_ms).text(&bounds.max_first);
    words.text(&write.keep_ms);
    for change in &write.changes {
        words.bytes(change.key.as_bytes());
        match &change.value {
            Some(value) => words.text("v").bytes(value),
            None => words.text("d").text(""),
        };
    }
    words
}

fn take_words(take: &Take) -> Words {
    let mut words = Words::default();
    words.text(&take.holder).text(&take.floor);
    words.text(&take.lease_ms).text(&take.max);
    words.text(&take.age_ms).text(&take.keep_ms);
    words
}

fn settle_words(settle: &Settle) -> Result<Words, StoreError> {
    let mut words = Words::default();
    words.text(&settle.fence);
    match settle.pause_ms {
        Some(ms) => words.text(&ms),
        None => words.text(&-1),
    };
    for (key, version, result) in &settle.results {
        let words = words.bytes(key.as_bytes()).text(version);
        match result {
            EntryResult::Sunk => words.text("s").text(""),
            EntryResult::Retry { after_ms } => words.text("r").text(after_ms),
            EntryResult::Dead { reason } => words.text("d").text(reason),
            other => {
                let reason = format!("this store does not know {other:?}");
                return Err(StoreError::new(reason, false));
            }
        };
    }
    Ok(words)
}

fn dead_words(keys: &[Arc<str>], action: DeadAction) -> Result<Words, StoreError> {
    let mut words = Words::default();
    words.text(match action {
        DeadAction::Redrive => "r",
        DeadAction::Discard => "d",
        other => {
            let reason = format!("this store does not know {other:?}");
            return Err(StoreError::new(reason, false));
        }
    });
    for key in keys {
        words.bytes(key.as_bytes());
    }
    Ok(words)
}

impl WriteBehindStore for RedisWriteBehind {
    fn write<'a>(&'a self, shard: Shard<'a>, write: &'a Write) -> StoreFuture<'a, Written> {
        Box::pin(self.write_checked(shard, write))
    }

    fn read<'a>(&'a self, shard: Shard<'a>, key: &'a str) -> StoreFuture<'a, Option<RawEntry>> {
        Box::pin(async move {
            let entries = self.tag(shard)? + ":entries";
            validate::key(key)?;
            let connection = &self.context.connection;
            let answer = READ.run(connection, &[&entries], &[key.as_bytes()]).await;
            self.understood(answer, wire::entry)
        })
    }

    fn take<'a>(&'a self, shard: Shard<'a>, take: &'a Take) -> StoreFuture<'a, Taken> {
        Box::pin(async move {
            validate::take(take)?;
            let words = take_words(take);
            self.step(&TAKE, shard, &words, wire::taken).await
        })
    }

    fn renew<'a>(&'a self, shard: Shard<'a>, fence: u64, lease_ms: u64) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            validate::renew(fence, lease_ms)?;
            let mut words = Words::default();
            words.text(&fence).text(&lease_ms);
            self.step(&RENEW, shard, &words, |it| wire::flag(&it)).await
        })
    }

    fn settle<'a>(&'a self, shard: Shard<'a>, settle: &'a Settle) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            validate::settle(settle)?;
            let words = settle_words(settle)?;
            self.step(&SETTLE, shard, &words, |it| wire::flag(&it))
                .await
        })
    }

    fn state<'a>(&'a self, shard: Shard<'a>) -> StoreFuture<'a, ShardState> {
        Box::pin(async move {
            self.step(&STATE, shard, &Words::default(), wire::state)
                .await
        })
    }

    fn dead<'a>(
        &'a self,
        shard: Shard<'a>,
        after: Option<&'a str>,
        max: usize,
    ) -> StoreFuture<'a, Vec<RawDead>> {
        Box::pin(async move {
            validate::page(max)?;
            let mut words = Words::default();
            words.text(after.unwrap_or("")).text(&max);
            self.step(&DEAD, shard, &words, wire::dead).await
        })
    }

    fn act_on_dead<'a>(
        &'a self,
        shard: Shard<'a>,
        keys: &'a [Arc<str>],
        action: DeadAction,
    ) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            validate::keys(keys)?;
            let words = dead_words(keys, action)?;
            let read = |it| wire::count(&it);
            self.step(&ACT_ON_DEAD, shard, &words, read).await
        })
    }

    fn announce<'a>(&'a self, name: &'a str) -> Option<StoreFuture<'a, ()>> {
        Some(Box::pin(async move {
            let entered = self.context.enter(PATTERN, &[name]).await;
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

impl fmt::Debug for RedisWriteBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let durable = self.durable.as_ref();
        f.debug_struct("RedisWriteBehind")
            .field("context", &self.context)
            .field("replicas", &durable.map_or(0, |durable| durable.replicas))
            .finish()
    }
}
