//! Circuit breakers that a fleet shares through Redis.
//!
//! The steps and their meaning are [`Record`](resilience_core::breaker::fleet::BreakerRecord)'s; each is one script, one
//! round trip, on keys of one slot:
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:breaker:NAME}:state` | hash | epoch, state, since, until, trips, by, cause, probes, order; time of the record, lead, format | 1 day, 30 with an order |
//! | `{prefix:breaker:NAME}:window` | hash | `bucket:s`, `bucket:f`, `bucket:w`: successes, failures, slow calls | 2 windows |
//! | `{prefix:breaker:NAME}:live` | zset | instance, live until | live time + 2 windows |
//! | `{prefix:breaker:NAME}:failing` | zset | instance as it was named, failing until | the same |
//! | `{prefix:breaker:NAME}:sequence` | hash | instance, its last report | the same |
//! | `{prefix:breaker:NAME}:leases` | zset | probe lease, until | 2 lease times |
//! | `{prefix:breaker:NAME}:local` | hash | instance, `format:state:reported at:name`: its own state, a number; the name that it was given | as `:live` |
//! | `{prefix:breaker:NAME}:log` | stream | the last 100 changes: format, at, epoch, action, from, to, by, why, lasting (ms; -1: no end) | 7 days |
//! | `{prefix:breaker}:names` | zset | breaker, last announced | 1 day |
//!
//! Moments are in milliseconds of the record's own time ([`RecordClock`](resilience_core::fleet::RecordClock)): the server's, or
//! ahead of it after that was set back. Every new epoch is published, as the whole view, on the channel
//! `{prefix:breaker:NAME}:verdict`.

mod scripts;
mod wire;

use std::{fmt, sync::Arc};

use futures_util::future::join_all;
use redis::Value;
use resilience_core::{
    breaker::fleet::{
        BreakerLogEntry, BreakerMembers, BreakerStore, BreakerView, Change, FleetOverride,
        LeaseAnswer, MOST_MEMBERS, Report,
    },
    fleet::{StoreError, StoreFuture, StoreHandle, Subscription},
};

use self::scripts::{
    CHANGE, LEASE, MEMBERS, ORDER, PROBE, READ_LOG, REPORT, REPORT_MANY, RESET, RESTORE, SETTLE,
    VIEW,
};
use crate::{error::CommandError, keys, script::Script, store::StoreContext};

/// In keys.
const PATTERN: &str = "breaker";

const PARTS: [&str; 8] = [
    "state", "window", "live", "failing", "sequence", "leases", "local", "log",
];
/// How many of them a report is about.
const REPORTED: usize = 7;

/// The shared breakers of one Redis and prefix. Made by [`Redis::breakers`](crate::Redis::breakers); cheap to clone.
#[derive(Clone)]
pub struct RedisBreakers {
    context: StoreContext,
}

impl RedisBreakers {
    pub(crate) const fn new(context: StoreContext) -> Self {
        Self { context }
    }

    /// The names of all breakers that reported within the last day, sorted.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        self.context.names(PATTERN).await
    }

    /// Merges the reports of several breakers in one script, on one server.
    async fn report_many(
        &self,
        reports: &[(Arc<str>, Report)],
    ) -> Result<Vec<Result<BreakerView, StoreError>>, StoreError> {
        let (mut keys, mut args) = (Vec::new(), Vec::new());
        for (name, report) in reports {
            let tag = self.tag(name);
            keys.extend(PARTS[..REPORTED].iter().map(|part| format!("{tag}:{part}")));
            args.push(channel(&tag).into_bytes());
            args.extend(wire::report(report));
        }
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let args: Vec<_> = args.iter().map(Vec::as_slice).collect();
        let answer = REPORT_MANY.run(&self.context.connection, &keys, &args);
        let Value::Array(answers) = answer.await? else {
            return Err(StoreError::new("the answer is no list", true));
        };
        Ok(answers
            .iter()
            .map(|answer| match answer {
                Value::Array(items) => Ok(wire::answer(items)?.1),
                Value::BulkString(error) => {
                    Err(StoreError::new(String::from_utf8_lossy(error), true))
                }
                other => Err(CommandError::Unexpected(format!("{other:?}")).into()),
            })
            .collect())
    }

    fn tag(&self, name: &str) -> String {
        keys::tag(&self.context.prefix, PATTERN, name)
    }

    /// Runs a step on breaker `name`.
    async fn run(
        &self,
        script: &Script,
        name: &str,
        args: &[&[u8]],
    ) -> Result<(bool, BreakerView), StoreError> {
        let items = self.run_for_list(script, name, args).await?;
        Ok(wire::answer(&items)?)
    }

    /// Runs a script on the keys of breaker `name`. The first argument of every script is the channel.
    async fn run_for_list(
        &self,
        script: &Script,
        name: &str,
        args: &[&[u8]],
    ) -> Result<Vec<Value>, CommandError> {
        let tag = self.tag(name);
        let keys = PARTS.map(|part| format!("{tag}:{part}"));
        let channel = channel(&tag);
        let mut all = vec![channel.as_bytes()];
        all.extend_from_slice(args);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        match script.run(&self.context.connection, &keys, &all).await? {
            Value::Array(items) => Ok(items),
            other => Err(CommandError::Unexpected(format!("{other:?}"))),
        }
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
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl BreakerStore for RedisBreakers {
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView> {
        Box::pin(async move {
            let args = wire::report(report);
            let args: Vec<_> = args.iter().map(Vec::as_slice).collect();
            let view = self.run_for_view(&REPORT, name, &args).await?;
            self.context.announce_due(PATTERN, [name]);
            Ok(view)
        })
    }

    fn report_all<'a>(
        &'a self,
        reports: &'a [(Arc<str>, Report)],
    ) -> StoreFuture<'a, Vec<Result<BreakerView, StoreError>>> {
        Box::pin(async move {
            let results = if self.context.connection.is_cluster() {
                // The keys of each breaker are in a slot of their own. What is sent at once is pipelined per node.
                let each = reports.iter().map(|(name, report)| async move {
                    let args = wire::report(report);
                    let args: Vec<_> = args.iter().map(Vec::as_slice).collect();
                    self.run_for_view(&REPORT, name, &args).await
                });
                join_all(each).await
            } else {
                self.report_many(reports).await?
            };
            let names = reports.iter().map(|(name, _)| &**name);
            self.context.announce_due(PATTERN, names);
            Ok(results)
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

    fn members<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerMembers> {
        Box::pin(async move {
            let most = MOST_MEMBERS.to_string();
            let args = [most.as_bytes()];
            let items = self.run_for_list(&MEMBERS, name, &args).await?;
            Ok(wire::members(&items)?)
        })
    }

    fn log<'a>(&'a self, name: &'a str, count: usize) -> StoreFuture<'a, Vec<BreakerLogEntry>> {
        Box::pin(async move {
            let count = count.to_string();
            let args = [count.as_bytes()];
            let items = self.run_for_list(&READ_LOG, name, &args).await?;
            Ok(wire::log(&items)?)
        })
    }

    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        // Replicas, and masters that miss replicas, can be read but not written.
        Box::pin(async move { self.run(&PROBE, name, &[]).await.map(drop) })
    }

    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        let channel = channel(&self.tag(name));
        self.context
            .subscribe(&channel, |message| wire::pushed(message).map(Arc::new))
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.context.handle)
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
