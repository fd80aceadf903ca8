//! Circuit breakers that a fleet shares through Redis.
//!
//! The steps and their meaning are [`Record`](resilience_core::breaker::fleet::BreakerRecord)'s; each is one script, one
//! round trip, on keys of one slot:
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:breaker:NAME}:state` | hash | epoch, state, since, until, trips, by, cause, probes, order | 1 day, 30 with an order |
//! | `{prefix:breaker:NAME}:window` | hash | `bucket:s`, `bucket:f`, `bucket:w`: successes, failures, slow calls | 2 windows |
//! | `{prefix:breaker:NAME}:live` | zset | instance, live until | live time + 2 windows |
//! | `{prefix:breaker:NAME}:failing` | zset | instance as it was named, failing until | the same |
//! | `{prefix:breaker:NAME}:sequence` | hash | instance, its last report | the same |
//! | `{prefix:breaker:NAME}:leases` | zset | probe lease, until | 2 lease times |
//!
//! | `{prefix:breaker}:names` | zset | breaker, last announced | 1 day |
//!
//! All times are the server's, in milliseconds. Every new epoch is published, as the whole view, on the channel
//! `{prefix:breaker:NAME}:verdict`.

mod wire;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use redis::Value;
use resilience_core::{
    breaker::fleet::{BreakerStore, BreakerView, Change, FleetOverride, LeaseAnswer, Report},
    fleet::{Pushed, StoreError, StoreFuture, Subscription},
};
use tokio::time::Instant;

use crate::{
    connection, error::CommandError, keys, pubsub::Subscriptions, redis::Redis, script::Script,
};

macro_rules! script {
    ($id:ident, $file:literal) => {
        static $id: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(
                include_str!("common.lua"),
                "\n",
                include_str!($file)
            ))
        });
    };
}

script!(REPORT, "report.lua");
script!(CHANGE, "change.lua");
script!(RESTORE, "restore.lua");
script!(LEASE, "lease.lua");
script!(SETTLE, "settle.lua");
script!(ORDER, "override.lua");
script!(RESET, "reset.lua");
script!(VIEW, "view.lua");
static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("announce.lua")));

/// How often a name is entered in the list of names again.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(3600);

const PARTS: [&str; 6] = ["state", "window", "live", "failing", "sequence", "leases"];

/// The shared breakers of one Redis and prefix. Made by [`Redis::breakers`]; cheap to clone.
#[derive(Clone)]
pub struct RedisBreakers {
    redis: Redis,
    prefix: Arc<str>,
    known: Arc<BreakerIndex>,
}

/// What this process knows of its breakers: one for all stores that are made from a connection, so that each channel
/// has one subscriber, and loses it when nobody listens any more.
#[derive(Default)]
pub(crate) struct BreakerIndex {
    /// The verdicts that somebody here listens to.
    pushes: Subscriptions<Pushed<Arc<BreakerView>>>,
    /// When each name was last entered in the list of names.
    announced: Mutex<HashMap<String, Instant>>,
}

impl RedisBreakers {
    pub(crate) const fn new(redis: Redis, prefix: Arc<str>, known: Arc<BreakerIndex>) -> Self {
        Self {
            redis,
            prefix,
            known,
        }
    }

    /// The names of all breakers that reported within the last day, sorted.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        let Value::Array(items) = self.announce("").await? else {
            return Ok(Vec::new());
        };
        let text = |item: &Value| match item {
            Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        };
        let mut names: Vec<String> = items.iter().filter_map(text).collect();
        names.sort();
        Ok(names)
    }

    async fn announce(&self, name: &str) -> Result<Value, CommandError> {
        let key = format!("{}:names", keys::family(&self.prefix, "breaker"));
        ANNOUNCE
            .run(self.redis.connection(), &[&key], &[name.as_bytes()])
            .await
    }

    /// Enters `name` in the list of names, now and then. A list that lacks a name is no reason to fail.
    async fn announce_if_due(&self, name: &str) {
        let due = {
            let announced = self
                .known
                .announced
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            announced
                .get(name)
                .is_none_or(|last| last.elapsed() >= ANNOUNCE_EVERY)
        };
        if due && self.announce(name).await.is_ok() {
            let mut announced = self
                .known
                .announced
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // Names come and go with the keys of a keyed breaker.
            announced.retain(|_, last| last.elapsed() < ANNOUNCE_EVERY);
            announced.insert(name.to_owned(), Instant::now());
        }
    }

    /// Runs a script on the keys of breaker `name`. The first argument of every script is the channel.
    async fn run(
        &self,
        script: &Script,
        name: &str,
        args: &[&[u8]],
    ) -> Result<(bool, BreakerView), StoreError> {
        let tag = keys::tag(&self.prefix, "breaker", name);
        let keys = PARTS.map(|part| format!("{tag}:{part}"));
        let channel = channel(&tag);
        let mut all = vec![channel.as_bytes()];
        all.extend_from_slice(args);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let answer = script
            .run(self.redis.connection(), &keys, &all)
            .await
            .and_then(|value| match value {
                Value::Array(items) => wire::answer(&items),
                other => Err(CommandError::Unexpected(format!("{other:?}"))),
            });
        answer.map_err(|error| StoreError::new(error.to_string(), error.is_ambiguous()))
    }

    async fn run_for_view(
        &self,
        script: &Script,
        name: &str,
        args: &[&[u8]],
    ) -> Result<BreakerView, StoreError> {
        Ok(self.run(script, name, args).await?.1)
    }
}

impl fmt::Debug for RedisBreakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBreakers")
            .field("redis", &self.redis)
            .field("prefix", &self.prefix)
            .finish()
    }
}

impl BreakerStore for RedisBreakers {
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView> {
        Box::pin(async move {
            let numbers = [
                report.sequence,
                report.epoch,
                report.counts.success,
                report.counts.failure,
                report.counts.slow,
                u64::from(report.failing),
                report.bucket_ms,
                report.live_ms,
            ]
            .map(|number| number.to_string());
            let mut args = vec![report.instance.as_bytes()];
            args.extend(numbers.iter().map(String::as_bytes));
            args.push(report.voter.as_bytes());
            let view = self.run_for_view(&REPORT, name, &args).await?;
            self.announce_if_due(name).await;
            Ok(view)
        })
    }

    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        Box::pin(async move {
            let (state, stage) = wire::state_words(change.to);
            let numbers = [
                change.expected,
                stage,
                change.lasting_ms,
                change.trips.into(),
            ]
            .map(|number| number.to_string());
            let [expected, stage, lasting, trips] = numbers.each_ref().map(String::as_bytes);
            let args = [
                expected,
                state.as_bytes(),
                stage,
                lasting,
                trips,
                change.by.as_bytes(),
                change.cause.as_bytes(),
            ];
            self.run(&CHANGE, name, &args).await
        })
    }

    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        Box::pin(async move {
            let (state, stage) = wire::state_words(known.state);
            let numbers = [
                known.epoch,
                stage,
                known.remaining_ms,
                known.age_ms,
                known.trips.into(),
            ]
            .map(|number| number.to_string());
            let [epoch, stage, remaining, age, trips] = numbers.each_ref().map(String::as_bytes);
            let active_override = wire::OverrideWords::of(known.active_override.as_ref());
            let left = active_override.expires();
            let args = [
                epoch,
                state.as_bytes(),
                stage,
                remaining,
                age,
                trips,
                known.by.as_bytes(),
                known.cause.as_bytes(),
                active_override.kind.as_bytes(),
                active_override.reason.as_bytes(),
                active_override.by.as_bytes(),
                left.as_bytes(),
            ];
            self.run(&RESTORE, name, &args).await
        })
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)> {
        Box::pin(async move {
            let (budget, lease_ms) = (budget.to_string(), lease_ms.to_string());
            let args = [lease.as_bytes(), budget.as_bytes(), lease_ms.as_bytes()];
            let (granted, view) = self.run(&LEASE, name, &args).await?;
            let answer = if granted {
                LeaseAnswer::Granted { epoch: view.epoch }
            } else {
                LeaseAnswer::Denied
            };
            Ok((answer, view))
        })
    }

    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        Box::pin(async move {
            let epoch = epoch.to_string();
            let outcome = match success {
                Some(true) => "success",
                Some(false) => "failure",
                None => "none",
            };
            self.run(
                &SETTLE,
                name,
                &[lease.as_bytes(), epoch.as_bytes(), outcome.as_bytes()],
            )
            .await
        })
    }

    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        Box::pin(async move {
            let words = wire::OverrideWords::of(active_override.as_ref());
            let expires = words.expires();
            let args = [
                words.kind.as_bytes(),
                words.reason.as_bytes(),
                by.as_bytes(),
                expires.as_bytes(),
            ];
            self.run_for_view(&ORDER, name, &args).await
        })
    }

    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        Box::pin(self.run_for_view_owned(&RESET, name, [by.as_bytes(), cause.as_bytes()]))
    }

    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView> {
        Box::pin(self.run_for_view_owned(&VIEW, name, []))
    }

    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        let channel = channel(&keys::tag(&self.prefix, "breaker", name));
        let pushes = &self.known.pushes;
        Subscription::new(pushes.subscribe(self.redis.connection(), &channel, Pushed::None, hear))
    }
}

impl RedisBreakers {
    async fn run_for_view_owned<'a, const N: usize>(
        &'a self,
        script: &'static Script,
        name: &'a str,
        args: [&'a [u8]; N],
    ) -> Result<BreakerView, StoreError> {
        self.run_for_view(script, name, &args).await
    }
}

fn channel(tag: &str) -> String {
    format!("{tag}:verdict")
}

/// On the connection's task: decode and pass on.
fn hear(push: connection::Push<'_>) -> Pushed<Arc<BreakerView>> {
    match push {
        connection::Push::Restored => Pushed::Missed,
        connection::Push::Message(message) => match wire::pushed(message) {
            Some(view) => Pushed::Value(Arc::new(view)),
            // Somebody else's message, or another version's: ask.
            None => Pushed::Missed,
        },
    }
}
