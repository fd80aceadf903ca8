//! What the instances of a cache say about themselves, for operators.

use std::{sync::LazyLock, time::Duration};

use redis::Value;

use super::{PATTERN, RedisCache};
use crate::{error::CommandError, keys, script::Script};

static REPORT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("report.lua")));
static REPORTS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("reports.lua")));

/// What one instance of a cache said last.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheReport {
    /// The instance.
    pub instance: String,
    /// Its [`CacheSnapshot`](resilience_core::cache::CacheSnapshot), in JSON.
    pub snapshot: String,
}

impl RedisCache {
    /// What the instances of the cache called `name` said about themselves within the last minute; of at most 100.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn reports(&self, name: &str) -> Result<Vec<CacheReport>, CommandError> {
        let [reports, ends] = self.report_keys(name);
        let keys = [&*reports, &*ends];
        let answer = REPORTS.run(&self.context.connection, &keys, &[]).await?;
        parse(&answer).ok_or_else(|| CommandError::Unexpected(format!("{answer:?}")))
    }

    pub(super) async fn note(
        &self,
        name: &str,
        instance: &str,
        snapshot: &str,
        ttl: Duration,
    ) -> Result<(), CommandError> {
        let [reports, ends] = self.report_keys(name);
        let ttl = ttl.as_millis().to_string();
        let args = [instance.as_bytes(), snapshot.as_bytes(), ttl.as_bytes()];
        let keys = [&*reports, &*ends];
        REPORT.run(&self.context.connection, &keys, &args).await?;
        Ok(())
    }

    fn report_keys(&self, name: &str) -> [String; 2] {
        let tag = keys::tag(&self.context.prefix, PATTERN, name);
        [format!("{tag}:reports"), format!("{tag}:reports:end")]
    }
}

fn parse(answer: &Value) -> Option<Vec<CacheReport>> {
    let Value::Array(items) = answer else {
        return None;
    };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    let pairs = items.chunks_exact(2).map(|pair| {
        Some(CacheReport {
            instance: text(&pair[0])?,
            snapshot: text(&pair[1])?,
        })
    });
    pairs.collect()
}
