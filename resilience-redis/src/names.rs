//! Lists of the names in use, one per pattern, for operators.
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:PATTERN}:names` | zset | name, last announced (ms) | 1 day |
//!
//! A process enters a name with the first background command about it, and once an hour after that: one command, beside
//! the calls. A name that no process has entered for a day is gone from the list.

use std::sync::LazyLock;

use redis::Value;
use tokio::runtime::Handle;

use crate::{error::CommandError, keys, script::Script, store::StoreContext};

static NAMES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("names.lua")));

impl StoreContext {
    /// The names of `pattern` that were entered within the last day, sorted.
    pub(crate) async fn names(&self, pattern: &'static str) -> Result<Vec<String>, CommandError> {
        let Value::Array(items) = self.enter(pattern, &[]).await? else {
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

    /// Enters those of `names` that were not entered within the last hour, in the background: no step waits for it. After a
    /// failure they are due again.
    pub(crate) fn announce_due<'a>(
        &self,
        pattern: &'static str,
        names: impl IntoIterator<Item = &'a str>,
    ) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let due = self.index.take_due(pattern, names);
        if due.is_empty() {
            return;
        }
        let (context, due) = (self.clone(), due.into_iter().map(str::to_owned));
        let due: Vec<String> = due.collect();
        drop(runtime.spawn(async move {
            let names: Vec<&str> = due.iter().map(String::as_str).collect();
            if context.enter(pattern, &names).await.is_err() {
                context.index.forget(pattern, &due);
            }
        }));
    }

    /// Enters `names`, or returns the list if there are none.
    pub(crate) async fn enter(
        &self,
        pattern: &'static str,
        names: &[&str],
    ) -> Result<Value, CommandError> {
        let key = format!("{}:names", keys::family(&self.prefix, pattern));
        let args: Vec<_> = names.iter().map(|name| name.as_bytes()).collect();
        NAMES.run(&self.connection, &[&key], &args).await
    }
}
