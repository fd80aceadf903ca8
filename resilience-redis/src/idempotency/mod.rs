//! Idempotency records in Redis.
//!
//! The steps and their meaning are those of [`Record`](resilience_core::idempotency::record::Record); each is one script,
//! one round trip, on one key, and checks owner and fence:
//!
//! | key | type | content | TTL |
//! |---|---|---|---|
//! | `{prefix:idempotency:NAME:KEY}:record` | string | packed: phase, previous, attempt, fence, since, until, lease, retention, whether a process is subscribed; fingerprint, owner; outcome, or else checkpoint | retention, or the outcome's own time |
//! | `{prefix:idempotency}:names` | zset | handle, last announced (ms) | 1 day |
//!
//! Times are the server's, in microseconds; leases and retentions are in milliseconds. A clock that is set back makes none of
//! them longer: beside the end of a lease the record has what was left of it when it was last looked at. A value that is not a record is an
//! error, and left unchanged. A renewal overwrites the packed head and nothing else, whatever the size of the checkpoint; a
//! claim and a completion write the whole record once. The lease is part of the record, not the key's TTL: the record
//! outlives its lease, and with it fence, fingerprint, attempts and checkpoint. A new outcome costs two round trips in all, a
//! replay one.
//!
//! Every step that ends a wait is published on `{prefix:idempotency:NAME:KEY}:news`, as `format:phase`, if a process is subscribed; a
//! message of any format means that the record may have changed. A process
//! subscribes to the channels of the records that its callers wait for at the moment, and to no others: a wait costs a
//! SUBSCRIBE and an UNSUBSCRIBE, however many callers wait for the same record. A claim says whether its process is
//! subscribed, and the record keeps that. (On Cluster, each publication goes to all nodes.)
//!
//! The age of an outcome is the difference of two estimates of the server's clock, which processes read when they connect and
//! again with each new key, each heartbeat, and a replay half a second after either (which asks for the time, and is two
//! commands). It is wrong by the latency of replies, and by a step of the server's clock that was not noticed yet; on Cluster,
//! by the difference of the nodes' clocks. It decides how long a copy in the local cache is used, and whether an outcome seems
//! to be from the future: one that was recorded before the clock was set back is then kept for its own time from now on.
//!
//! # Memory
//! Set the server's `maxmemory-policy` to `noeviction`. The work of an evicted record can be done again; only what its holder
//! knows is left of it. A full server refuses new keys, and lets granted claims be completed, released and renewed.
//!
//! # Size
//! Redis' Lua hashes every byte of an outcome, when it is recorded and with each replay: about 2 us of the server per
//! kilobyte, where a GET takes 0.1. [Compress](resilience_core::idempotency::Sealing) outcomes of more than about ten
//! kilobytes, or store them elsewhere and record a reference.
//!
//! # Failover
//! Redis replicates after it has answered. A claim or an outcome that was answered just before the master failed may be
//! unknown to the replica that takes over: the work of a claim may then be granted again (with a higher fence), an outcome
//! be forgotten. [`durable`](RedisIdempotency::durable) reduces that window, and documents its limits; what is lost under
//! Sentinel with which setting stands in a table in the README of this crate.
//!
//! # References
//! Redis: [scripting](https://redis.io/docs/latest/develop/programmability/eval-intro/),
//! [WAIT](https://redis.io/docs/latest/commands/wait/).
//!
//! ```no_run
//! use resilience_core::idempotency::{IdempotencyStore, record::{Claim, Claimed, Takeover}};
//! use resilience_redis::Redis;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Redis::connect("redis://redis.internal:6379")?.idempotency();
//! let claim = Claim {
//!     owner: "instance-7-42".into(),
//!     fingerprint: "of the request".into(),
//!     lease_ms: 30_000,
//!     retention_ms: 86_400_000,
//!     takeover: Takeover::Ended,
//! };
//! if let Claimed::New(grant) = store.claim("orders", "key", &claim).await? {
//!     println!("ours to do, under fence {}", grant.fence);
//! }
//! # Ok(()) }
//! ```

mod steps;
mod wire;

use std::{fmt, time::Duration};

use bytes::Bytes;
use resilience_core::{
    InvalidConfig,
    fleet::{StoreHandle, Subscription},
    idempotency::{
        IdempotencyStore,
        record::{Claim, Claimed, Completion, Holder, RecordView, StoreResolution, WriteOutcome},
        store::{StoreError, StoreFuture, validate},
    },
};

use tokio::time::Instant;

use self::steps::{CHECKPOINT, CLAIM, COMPLETE, EXTEND, GET, RESOLVE, fence, is_granted};
use crate::{
    connection::{STEP, Status},
    error::CommandError,
    store::{Durable, StoreContext},
};

/// In keys.
const PATTERN: &str = "idempotency";

/// The idempotency records of one Redis and prefix. Made by [`Redis::idempotency`](crate::Redis::idempotency); cheap to clone.
#[derive(Clone)]
pub struct RedisIdempotency {
    context: StoreContext,
    durable: Option<Durable>,
}

impl RedisIdempotency {
    pub(crate) const fn new(context: StoreContext) -> Self {
        Self {
            context,
            durable: None,
        }
    }

    /// Waits until at least `replicas` replicas have each claim, checkpoint and completion, for at most `within` (Redis' WAIT).
    /// With fewer by then, the step fails as ambiguous: it was done on the master, and may be lost in a failover.
    /// Repeating it waits again.
    ///
    /// Guarantee: when the master fails alone, no acknowledged step is lost, if the replica that takes over is one of those
    /// that had it. Limits: Redis does not choose the replica by what a client waited for (Sentinel and Cluster prefer the most
    /// advanced one that they can reach), and replicas hold writes in memory. This is not consensus: a master that is cut off
    /// from its replicas acknowledges nothing, but one that was replaced already still answers replays, which do not
    /// wait.
    ///
    /// It uses a connection of its own (see [`ready`](Self::ready)), because WAIT holds up whatever comes behind it. The steps then go through one
    /// after the other: some thousand a second, with a replica nearby.
    ///
    /// # Errors
    /// If `replicas` is zero, or `within` below a millisecond or not below the connection's
    /// [budget](crate::RedisBuilder::budget).
    pub fn durable(mut self, replicas: u32, within: Duration) -> Result<Self, InvalidConfig> {
        self.durable = Some(Durable::new(&self.context, replicas, within)?);
        Ok(self)
    }

    /// Waits until the connection is up that this store uses, but no longer than `within`: when it is
    /// [durable](Self::durable), that is one of its own, which begins with it.
    ///
    /// # Errors
    /// The last status, when it is not up by then.
    pub async fn ready(&self, within: Duration) -> Result<(), Status> {
        match &self.durable {
            None => self.context.ready(within).await,
            Some(durable) => durable.connection.ready(within).await,
        }
    }

    /// The names of all handles of the last day, sorted. A handle enters its name when it is built, within a runtime, and about
    /// once an hour.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        self.context.names(PATTERN).await
    }
}

impl fmt::Debug for RedisIdempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let durable = self.durable.as_ref();
        f.debug_struct("RedisIdempotency")
            .field("context", &self.context)
            .field("replicas", &durable.map_or(0, |durable| durable.replicas))
            .finish()
    }
}

impl IdempotencyStore for RedisIdempotency {
    fn claim<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        claim: &'a Claim,
    ) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            validate::claim(claim)?;
            let at = self.key(name, key)?;
            let listens = self.context.is_subscribed(|| self.part(name, key, "news"));
            let asked = wire::claim(claim, listens);
            let clock = self.context.connection.clock();
            let (floor, sent) = (clock.floor(), Instant::now());
            let mut may_be_set_back = false;
            let read = |answer| {
                let now = clock.now();
                may_be_set_back = wire::is_done_after(&answer, now + STEP);
                wire::claimed(answer, claim, now)
            };
            let mut claimed = self.run(&CLAIM, &at, &[&asked], is_granted, read).await?;
            may_be_set_back |= matches!(claimed, Claimed::Done { .. }) && clock.is_stale();
            if may_be_set_back {
                self.end_in_time(&at).await;
            }
            if let Claimed::New(grant) = &claimed
                && grant.attempt == 1
            {
                // Of a key that was unknown, the first fence is the time.
                clock.shows(grant.fence);
                self.context.shown(sent, grant.fence);
            }
            if fence(&claimed).is_some_and(|fence| fence + STEP < floor) {
                claimed = self.raised(&at, claim, &asked, floor).await?;
            }
            if let Some(fence) = fence(&claimed) {
                clock.gave(fence);
            }
            Ok(claimed)
        })
    }

    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        Box::pin(async move {
            validate::holder(holder)?;
            validate::lease(lease_ms)?;
            let record = wire::record(holder, None, b"");
            // A renewal that a failover loses is a lease that ends: not waited for.
            self.step(&EXTEND, name, key, &record, lease_ms, false)
                .await
        })
    }

    fn checkpoint<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        checkpoint: &'a Bytes,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        Box::pin(async move {
            validate::holder(holder)?;
            validate::lease(lease_ms)?;
            validate::checkpoint(checkpoint.len())?;
            let record = wire::record(holder, None, checkpoint);
            self.step(&CHECKPOINT, name, key, &record, lease_ms, true)
                .await
        })
    }

    fn complete<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        completion: &'a Completion,
    ) -> StoreFuture<'a, WriteOutcome> {
        Box::pin(async move {
            validate::holder(holder)?;
            validate::completion(completion)?;
            let done = (self.context.connection.clock().now(), completion.ttl_ms);
            let record = wire::record(holder, Some(done), &completion.outcome);
            self.step(&COMPLETE, name, key, &record, completion.ttl_ms, true)
                .await
        })
    }

    fn release<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        Box::pin(self.rest(name, key, holder, 1))
    }

    fn unknown<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        Box::pin(self.rest(name, key, holder, 4))
    }

    fn resolve<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        fence: u64,
        resolution: &'a StoreResolution,
    ) -> StoreFuture<'a, WriteOutcome> {
        Box::pin(async move {
            validate::fence(fence)?;
            validate::resolution(resolution)?;
            let key = self.key(name, key)?;
            let (was_done, ttl_ms, outcome): (_, _, &[u8]) = match resolution {
                StoreResolution::Done(done) => (1, done.ttl_ms, &done.outcome),
                StoreResolution::Release => (0, 1, b""),
                other => {
                    let reason = format!("this store does not know {other:?}");
                    return Err(StoreError::new(reason, false));
                }
            };
            let (numbers, ttl) = (wire::packed([fence, was_done]), ttl_ms.to_string());
            let args: [&[u8]; 3] = [&numbers, ttl.as_bytes(), outcome];
            let lasts = |kept: &WriteOutcome| *kept == WriteOutcome::Kept;
            self.run(&RESOLVE, &key, &args, lasts, wire::kept).await
        })
    }

    fn get<'a>(&'a self, name: &'a str, key: &'a str) -> StoreFuture<'a, Option<RecordView>> {
        Box::pin(async move {
            let key = self.key(name, key)?;
            let answer = GET.run(&self.context.connection, &[&key], &[]).await;
            self.understood(answer, wire::view)
        })
    }

    fn subscribe(&self, name: &str, key: &str) -> Subscription<()> {
        let channel = self.part(name, key, "news");
        self.context.subscribe(&channel, |_| Some(()))
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
