//! The ledger of a region, for limits that are divided between regions.
//!
//! The arithmetic is [`resilience_core::limit::regions`]'; here a ledger is one line of text with a version. Reading it
//! and writing it are one script each, on keys of one slot:
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:region:GROUP}:ledger` | hash | version; what is lent and borrowed, a line of text that begins with its format; time of the record, lead | 100 terms |
//! | `{prefix:region:GROUP}:demand` | hash | instance, `demand:until`: what it would use, in millionths of the whole | 5 intervals |
//!
//! Moments are in microseconds of the record's own time ([`RecordClock`](resilience_core::fleet::RecordClock)): the server's, or
//! ahead of it after that was set back. Each region has a Redis of its own; the regions reach each other's with
//! a connection of their own across.

use std::{fmt, sync::LazyLock};

use redis::Value;
use resilience_core::fleet::StoreHandle;
use resilience_core::limit::regions::{Ledger, LedgerView, RegionStore, Swap};
use resilience_core::limit::store::{StoreError, StoreFuture};

use crate::{error::CommandError, keys, script::Script, store::StoreContext};

macro_rules! script {
    ($id:ident, $file:literal) => {
        static $id: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(
                include_str!("../shown.lua"),
                include_str!("../record_time.lua"),
                include_str!("ledger.lua"),
                include_str!($file)
            ))
        });
    };
}

script!(READ, "read.lua");
script!(SWAP, "swap.lua");

/// The ledgers of the region that this Redis is in. Made by [`Redis::regions`](crate::Redis::regions); cheap to clone.
#[derive(Clone)]
pub struct RedisRegion {
    context: StoreContext,
}

impl RedisRegion {
    pub(crate) const fn new(context: StoreContext) -> Self {
        Self { context }
    }

    async fn run<T>(
        &self,
        script: &Script,
        group: &str,
        args: &[&[u8]],
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let tag = keys::tag(&self.context.prefix, "region", group);
        let keys = ["ledger", "demand"].map(|part| format!("{tag}:{part}"));
        let keys = keys.each_ref().map(String::as_str);
        let answer = script.run(&self.context.connection, &keys, args).await;
        let answer = answer.and_then(|answer| {
            read(&answer).ok_or_else(|| CommandError::Unexpected(format!("{answer:?}")))
        });
        answer.map_err(StoreError::from)
    }
}

impl fmt::Debug for RedisRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRegion")
            .field("context", &self.context)
            .finish()
    }
}

impl RegionStore for RedisRegion {
    fn report<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        demand: u64,
        ttl_ms: u64,
    ) -> StoreFuture<'a, LedgerView> {
        Box::pin(async move {
            let numbers = [demand, ttl_ms].map(|number| number.to_string());
            let [demand, ttl_ms] = numbers.each_ref().map(String::as_bytes);
            let args = [instance.as_bytes(), demand, ttl_ms];
            self.run(&READ, name, &args, view).await
        })
    }

    fn read<'a>(&'a self, name: &'a str) -> StoreFuture<'a, LedgerView> {
        Box::pin(self.run(&READ, name, &[], view))
    }

    fn swap<'a>(&'a self, name: &'a str, swap: &'a Swap, ttl_ms: u64) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let numbers = [swap.expected, swap.not_after, ttl_ms].map(|number| number.to_string());
            let [expected, not_after, ttl_ms] = numbers.each_ref().map(String::as_bytes);
            let text = swap.ledger.to_string();
            let args = [expected, not_after, text.as_bytes(), ttl_ms];
            let written = |answer: &Value| match answer {
                Value::Int(flag) => Some(*flag == 1),
                _ => None,
            };
            self.run(&SWAP, name, &args, written).await
        })
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.context.handle)
    }
}

fn view(answer: &Value) -> Option<LedgerView> {
    let Value::Array(items) = answer else {
        return None;
    };
    let word = |item: &Value| match item {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        _ => None,
    };
    let words: Vec<String> = items.iter().map(word).collect::<Option<_>>()?;
    let [now, version, text, demand] = &words[..] else {
        return None;
    };
    let ledger: Ledger = if text.is_empty() {
        Ledger::default()
    } else {
        text.parse().ok()?
    };
    let number = |word: &String| word.parse().ok();
    Some(LedgerView::new(
        number(now)?,
        number(version)?,
        ledger,
        number(demand)?,
    ))
}
