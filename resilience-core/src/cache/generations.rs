//! The generations of tags, as this process knows them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    coherence::{Coherence, Ticket, Validity},
    record::Generation,
    store::StoreError,
};
use crate::sync::{Mutex, lock};

/// The generation of a tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) number: u64,
    /// When the tag was last invalidated, at the latest.
    pub(super) invalidated: Option<Instant>,
    pub(super) ticket: Ticket,
}

impl Known {
    /// Whether a value whose load took `load` may be stored with it: the tag was not invalidated since, nor within `lag`
    /// before.
    pub(super) fn is_older_than(&self, load: Duration, lag: Duration) -> bool {
        let least = load + lag + SLACK;
        self.invalidated.is_none_or(|then| then.elapsed() >= least)
    }
}

/// Between the clocks of the store and this process.
const SLACK: Duration = Duration::from_millis(50);
/// Number of tags that are remembered.
const MOST: usize = 4096;

/// Remembered while the store reports changes.
#[derive(Debug, Default)]
pub(super) struct Generations(Mutex<HashMap<Arc<str>, Known>>);

impl Generations {
    /// The generations of `tags` as they are now: remembered ones, and those that `ask` returns.
    pub(super) async fn current(
        &self,
        tags: &[&str],
        coherence: &Coherence,
        id: impl Fn(&str) -> u64,
        ask: impl AsyncFnOnce(&[&str]) -> Result<Vec<Generation>, StoreError>,
    ) -> Result<Vec<Known>, StoreError> {
        let mut known: Vec<Option<Known>> = {
            let remembered = lock(&self.0);
            let valid = |tag: &&str| {
                let known = remembered.get(*tag).copied();
                known.filter(|known| coherence.check(&known.ticket) == Validity::Valid)
            };
            tags.iter().map(valid).collect()
        };
        let missing: Vec<&str> = tags
            .iter()
            .zip(&known)
            .filter_map(|(tag, known)| known.is_none().then_some(*tag))
            .collect();
        if !missing.is_empty() {
            let tickets: Vec<Ticket> = missing
                .iter()
                .map(|tag| coherence.ticket(id(tag)))
                .collect();
            let answer = ask(&missing).await?;
            let now = Instant::now();
            let mut learned = tickets.into_iter().zip(answer).map(|(ticket, it)| Known {
                number: it.number,
                invalidated: it
                    .invalidated_ms
                    .and_then(|ms| now.checked_sub(Duration::from_millis(ms))),
                ticket,
            });
            for place in known.iter_mut().filter(|known| known.is_none()) {
                *place = learned.next();
            }
            self.remember(tags, &known);
        }
        known
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| StoreError::new("a tag without a generation", false))
    }

    fn remember(&self, tags: &[&str], known: &[Option<Known>]) {
        let mut remembered = lock(&self.0);
        if remembered.len() + tags.len() > MOST {
            remembered.clear();
        }
        for (tag, known) in tags.iter().zip(known) {
            if let Some(known) = known {
                remembered.insert(Arc::from(*tag), *known);
            }
        }
    }
}
