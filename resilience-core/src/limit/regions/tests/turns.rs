//! Single turns, to the microsecond.

use super::*;
use crate::limit::regions::ledger::{Borrowed, Lent, PeerLedger, turn};

const RULES: Rules = Rules {
    base: 128,
    floor: 16,
    interval: 1_000,
    term: 10_000,
};
const NOW: u64 = 1_000_000;

fn view(ledger: Ledger) -> LedgerView {
    LedgerView::new(NOW, 7, Ledger { born: 1, ..ledger }, 0)
}

/// A turn of `eu`, which wants `us` to have `parts` parts.
fn turn_of(own: Ledger, theirs: Option<Borrowed>, wanted: u32) -> (Swap, Vec<(Arc<str>, Swap)>) {
    let borrowed = theirs.map(|theirs| ("eu".into(), theirs));
    let theirs = Ledger {
        borrowed: borrowed.into_iter().collect(),
        ..Ledger::default()
    };
    let seen = PeerLedger {
        view: view(theirs),
        late: 10,
    };
    turn(
        &"eu".into(),
        &RULES,
        &view(own),
        &[("us".into(), seen)].into(),
        &[("us".into(), wanted)].into(),
    )
}

fn lent(lent: Lent) -> Ledger {
    Ledger {
        lent: [("us".into(), lent)].into(),
        ..Ledger::default()
    }
}

#[test]
fn a_loan_is_entered_when_nobody_uses_what_was_read_before_it_was_noted() {
    for (since, entered) in [(NOW - 3_999, 0), (NOW - 4_000, 50)] {
        let noted = Lent {
            parts: 50,
            since,
            raised: 0,
            until: NOW + 9_000,
        };
        let (_, swaps) = turn_of(lent(noted), None, 50);
        assert_eq!(
            swaps[0].1.ledger.borrowed["eu"].parts, entered,
            "since {since}"
        );
    }
}

#[test]
fn a_loan_is_taken_back_when_nobody_uses_what_was_read_before_it_was_lowered() {
    for (lowered, left) in [(NOW - 3_999, 50), (NOW - 4_000, 20)] {
        let noted = Lent {
            parts: 50,
            since: 0,
            raised: 0,
            until: NOW + 9_000,
        };
        let theirs = Borrowed {
            parts: 20,
            lowered,
            until: NOW + 8_000,
        };
        let (own, _) = turn_of(lent(noted), Some(theirs), 20);
        assert_eq!(own.ledger.lent["us"].parts, left, "lowered {lowered}");
    }
}

#[test]
fn a_loan_is_renewed_before_it_lapses_or_not_at_all() {
    for (until, not_after) in [(NOW + 9_000, NOW + 1_000), (NOW + 300, NOW + 299)] {
        let noted = Lent {
            parts: 50,
            since: 0,
            raised: 0,
            until,
        };
        let (own, _) = turn_of(lent(noted), None, 50);
        assert_eq!(own.not_after, not_after);
        assert_eq!(own.ledger.lent["us"].until, NOW + RULES.term);
    }
}
