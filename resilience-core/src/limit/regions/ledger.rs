//! The ledger of a region's loans: pure, and all that keeps the sum of all shares at one.
//!
//! Each region has a ledger in a store of its own. The only times in it are that store's, in microseconds. A share is
//! lent in four steps, each of which the next one waits for, so that no part of it is ever used twice:
//!
//! 1. The lender notes the loan in its own ledger: its own share shrinks.
//! 2. After [`Rules::settled`], when no process of the lender uses the larger share any more, it enters the loan in the
//!    borrower's ledger, with an end that comes before the one in its own.
//! 3. To take it back, the lender lowers the entry in the borrower's ledger.
//! 4. After as long again, when no process of the borrower uses what was borrowed any more, it lowers its own note.
//!
//! A loan that cannot be renewed ends by itself, on the borrower's side first. Every write compares the version that was
//! read, and is refused when it comes later than an interval after the read: so no writer that was stopped for long can
//! undo later writes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// All shares together.
pub const WHOLE: u32 = 256;

/// Times that all regions agree on, and the shares that this region starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// This region's share while nothing is lent.
    pub(super) base: u32,
    /// The part that it never lends.
    pub(super) floor: u32,
    /// Microseconds between two turns.
    pub(super) interval: u64,
    /// Microseconds until a loan ends that is not renewed.
    pub(super) term: u64,
}

impl Rules {
    /// Microseconds for which a process may use a share that it has read.
    pub(super) const fn hold(&self) -> u64 {
        3 * self.interval
    }

    /// Microseconds after the read that led to a write until no process uses the previous content: the write may come an
    /// interval later, and a process may have read just before.
    const fn settled(&self) -> u64 {
        self.interval + self.hold()
    }

    pub(super) const fn hold_time(&self) -> Duration {
        Duration::from_micros(self.hold())
    }
}

/// A loan in the lender's ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Lent {
    pub(super) parts: u32,
    /// Since when it is at least `parts`.
    pub(super) since: u64,
    /// When the borrower's entry was last meant to grow.
    pub(super) raised: u64,
    pub(super) until: u64,
}

/// A loan in the borrower's ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Borrowed {
    pub(super) parts: u32,
    /// When it was last lowered.
    pub(super) lowered: u64,
    pub(super) until: u64,
}

/// The loans of a region, on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// When it was created. It is created again after a loss, and the loans of the lost one are not known then.
    pub(super) born: u64,
    /// When the next turn is due.
    pub(super) turn: u64,
    pub(super) lent: BTreeMap<Arc<str>, Lent>,
    pub(super) borrowed: BTreeMap<Arc<str>, Borrowed>,
}

/// A ledger as it was read from its store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LedgerView {
    /// The store's time.
    pub now: u64,
    /// Rises with every change; zero while there is no ledger.
    pub version: u64,
    /// The ledger.
    pub ledger: Ledger,
    /// The demand of the region's instances, in millionths of the whole.
    pub demand: u64,
}

impl LedgerView {
    /// A view for a store to return.
    #[must_use]
    pub const fn new(now: u64, version: u64, ledger: Ledger, demand: u64) -> Self {
        Self {
            now,
            version,
            ledger,
            demand,
        }
    }
}

/// A ledger to be written in place of the one that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swap {
    /// The version that was read.
    pub expected: u64,
    /// The store's time after which it is too late.
    pub not_after: u64,
    /// The new ledger.
    pub ledger: Ledger,
}

impl Swap {
    /// `ledger` in place of version `expected`, until `not_after` on the store's clock.
    #[must_use]
    pub const fn new(expected: u64, not_after: u64, ledger: Ledger) -> Self {
        Self {
            expected,
            not_after,
            ledger,
        }
    }
}

impl Ledger {
    /// The share now, and the borrowed parts with the time left of each.
    pub(super) fn share(&self, rules: &Rules, now: u64) -> (u32, Vec<(u32, u64)>) {
        if self.is_young(rules, now) {
            return (rules.floor, Vec::new());
        }
        let lent: u32 = self.lent_now(now).map(|(_, lent)| lent.parts).sum();
        let ending = self
            .borrowed
            .values()
            .filter(|borrowed| borrowed.until > now);
        let ending = ending.map(|borrowed| (borrowed.parts, borrowed.until - now));
        (
            rules.base.saturating_sub(lent).max(rules.floor),
            ending.collect(),
        )
    }

    /// Whether loans of a lost ledger may still be in use.
    const fn is_young(&self, rules: &Rules, now: u64) -> bool {
        self.born == 0 || now < self.born + rules.term
    }

    pub(super) const fn is_turn(&self, now: u64) -> bool {
        now >= self.turn
    }

    fn lent_now(&self, now: u64) -> impl Iterator<Item = (&Arc<str>, &Lent)> {
        self.lent.iter().filter(move |(_, lent)| lent.until > now)
    }

    fn borrowed_from(&self, lender: &str, now: u64) -> Option<Borrowed> {
        let borrowed = self.borrowed.get(lender).copied()?;
        let parts = if borrowed.until > now {
            borrowed.parts
        } else {
            0
        };
        Some(Borrowed { parts, ..borrowed })
    }
}

/// A peer's ledger, and its arrival in microseconds after the own one was requested.
pub(super) struct PeerLedger {
    pub(super) view: LedgerView,
    pub(super) late: u64,
}

/// One turn of a region: the writes to its own ledger, and then, if that succeeded, to those of its peers.
pub(super) fn turn(
    me: &Arc<str>,
    rules: &Rules,
    own: &LedgerView,
    peers: &BTreeMap<Arc<str>, PeerLedger>,
    wanted: &BTreeMap<Arc<str>, u32>,
) -> (Swap, Vec<(Arc<str>, Swap)>) {
    let now = own.now;
    let mut ledger = own.ledger.clone();
    if ledger.born == 0 {
        ledger.born = now;
    }
    ledger.turn = now + rules.interval;
    ledger.lent.retain(|_, lent| lent.until > now);
    ledger
        .borrowed
        .retain(|_, borrowed| borrowed.until + rules.term > now);
    let mut swaps = Vec::new();
    if !ledger.is_young(rules, now) {
        for (peer, seen) in peers {
            let wanted = wanted.get(peer).copied().unwrap_or(0);
            settle(
                &mut ledger,
                rules,
                now,
                peer,
                seen.view.ledger.borrowed_from(me, seen.view.now),
                seen.view.now,
                wanted,
            );
            if let Some(swap) = enter(&mut ledger, me, rules, now, peer, seen, wanted) {
                swaps.push((Arc::clone(peer), swap));
            }
        }
    }
    // A loan is renewed before it lapses or not at all: a process may have read that the share is whole again.
    let lapses = own.ledger.lent_now(now).map(|(_, lent)| lent.until - 1);
    let own = Swap {
        expected: own.version,
        not_after: lapses.fold(now + rules.interval, u64::min),
        ledger,
    };
    (own, swaps)
}

/// The lender's side of one loan.
fn settle(
    ledger: &mut Ledger,
    rules: &Rules,
    now: u64,
    peer: &Arc<str>,
    theirs: Option<Borrowed>,
    their_now: u64,
    wanted: u32,
) {
    let others: u32 = ledger
        .lent
        .iter()
        .filter(|(other, _)| *other != peer)
        .map(|(_, lent)| lent.parts)
        .sum();
    let most = (rules.base - rules.floor).saturating_sub(others);
    let wanted = wanted.min(most);
    let mut lent = ledger.lent.get(peer).copied().unwrap_or_default();
    // One increase after the other: each starts the wait for step 2 again.
    if wanted > lent.parts && now >= lent.since + rules.settled() {
        lent.parts = wanted;
        lent.since = now;
    } else if wanted < lent.parts && now >= lent.raised + rules.settled() {
        // What is in the borrower's ledger, and no process of the borrower exceeds any more.
        let settled = theirs.filter(|theirs| their_now >= theirs.lowered + rules.settled());
        if let Some(theirs) = settled {
            lent.parts = lent.parts.min(theirs.parts.max(wanted));
        }
    }
    if lent.parts == 0 {
        ledger.lent.remove(peer);
    } else {
        lent.until = now + rules.term;
        ledger.lent.insert(Arc::clone(peer), lent);
    }
}

/// The borrower's side of one loan.
fn enter(
    ledger: &mut Ledger,
    me: &Arc<str>,
    rules: &Rules,
    now: u64,
    peer: &Arc<str>,
    seen: &PeerLedger,
    wanted: u32,
) -> Option<Swap> {
    let theirs = seen.view.ledger.borrowed_from(me, seen.view.now);
    let lent = ledger.lent.get_mut(peer)?;
    let before = theirs.map_or(0, |theirs| theirs.parts);
    let ready = now >= lent.since + rules.settled();
    let most = if ready {
        lent.parts
    } else {
        before.min(lent.parts)
    };
    let parts = wanted.min(most);
    // A little before its end here, counted from before the own ledger was requested.
    let left = (lent.until - now).saturating_sub(seen.late + rules.interval / 4);
    if left == 0 {
        return None;
    }
    if parts > before {
        lent.raised = now;
    }
    let lowered = match theirs {
        Some(theirs) if parts >= before => theirs.lowered,
        _ => seen.view.now,
    };
    let mut ledger = seen.view.ledger.clone();
    let until = seen.view.now + left;
    let entry = Borrowed {
        parts,
        lowered,
        until,
    };
    ledger.borrowed.insert(Arc::clone(me), entry);
    Some(Swap {
        expected: seen.view.version,
        not_after: seen.view.now + rules.interval,
        ledger,
    })
}
