//! Rows that the broker refuses: when they are tried again, and when a refusal counts. Pure: time comes in.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::super::{batch::Refused, dialect::Without};
use crate::backoff::Backoff;

/// Rows that are not sent for a while, and with them all later rows of their keys.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    rows: BTreeMap<i64, Aside>,
}

#[derive(Debug)]
struct Aside {
    refused: Refused,
    until: Instant,
    /// The broker has stored another row since.
    proven: bool,
    /// Counted in the table.
    counted: bool,
}

/// Refused rows above this number stop the relay until one of them is due.
const MOST: usize = 100;

impl SetAside {
    pub(super) fn add(&mut self, refused: Refused, now: Instant, backoff: &Backoff) {
        let pause = backoff
            .delays()
            .nth(refused.attempts as usize)
            .unwrap_or(Duration::from_secs(10));
        let aside = Aside {
            until: now + pause,
            proven: false,
            counted: false,
            refused,
        };
        self.rows.insert(aside.refused.sequence, aside);
    }

    /// The broker has stored a row.
    pub(super) fn stored(&mut self) {
        self.rows.values_mut().for_each(|row| row.proven = true);
    }

    /// Refusals that count and are not counted yet: the row, why, and whether it was the last one.
    pub(super) fn to_count(&self, max_attempts: u32) -> Vec<(i64, String, bool)> {
        let counts = self.rows.values().filter(|row| row.proven && !row.counted);
        let count = |row: &Aside| {
            let last = row.refused.attempts + 1 >= max_attempts;
            (row.refused.sequence, row.refused.reason.clone(), last)
        };
        counts.map(count).collect()
    }

    /// These refusals are counted in the table; dead letters are no longer waited for.
    pub(super) fn counted(&mut self, counted: &[(i64, String, bool)]) {
        for (sequence, _, last) in counted {
            if *last {
                self.rows.remove(sequence);
            } else if let Some(row) = self.rows.get_mut(sequence) {
                row.counted = true;
            }
        }
    }

    /// What is not to be sent at `now`. Rows that are due are no longer set aside, if their refusal is counted or does not count.
    pub(super) fn without(&mut self, now: Instant) -> Without {
        self.rows
            .retain(|_, row| now < row.until || row.proven && !row.counted);
        Without {
            sequences: self.rows.keys().copied().collect(),
            keys: self
                .rows
                .values()
                .filter_map(|row| row.refused.key.as_deref().map(str::to_owned))
                .collect(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= MOST
    }

    /// When the first of them is tried again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.rows.values().map(|row| row.until).min()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn refused(sequence: i64, key: &str, attempts: u32) -> Refused {
        Refused {
            sequence,
            id: "id".into(),
            key: Some(key.into()),
            attempts,
            reason: "no".to_owned(),
        }
    }

    const PAUSE: Duration = Duration::from_secs(1);

    #[test]
    fn a_refusal_counts_when_the_broker_stores_another_row_and_the_row_waits_with_its_key() {
        let (mut aside, now) = (SetAside::default(), Instant::now());
        let backoff = Backoff::fixed(PAUSE);
        aside.add(refused(3, "a", 0), now, &backoff);
        assert_eq!(aside.to_count(2), []);
        let without = aside.without(now);
        assert_eq!(
            (without.sequences, without.keys),
            (vec![3], vec!["a".to_owned()])
        );
        aside.stored();
        let count = aside.to_count(2);
        assert_eq!(count, [(3, "no".to_owned(), false)]);
        aside.counted(&count);
        assert_eq!(aside.to_count(2), []);
        assert_eq!(aside.without(now + PAUSE / 2).sequences, [3]);
        assert_eq!(aside.next_due(), Some(now + PAUSE));
        assert!(aside.without(now + PAUSE).sequences.is_empty());
    }

    #[test]
    fn the_last_refusal_makes_room_for_the_key_at_once() {
        let (mut aside, now) = (SetAside::default(), Instant::now());
        aside.add(refused(3, "a", 1), now, &Backoff::fixed(PAUSE));
        aside.stored();
        let count = aside.to_count(2);
        assert!(count[0].2);
        aside.counted(&count);
        assert!(aside.without(now).keys.is_empty());
    }

    #[test]
    fn while_the_broker_stores_nothing_no_refusal_counts_and_the_row_is_tried_again() {
        let (mut aside, now) = (SetAside::default(), Instant::now());
        aside.add(refused(3, "a", 0), now, &Backoff::fixed(PAUSE));
        assert!(aside.without(now + PAUSE).sequences.is_empty());
        aside.stored();
        assert_eq!(aside.to_count(1), [], "it was tried again since");
    }
}
