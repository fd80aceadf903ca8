//! Lists of the names in use, one per pattern, for operators.
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:PATTERN}:names` | zset | name, last announced (ms) | 1 day |
//!
//! A process enters a name with the first background command about it, and once an hour after that: one command, beside
//! the calls. A name that no process has entered for a day is gone from the list.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::Value;
use tokio::{runtime::Handle, time::Instant};

use crate::{error::CommandError, keys, script::Script, store::StoreContext};

static NAMES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("names.lua")));

/// How often a name is entered again.
const EVERY: Duration = Duration::from_secs(3600);

/// When this process last entered each name, by pattern. One for all stores that are made from a connection.
#[derive(Default)]
pub(crate) struct NameIndex(Mutex<HashMap<&'static str, HashMap<String, Instant>>>);

impl NameIndex {
    /// Those of `names` that were not entered within the last hour. They count as entered from now on.
    fn take_due<'a>(
        &self,
        pattern: &'static str,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Vec<&'a str> {
        let mut all = self.lock();
        let entered = all.entry(pattern).or_default();
        let is_fresh = |last: &Instant| last.elapsed() < EVERY;
        let is_due = |name: &&str| !entered.get(*name).is_some_and(is_fresh);
        let due: Vec<&str> = names.into_iter().filter(is_due).collect();
        if !due.is_empty() {
            // Names come and go with the keys of a keyed breaker.
            entered.retain(|_, last| is_fresh(last));
            entered.extend(due.iter().map(|name| ((*name).to_owned(), Instant::now())));
        }
        due
    }

    fn forget(&self, pattern: &'static str, names: &[String]) {
        if let Some(entered) = self.lock().get_mut(pattern) {
            entered.retain(|name, _| !names.contains(name));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, HashMap<String, Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_due_at_first_and_once_an_hour_and_after_a_failure() {
        let index = NameIndex::default();
        let due = |names: &[&'static str]| index.take_due("breaker", names.iter().copied());
        assert_eq!(due(&["a", "b"]), ["a", "b"]);
        assert_eq!(due(&["a", "b", "c"]), ["c"]);
        assert_eq!(index.take_due("bulkhead", ["a"]), ["a"], "another list");
        index.forget("breaker", &["a".to_owned()]);
        assert_eq!(due(&["a", "b"]), ["a"]);
        tokio::time::advance(EVERY / 2).await;
        assert!(due(&["a", "b", "c"]).is_empty());
        tokio::time::advance(EVERY / 2).await;
        assert_eq!(due(&["a", "c"]), ["a", "c"]);
        assert_eq!(index.lock()["breaker"].len(), 2, "b is not in use");
    }
}
