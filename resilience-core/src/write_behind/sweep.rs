//! Which of the entries of a batch the sink refuses. Pure: results come in, the next part to sink comes out.
//!
//! A batch that fails is halved until the entries that fail are alone, so that others are sunk. A sink that takes nothing is
//! taken for one that is away: after some failures in a row the rest is left untried. An entry that failed as if the sink were away
//! is blamed only if the sink took another one afterwards.

use std::{ops::Range, time::Duration};

/// What a call of the sink came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Sunk,
    /// The sink is away, or busy: the entries may be well.
    Away(Away),
    /// The sink refuses something in it.
    Refused(String),
}

/// A sink that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Away {
    pub(super) reason: String,
    /// The wait that it asked for.
    pub(super) wait: Option<Duration>,
}

/// What is known of an entry after the sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Sunk,
    /// Its own fault.
    Failed(String),
    /// Not tried, or without a result that is to be blamed on it.
    Untried,
}

/// One sweep over a batch.
#[derive(Debug)]
pub(super) struct Sweep {
    fates: Vec<Fate>,
    /// The last is the next one.
    left: Vec<Range<usize>>,
    /// Entries that failed alone since the last success, as if the sink were away: their own fault, if it turns out to be there.
    doubtful: Vec<(usize, String)>,
    any_sunk: bool,
    /// Whether a failure as if the sink were away is looked into, entry by entry.
    searching: bool,
    /// Since the last success.
    failures: u32,
    away: Option<Away>,
}

/// Failures in a row after which a sink is taken for away.
const MOST_FAILURES: u32 = 12;
/// Pauses in a row after which it is looked for an entry that makes the sink seem away.
pub(super) const SEARCH_AFTER: u64 = 3;

impl Sweep {
    /// Over `many` entries, after `pauses` without a success.
    pub(super) fn new(many: usize, pauses: u64) -> Self {
        Self {
            fates: vec![Fate::Untried; many],
            left: (many > 0).then_some(0..many).into_iter().collect(),
            doubtful: Vec::new(),
            any_sunk: false,
            searching: pauses >= SEARCH_AFTER,
            failures: 0,
            away: None,
        }
    }

    /// The part to sink next; nothing: the sweep is over.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        if self.failures >= MOST_FAILURES {
            return None;
        }
        self.left.pop()
    }

    pub(super) fn answered(&mut self, part: Range<usize>, answer: Answer) {
        match answer {
            Answer::Sunk => {
                (self.any_sunk, self.failures, self.away) = (true, 0, None);
                self.fates[part].fill(Fate::Sunk);
                for (at, reason) in self.doubtful.drain(..) {
                    self.fates[at] = Fate::Failed(reason);
                }
            }
            Answer::Away(away) => {
                self.failures += 1;
                // With a success before, it is worth a look as well.
                if !(self.searching || self.any_sunk) {
                    self.left.clear();
                } else if part.len() > 1 {
                    self.halve(part);
                } else {
                    self.doubtful.push((part.start, away.reason.clone()));
                }
                self.away = Some(away);
            }
            Answer::Refused(reason) => {
                self.failures += 1;
                if part.len() > 1 {
                    self.halve(part);
                } else {
                    self.fates[part.start] = Fate::Failed(reason);
                }
            }
        }
    }

    fn halve(&mut self, part: Range<usize>) {
        let middle = part.start + part.len() / 2;
        self.left.push(middle..part.end);
        self.left.push(part.start..middle);
    }

    /// The fates of all entries, and why the sink is taken for away, if it is.
    pub(super) fn end(self) -> (Vec<Fate>, Option<Away>) {
        let refused = self.fates.iter().find_map(|it| match it {
            Fate::Failed(reason) => Some(Away {
                reason: reason.clone(),
                wait: None,
            }),
            _ => None,
        });
        // Everything that was tried last was refused: a table that is not there refuses too. The rest waits.
        let untried = self.fates.contains(&Fate::Untried);
        let away = self.away.or_else(|| refused.filter(|_| untried));
        (self.fates, away)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sweeps over entries of which some are refused and some make the sink seem away.
    fn sweep(entries: &[u8], pauses: u64) -> (Vec<Fate>, Option<String>, usize) {
        let mut sweep = Sweep::new(entries.len(), pauses);
        let mut calls = 0;
        while let Some(part) = sweep.next() {
            calls += 1;
            let worst = entries[part.clone()].iter().max();
            let answer = match worst {
                Some(0) => Answer::Sunk,
                Some(1) => Answer::Refused("no".into()),
                _ => Answer::Away(Away {
                    reason: "away".into(),
                    wait: None,
                }),
            };
            sweep.answered(part, answer);
        }
        let (fates, away) = sweep.end();
        (fates, away.map(|it| it.reason), calls)
    }

    #[test]
    fn one_poison_entry_is_found_and_the_others_are_sunk() {
        let mut entries = [0; 100];
        entries[41] = 1;
        let (fates, away, calls) = sweep(&entries, 0);
        assert_eq!(away, None);
        assert_eq!(fates[41], Fate::Failed("no".into()));
        assert_eq!(fates.iter().filter(|it| **it == Fate::Sunk).count(), 99);
        assert!(calls < 20, "{calls}");
    }

    #[test]
    fn a_sink_that_is_away_is_asked_once_and_no_entry_is_blamed() {
        let (fates, away, calls) = sweep(&[2; 100], 0);
        assert_eq!((away.as_deref(), calls), (Some("away"), 1));
        assert!(fates.iter().all(|it| *it == Fate::Untried));
    }

    #[test]
    fn a_sink_that_stays_away_is_asked_a_few_times_and_no_entry_is_blamed() {
        let (fates, away, calls) = sweep(&[2; 100], SEARCH_AFTER);
        assert_eq!(away.as_deref(), Some("away"));
        assert!(calls <= MOST_FAILURES as usize, "{calls}");
        assert!(fates.iter().all(|it| *it == Fate::Untried));
    }

    #[test]
    fn an_entry_that_makes_the_sink_seem_away_is_found_after_some_pauses() {
        let mut entries = [0; 100];
        entries[7] = 2;
        let (fates, away, _) = sweep(&entries, SEARCH_AFTER);
        assert_eq!(away, None);
        assert_eq!(fates[7], Fate::Failed("away".into()));
        assert_eq!(fates.iter().filter(|it| **it == Fate::Sunk).count(), 99);
    }

    proptest! {
        #[test]
        fn what_is_sunk_was_sunk_and_what_is_blamed_is_at_fault(
            entries in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => Just(1), 1 => Just(2)], 1..60),
            pauses in 0..5u64,
        ) {
            let (fates, away, calls) = sweep(&entries, pauses);
            prop_assert!(calls <= 2 * entries.len());
            for (entry, fate) in entries.iter().zip(&fates) {
                match fate {
                    Fate::Sunk => prop_assert_eq!(*entry, 0),
                    Fate::Failed(_) => prop_assert_ne!(*entry, 0),
                    Fate::Untried => prop_assert!(away.is_some()),
                }
            }
            if !entries.contains(&0) {
                prop_assert!(fates.iter().zip(&entries).all(|(it, entry)| *entry == 1 || *it == Fate::Untried));
            }
            let many = entries.iter().filter(|it| **it > 0).count();
            if pauses >= SEARCH_AFTER && many < 4 {
                // What is well is sunk.
                for (entry, fate) in entries.iter().zip(&fates) {
                    prop_assert_eq!(*entry == 0, *fate == Fate::Sunk);
                }
            }
        }
    }
}
