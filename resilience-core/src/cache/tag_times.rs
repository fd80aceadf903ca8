//! When tags were last invalidated by this process.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use crate::sync::{Mutex, lock};

/// When tags were last invalidated by this process.
#[derive(Debug, Default)]
pub(super) struct TagTimes(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    by_tag: HashMap<Arc<str>, Instant>,
    /// Of all others, at the latest.
    others: Option<Instant>,
}

const MOST_TAGS: usize = 4096;

impl TagTimes {
    pub(super) fn note(&self, tag: &Arc<str>) {
        let mut times = lock(&self.0);
        let now = Instant::now();
        if times.by_tag.len() >= MOST_TAGS {
            times.by_tag.clear();
            times.others = Some(now);
        }
        times.by_tag.insert(Arc::clone(tag), now);
    }

    /// Whether the tag may have been invalidated at `then` or later.
    pub(super) fn changed_since(&self, tag: &str, then: Instant) -> bool {
        let times = lock(&self.0);
        let last = times.by_tag.get(tag).copied().max(times.others);
        last.is_some_and(|last| last >= then)
    }
}
