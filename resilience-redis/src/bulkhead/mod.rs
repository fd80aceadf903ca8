//! Redis store of the bulkheads of a fleet.
//!
//! The steps are those of
//! [`BulkheadRecord`](resilience_core::bulkhead::fleet::BulkheadRecord); each is one script, one
//! round trip, on keys of one slot:
//!
//! | key | type | content | TTL |
//! |---|---|---|---|
//! | `{prefix:bulkhead:NAME}:state` | hash | creation time, newest fencing token, permits held; time of the record, lead, format | 1 to 2 leases |
//! | `{prefix:bulkhead:NAME}:leases` | zset | lease, end | 1 to 2 leases |
//! | `{prefix:bulkhead:NAME}:held` | hash | lease, `permits:fence` | 1 to 2 leases |
//! | `{prefix:bulkhead:NAME}:queue` | zset | request, number in order of arrival | 1 to 2 positions |
//! | `{prefix:bulkhead:NAME}:tickets` | hash | request, `permits:limit:until` | 1 to 2 positions |
//! | `{prefix:bulkhead:NAME}:live` | zset | instance, live until | 2 to 4 leases |
//! | `{prefix:bulkhead}:names` | zset | bulkhead, last announced (ms) | 1 day |
//!
//! Moments are in microseconds of the record's own time
//! ([`RecordClock`](resilience_core::fleet::RecordClock)): the server's, or ahead of it after that was set back. The wakeups of a step are published, as a JSON list
//! of leases whose last item is the format (`#1`), on the channel `{prefix:bulkhead:NAME}:up`.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use redis::Value;
use resilience_core::bulkhead::fleet::{
    AcquireRequest, Admission, BulkheadStore, BulkheadView, Heartbeat, Release, StoreError,
    StoreFuture, Wakeups,
};
use resilience_core::fleet::StoreHandle;
use tokio::time::Instant;

use crate::{error::CommandError, keys, script::Script, store::StoreContext};

macro_rules! script {
    ($id:ident, $file:literal) => {
        static $id: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(
                include_str!("../shown.lua"),
                include_str!("../record_time.lua"),
                include_str!("../floor.lua"),
                include_str!("call_up.lua"),
                include_str!("common.lua"),
                "\n",
                include_str!($file)
            ))
        });
    };
}

script!(ACQUIRE, "acquire.lua");
script!(RENEW, "renew.lua");
script!(RELEASE, "release.lua");
script!(VIEW, "view.lua");

/// In keys.
const PATTERN: &str = "bulkhead";

const PARTS: [&str; 6] = ["state", "leases", "held", "queue", "tickets", "live"];

/// Store of the bulkheads of one Redis and prefix. Created by [`Redis::bulkheads`](crate::Redis::bulkheads); cheap to clone.
#[derive(Clone)]
pub struct RedisBulkheads {
    context: StoreContext,
}

impl RedisBulkheads {
    pub(crate) const fn new(context: StoreContext) -> Self {
        Self { context }
    }

    /// The names of all bulkheads of the last day, sorted. An instance enters the names of its bulkheads when it renews their
    /// leases, once an hour.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        self.context.names(PATTERN).await
    }

    /// Runs a script on the keys of bulkhead `name`. The first argument of every script is the channel, the last one the
    /// floor of fences.
    async fn run<T>(
        &self,
        script: &Script,
        name: &str,
        args: &[&[u8]],
        read: impl FnOnce(&[Value]) -> Option<T>,
    ) -> Result<T, StoreError> {
        let tag = keys::tag(&self.context.prefix, PATTERN, name);
        let keys = PARTS.map(|part| format!("{tag}:{part}"));
        let keys = keys.each_ref().map(String::as_str);
        let channel = channel(&tag);
        let floor = self.context.connection.clock().floor().to_string();
        let mut all = vec![channel.as_bytes()];
        all.extend_from_slice(args);
        all.push(floor.as_bytes());
        let answer = script.run(&self.context.connection, &keys, &all).await;
        let answer = answer.and_then(|answer| {
            let Value::Array(items) = &answer else {
                return Err(CommandError::Unexpected(format!("{answer:?}")));
            };
            read(items).ok_or_else(|| CommandError::Unexpected(format!("{answer:?}")))
        });
        answer.map_err(StoreError::from)
    }
}

impl fmt::Debug for RedisBulkheads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBulkheads")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl BulkheadStore for RedisBulkheads {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        request: &'a AcquireRequest,
    ) -> StoreFuture<'a, Admission> {
        Box::pin(async move {
            let numbers = [
                request.cost,
                request.limit,
                request.lease_ms,
                request.ticket_ms,
            ]
            .map(|number| number.to_string());
            let [cost, limit, lease_ms, ticket_ms] = numbers.each_ref().map(String::as_bytes);
            let fences = fences(&request.releases);
            let mut args = vec![request.lease.as_bytes(), cost, limit, lease_ms, ticket_ms];
            args.extend(pairs(&request.releases, &fences));
            let admission = self.run(&ACQUIRE, name, &args, admission).await?;
            if let Admission::Granted { fence } = admission {
                self.context.connection.clock().gave(fence);
            }
            Ok(admission)
        })
    }

    fn renew<'a>(
        &'a self,
        name: &'a str,
        heartbeat: &'a Heartbeat,
    ) -> StoreFuture<'a, (Vec<bool>, BulkheadView)> {
        Box::pin(async move {
            let times = [heartbeat.live_ms, heartbeat.lease_ms].map(|ms| ms.to_string());
            let numbers: Vec<(String, String)> = heartbeat
                .holdings
                .iter()
                .map(|held| (held.cost.to_string(), held.fence.to_string()))
                .collect();
            let mut args = vec![heartbeat.instance.as_bytes()];
            args.extend(times.iter().map(String::as_bytes));
            for (held, (cost, fence)) in heartbeat.holdings.iter().zip(&numbers) {
                args.extend([held.lease.as_bytes(), cost.as_bytes(), fence.as_bytes()]);
            }
            let read = |items: &[Value]| {
                let (shown, items) = items.split_first()?;
                let (view, kept) = items.split_at_checked(VIEWED)?;
                let flags = flags(kept, heartbeat.holdings.len())?;
                Some((number(shown)?, (flags, viewed(view)?)))
            };
            let sent = Instant::now();
            let (shown, renewed) = self.run(&RENEW, name, &args, read).await?;
            self.context.shown(sent, shown);
            self.context.announce_due(PATTERN, [name]);
            Ok(renewed)
        })
    }

    fn release<'a>(&'a self, name: &'a str, releases: &'a [Release]) -> StoreFuture<'a, Vec<bool>> {
        Box::pin(async move {
            let fences = fences(releases);
            let args: Vec<&[u8]> = pairs(releases, &fences).collect();
            self.run(&RELEASE, name, &args, |items| flags(items, releases.len()))
                .await
        })
    }

    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BulkheadView> {
        Box::pin(self.run(&VIEW, name, &[], viewed))
    }

    fn subscribe(&self, name: &str) -> Wakeups {
        let channel = channel(&keys::tag(&self.context.prefix, PATTERN, name));
        self.context.subscribe(&channel, woken)
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.context.handle)
    }
}

/// The fencing tokens as the scripts take them; empty for none.
fn fences(releases: &[Release]) -> Vec<String> {
    let fence = |what: &Release| what.fence.map(|fence| fence.to_string());
    releases
        .iter()
        .map(|what| fence(what).unwrap_or_default())
        .collect()
}

fn pairs<'a>(releases: &'a [Release], fences: &'a [String]) -> impl Iterator<Item = &'a [u8]> {
    let both = releases.iter().zip(fences);
    both.flat_map(|(what, fence)| [what.lease.as_bytes(), fence.as_bytes()])
}

fn channel(tag: &str) -> String {
    format!("{tag}:up")
}

/// The format of messages that this version knows.
const FORMAT: &str = "1";

/// The leases that a message wakes; `None` for a foreign message, or one of a later format: those who wait ask again. Without
/// a format it is of the version before the first one.
fn woken(message: &[u8]) -> Option<Arc<[Arc<str>]>> {
    let mut leases: Vec<String> = serde_json::from_slice(message).ok()?;
    if let Some(format) = leases.last().and_then(|last| last.strip_prefix('#')) {
        if format != FORMAT {
            return None;
        }
        leases.pop();
    }
    Some(leases.into_iter().map(Arc::from).collect())
}

fn number(item: &Value) -> Option<u64> {
    match item {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    }
}

fn admission(items: &[Value]) -> Option<Admission> {
    let [Value::Int(outcome), fence, again] = items else {
        return None;
    };
    Some(match outcome {
        1 => Admission::Granted {
            fence: number(fence)?,
        },
        0 => Admission::Full {
            again_ms: number(again)?,
        },
        -1 => Admission::Impossible,
        _ => return None,
    })
}

fn flags(items: &[Value], count: usize) -> Option<Vec<bool>> {
    if items.len() != count {
        return None;
    }
    items
        .iter()
        .map(|item| number(item).map(|flag| flag == 1))
        .collect()
}

/// Number of items of a view.
const VIEWED: usize = 5;

fn viewed(items: &[Value]) -> Option<BulkheadView> {
    let [in_flight, leases, waiting, live, fence] = items else {
        return None;
    };
    let mut view = BulkheadView::default();
    for (field, item) in [
        (&mut view.in_flight, in_flight),
        (&mut view.leases, leases),
        (&mut view.waiting, waiting),
        (&mut view.live, live),
        (&mut view.fence, fence),
    ] {
        *field = number(item)?;
    }
    Some(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_version_before_is_understood_and_one_of_a_later_format_is_not() {
        let woken = |message: &str| woken(message.as_bytes()).map(|leases| leases.to_vec());
        let leases = |leases: &[&str]| Some(leases.iter().map(|lease| Arc::from(*lease)).collect());
        assert_eq!(woken(r##"["a","b","#1"]"##), leases(&["a", "b"]));
        assert_eq!(woken(r#"["a","b"]"#), leases(&["a", "b"]));
        assert_eq!(woken(r##"["a","#2"]"##), None);
        assert_eq!(woken(r#"{"leases":["a"]}"#), None);
    }
}
