//! What a process does, or leaves undone, about single keys: refreshes in progress, pauses after failures, tombstones.

use std::{collections::HashMap, time::Duration};

use crate::{
    clock::Moment,
    sync::{Mutex, lock},
};

/// By the number of the key.
#[derive(Debug, Default)]
pub(super) struct Background {
    by_id: Mutex<HashMap<u64, InBackground>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct InBackground {
    refreshing: bool,
    /// Until when the key is not loaded again in the background, since a load failed.
    paused: Option<Moment>,
    /// Until when what is loaded is not cached, since the key was invalidated.
    tombstone: Option<Moment>,
}

impl InBackground {
    fn is_needed(&self, now: Moment) -> bool {
        let is_on = |until: Option<Moment>| until.is_some_and(|until| now < until);
        self.refreshing || is_on(self.paused) || is_on(self.tombstone)
    }
}

impl Background {
    /// Begins to refresh a key, unless that is in progress, or a load failed just now.
    pub(super) fn begin_refresh(&self, id: u64, now: Moment) -> bool {
        let mut by_id = lock(&self.by_id);
        let it = by_id.entry(id).or_default();
        let may = !it.refreshing && it.paused.is_none_or(|until| now >= until);
        it.refreshing |= may;
        may
    }

    pub(super) fn end_refresh(&self, id: u64, now: Moment) {
        let mut by_id = lock(&self.by_id);
        if let Some(it) = by_id.get_mut(&id) {
            it.refreshing = false;
            if !it.is_needed(now) {
                by_id.remove(&id);
            }
        }
    }

    /// Notes that a load failed, or that one succeeded (`None`).
    pub(super) fn pause(&self, id: u64, until: Option<Moment>, now: Moment) {
        if until.is_some() || lock(&self.by_id).contains_key(&id) {
            self.change(id, now, |it| it.paused = until);
        }
    }

    pub(super) fn is_paused(&self, id: u64, now: Moment) -> bool {
        let paused = lock(&self.by_id).get(&id).and_then(|it| it.paused);
        paused.is_some_and(|until| now < until)
    }

    /// Notes that a key was invalidated.
    pub(super) fn tombstone(&self, id: u64, time: Duration, now: Moment) {
        if !time.is_zero() {
            self.change(id, now, |it| it.tombstone = Some(now + time));
        }
    }

    pub(super) fn has_tombstone(&self, id: u64, now: Moment) -> bool {
        let tombstone = lock(&self.by_id).get(&id).and_then(|it| it.tombstone);
        tombstone.is_some_and(|until| now < until)
    }

    fn change(&self, id: u64, now: Moment, change: impl FnOnce(&mut InBackground)) {
        let mut by_id = lock(&self.by_id);
        if by_id.len() >= MOST {
            by_id.retain(|_, it| it.is_needed(now));
        }
        change(by_id.entry(id).or_default());
    }
}

/// Above this, those that are over are removed first.
const MOST: usize = 10_000;
