//! Which names a process has entered in the lists of names.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How often a name is entered again.
const EVERY: Duration = Duration::from_secs(3600);

/// When this process last entered each name, by pattern. One for all stores that are made from a connection.
#[derive(Default)]
pub(crate) struct NameIndex(Mutex<HashMap<&'static str, HashMap<String, Instant>>>);

impl NameIndex {
    /// Those of `names` that were not entered within the last hour. They count as entered from now on.
    pub(crate) fn take_due<'a>(
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

    pub(crate) fn forget(&self, pattern: &'static str, names: &[String]) {
        if let Some(entered) = self.lock().get_mut(pattern) {
            entered.retain(|name, _| !names.contains(name));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, HashMap<String, Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
