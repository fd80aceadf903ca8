//! Changes of the last seconds, which are repeated when the connection to the store was lost: a store that replicates after it
//! has answered may have lost them in a failover, and its successor would serve the value from before.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::pending::Changed;
use crate::sync::{Mutex, lock};

/// How long a change is remembered: longer than it takes to notice that a master is gone.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Changes that are remembered.
const MOST: usize = 1_024;

/// The latest changes, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<(Instant, Changed)>>);

impl Recent {
    pub(super) fn note(&self, changed: Changed) {
        let mut recent = lock(&self.0);
        if recent.len() == MOST {
            recent.pop_front();
        }
        recent.push_back((Instant::now(), changed));
    }

    pub(super) fn take(&self) -> Vec<Changed> {
        let mut recent = lock(&self.0);
        let is_recent = |at: &Instant| at.elapsed() < REMEMBERED;
        let taken = recent.drain(..).filter(|(at, _)| is_recent(at));
        taken.map(|(_, changed)| changed).collect()
    }
}
