//! The breakers between callers and servers that have stopped answering: only a few calls, now and then, wait for the budget
//! to run out.
//!
//! One for a server; one for each master of a Cluster, so that a shard that does not answer costs the others nothing.

use std::{collections::HashMap, time::Duration};

use arc_swap::ArcSwap;
use resilience_core::breaker::{CircuitBreaker, Dropped, HalfOpen, OpenFor};

use crate::{keys, transport::SlotRange, url::Address};

/// Number of timeouts in a row that make a connection suspicious.
pub(super) const SUSPICIOUS: u32 = 3;
/// Name of the connection's own breaker and events.
pub(crate) const GUARD: &str = "resilience.redis";

pub(super) struct Guards {
    /// Of a server; of slots whose master is not known; of commands to all masters.
    whole: CircuitBreaker,
    shards: ArcSwap<Shards>,
}

#[derive(Default)]
struct Shards {
    by_master: HashMap<Address, CircuitBreaker>,
    /// The last slot of each range, in ascending order, and the breaker of its master.
    ranges: Vec<(u16, CircuitBreaker)>,
}

impl Guards {
    pub(super) fn new() -> Self {
        Self {
            whole: guard(),
            shards: ArcSwap::default(),
        }
    }

    /// The breaker of the server that a command about `key` goes to.
    pub(super) fn of(&self, key: Option<&str>) -> CircuitBreaker {
        let shards = self.shards.load();
        if let Some(key) = key
            && !shards.ranges.is_empty()
        {
            let slot = keys::slot(key);
            let at = shards.ranges.partition_point(|(last, _)| *last < slot);
            if let Some((_, guard)) = shards.ranges.get(at) {
                return guard.clone();
            }
        }
        self.whole.clone()
    }

    /// Notes which master holds which slots. A master that was known keeps its breaker. Whether masters changed.
    pub(super) fn note(&self, mut slots: Vec<SlotRange>) -> bool {
        slots.sort_by_key(|range| range.last);
        let before = self.shards.load_full();
        let mut shards = Shards::default();
        for SlotRange { last, master } in slots {
            let known = before.by_master.get(&master).cloned();
            let entry = shards.by_master.entry(master);
            let shard = entry.or_insert_with(|| known.unwrap_or_else(guard));
            shards.ranges.push((last, shard.clone()));
        }
        let masters = |shards: &Shards| {
            let mut masters: Vec<_> = shards.by_master.keys().cloned().collect();
            masters.sort();
            masters
        };
        let changed = !before.ranges.is_empty() && masters(&before) != masters(&shards);
        self.shards.store(shards.into());
        changed
    }
}

/// A breaker `resilience.redis`: opens after as many timeouts in a row as make the connection suspicious.
fn guard() -> CircuitBreaker {
    CircuitBreaker::builder(GUARD)
        .no_failure_rate()
        .consecutive_failures(SUSPICIOUS)
        .open_for(OpenFor::exponential(
            Duration::from_millis(200),
            Duration::from_secs(1),
        ))
        .half_open(HalfOpen::probes(1))
        .dropped(Dropped::Ignored)
        .build()
        .expect("fixed settings that are valid")
}

#[cfg(test)]
mod tests {
    use resilience_core::{Verdict, breaker::State, completion::Guard};

    use super::*;

    fn range(last: u16, master: u16) -> SlotRange {
        SlotRange {
            last,
            master: ("10.0.0.1".into(), master),
        }
    }

    fn fail(guards: &Guards, key: &str) {
        for _ in 0..SUSPICIOUS {
            if let Ok(mut permit) = guards.of(Some(key)).acquire() {
                permit.settle(Verdict::transient());
            }
        }
    }

    fn is_closed(guards: &Guards, key: &str) -> bool {
        guards.of(Some(key)).state() == State::Closed
    }

    #[tokio::test]
    async fn a_shard_that_does_not_answer_leaves_the_others_open_to_callers() {
        let guards = Guards::new();
        // Slots 12182, 5061 and 8363.
        let (foo, bar, other) = ("foo", "{bar}:state", "foo{}{bar}");
        assert!(!guards.note(vec![range(16_383, 3), range(5_460, 1), range(10_922, 2)]));
        fail(&guards, bar);
        assert!(!is_closed(&guards, bar));
        assert!(is_closed(&guards, foo) && is_closed(&guards, other));
        assert_eq!(guards.of(None).state(), State::Closed);
        // A slot that moved goes to a master that is well; a master that stays keeps its breaker.
        assert!(!guards.note(vec![range(16_383, 3), range(5_000, 1), range(10_922, 2)]));
        assert!(is_closed(&guards, bar));
        assert!(!guards.note(vec![range(16_383, 3), range(5_460, 1), range(10_922, 2)]));
        assert!(!is_closed(&guards, bar));
        // A replica took over.
        assert!(guards.note(vec![range(16_383, 3), range(5_460, 4), range(10_922, 2)]));
        assert!(is_closed(&guards, bar));
    }

    #[tokio::test]
    async fn a_single_server_has_one_breaker_for_all_keys() {
        let guards = Guards::new();
        fail(&guards, "foo");
        assert!(!is_closed(&guards, "bar"));
    }
}
