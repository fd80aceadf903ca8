//! Window over the last N calls, exact.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

use crossbeam_utils::CachePadded;

use super::{Kind, Noted, Sums};
use crate::sync::atomic::{AtomicU32, AtomicU64};

/// The most calls a window may hold: four bytes each.
pub(in crate::breaker) const MAX_CALLS: usize = 1_000_000;

/// A ring of results, four bytes each, and what they add up to. All threads share its head: exactness over the last
/// N calls of the whole process has that price; the time window has no such point of contention.
#[derive(Debug)]
pub(in crate::breaker) struct CountWindow {
    /// `generation (16 bits) | calls (48 bits)`.
    head: CachePadded<AtomicU64>,
    /// `generation (16 bits) | failures (24 bits) | slow (24 bits)`, both biased.
    totals: CachePadded<AtomicU64>,
    /// `generation (30 bits) | kind (2 bits)`.
    slots: Box<[AtomicU32]>,
    /// For a remainder without a division: 2^64 - 1 by the number of slots.
    reciprocal: u64,
    /// Calls of earlier generations.
    retired: AtomicU64,
    /// Calls of all generations that were no plain successes, or came too late for theirs.
    others: AtomicU64,
    /// The highest number of plain successes ever told.
    told: AtomicU64,
}

/// What the fields of the totals are above: a call that leaves the window may be subtracted before the thread that
/// brought it in has come to add it.
const BIAS: u64 = 1 << 22;
const FIELD: u64 = (1 << 24) - 1;
const CALLS: u64 = (1 << 48) - 1;

impl CountWindow {
    pub(in crate::breaker) fn new(calls: usize, generation: u64) -> Self {
        let unused = Slot::new(generation.wrapping_sub(1), Kind::Success);
        Self {
            head: CachePadded::new(AtomicU64::new(generation << 48)),
            totals: CachePadded::new(AtomicU64::new(zero(generation))),
            slots: (0..calls).map(|_| AtomicU32::new(unused.0)).collect(),
            reciprocal: u64::MAX / calls as u64,
            retired: AtomicU64::new(0),
            others: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(in crate::breaker) fn record(&self, generation: u64, kind: Kind) -> Noted {
        if kind == Kind::Success {
            return self.record_success(generation);
        }
        // Before the turn: at no time are there more plain successes to be read than there were.
        self.others.fetch_add(1, SeqCst);
        let Some(call) = self.take_turn(generation) else {
            self.others.fetch_sub(1, SeqCst);
            return Noted::Stale;
        };
        self.put(generation, call, kind)
    }

    /// One compare-and-swap where the call takes the place of a plain success. Stale: not counted.
    #[inline(always)]
    pub(super) fn record_success(&self, generation: u64) -> Noted {
        let Some(call) = self.take_turn(generation) else {
            return Noted::Stale;
        };
        let seen = self.slot(call).load(Acquire);
        if seen == Slot::new(generation, Kind::Success).0 {
            return Noted::Quietly;
        }
        let noted = self.put(generation, call, Kind::Success);
        if noted == Noted::Stale {
            self.others.fetch_add(1, SeqCst);
        }
        noted
    }

    #[cold]
    fn put(&self, generation: u64, call: u64, kind: Kind) -> Noted {
        let Some(old) = replace(self.slot(call), Slot::new(generation, kind)) else {
            return Noted::Stale;
        };
        if old != kind && !self.shift(generation, old, kind) {
            return Noted::Stale;
        }
        Noted::Quietly
    }

    /// `call` modulo the number of slots. The quotient may be one too low.
    #[inline(always)]
    fn slot(&self, call: u64) -> &AtomicU32 {
        let slots = self.slots.len() as u64;
        let quotient = ((u128::from(call) * u128::from(self.reciprocal)) >> 64) as u64;
        let rest = call - quotient * slots;
        let rest = if rest < slots { rest } else { rest - slots };
        &self.slots[rest as usize]
    }

    /// The plain successes ever recorded, by whatever generation. Never fewer than were told before.
    pub(in crate::breaker) fn successes(&self) -> u64 {
        let calls = self.retired.load(SeqCst) + (self.head.load(SeqCst) & CALLS);
        let successes = calls.saturating_sub(self.others.load(SeqCst));
        self.told.fetch_max(successes, Relaxed).max(successes)
    }

    /// The number of this call within its generation.
    #[inline(always)]
    fn take_turn(&self, generation: u64) -> Option<u64> {
        let mut head = self.head.load(Relaxed);
        while head >> 48 == generation & 0xffff {
            match self
                .head
                .compare_exchange_weak(head, head + 1, SeqCst, Relaxed)
            {
                Ok(_) => return Some(head & CALLS),
                Err(other) => head = other,
            }
        }
        None
    }

    /// Takes `old` out of the totals and brings `new` in.
    fn shift(&self, generation: u64, old: Kind, new: Kind) -> bool {
        let delta = weight(new).wrapping_sub(weight(old));
        let mut seen = self.totals.load(Relaxed);
        while seen >> 48 == generation & 0xffff {
            let next = seen.wrapping_add(delta);
            match self
                .totals
                .compare_exchange_weak(seen, next, SeqCst, Relaxed)
            {
                Ok(_) => return true,
                Err(other) => seen = other,
            }
        }
        false
    }

    pub(in crate::breaker) fn sums(&self, generation: u64) -> Sums {
        let totals = self.totals.load(Acquire);
        let head = self.head.load(Acquire);
        if head >> 48 != generation & 0xffff || totals >> 48 != generation & 0xffff {
            return Sums::default();
        }
        let calls = (head & CALLS).min(self.slots.len() as u64);
        let count = |field: u64| (field & FIELD).saturating_sub(BIAS).min(calls);
        Sums {
            calls,
            failures: count(totals >> 24),
            slow: count(totals),
        }
    }

    /// The slots need no sweep: what an earlier generation wrote counts as empty.
    pub(in crate::breaker) fn reset(&self, generation: u64) {
        // Swaps: between the compare-and-swaps of others a plain store would have no place in loom's order of events.
        self.totals.swap(zero(generation), SeqCst);
        let head = self.head.swap(generation << 48, SeqCst);
        self.retired.fetch_add(head & CALLS, SeqCst);
    }
}

const fn zero(generation: u64) -> u64 {
    generation << 48 | BIAS << 24 | BIAS
}

const fn weight(kind: Kind) -> u64 {
    (kind.failed() as u64) << 24 | kind.slow() as u64
}

/// Puts `new` into the slot and returns what it replaced (an unused slot holds nothing, as a plain success does);
/// `None` if the slot belongs to a later generation.
fn replace(slot: &AtomicU32, new: Slot) -> Option<Kind> {
    let mut seen = Slot(slot.load(Relaxed));
    loop {
        let ahead = seen.generations_after(new);
        if ahead > 0 {
            return None;
        }
        match slot.compare_exchange_weak(seen.0, new.0, AcqRel, Relaxed) {
            Ok(_) if ahead == 0 => return Some(seen.kind()),
            Ok(_) => return Some(Kind::Success),
            Err(other) => seen = Slot(other),
        }
    }
}

#[derive(Clone, Copy)]
struct Slot(u32);

impl Slot {
    const fn new(generation: u64, kind: Kind) -> Self {
        Self((generation as u32) << 2 | kind as u32)
    }

    const fn kind(self) -> Kind {
        Kind::new(self.0 & 1 != 0, self.0 & 2 != 0)
    }

    const fn generations_after(self, other: Self) -> i32 {
        ((self.0 & !3).wrapping_sub(other.0 & !3)) as i32
    }
}

#[cfg(test)]
impl CountWindow {
    /// The sums over the slots of `generation`, computed from scratch.
    pub(in crate::breaker) fn recount(&self, generation: u64) -> Sums {
        let mine = |slot: &Slot| slot.generations_after(Slot::new(generation, Kind::Success)) == 0;
        let kinds: Vec<_> = self
            .slots
            .iter()
            .map(|slot| Slot(slot.load(Relaxed)))
            .filter(mine)
            .map(Slot::kind)
            .collect();
        Sums {
            calls: kinds.len() as u64,
            failures: kinds.iter().filter(|kind| kind.failed()).count() as u64,
            slow: kinds.iter().filter(|kind| kind.slow()).count() as u64,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holds_exactly_the_last_n_calls(
            size in 1usize..40,
            steps in prop::collection::vec((0usize..4, 0u32..60), 1..400),
        ) {
            let window = CountWindow::new(size, 0);
            let (mut queue, mut generation, mut successes) = (VecDeque::new(), 0, 0);
            for (kind, dice) in steps {
                if dice == 0 {
                    generation += 1;
                    window.reset(generation);
                    queue.clear();
                    for kind in Kind::ALL {
                        prop_assert_eq!(window.record(generation - 1, kind), Noted::Stale);
                    }
                }
                window.record(generation, Kind::ALL[kind]);
                successes += u64::from(Kind::ALL[kind] == Kind::Success);
                prop_assert_eq!(window.successes(), successes);
                queue.push_back(Kind::ALL[kind]);
                while queue.len() > size {
                    queue.pop_front();
                }
                let model = Sums {
                    calls: queue.len() as u64,
                    failures: queue.iter().filter(|kind| kind.failed()).count() as u64,
                    slow: queue.iter().filter(|kind| kind.slow()).count() as u64,
                };
                prop_assert_eq!(window.sums(generation), model);
                prop_assert_eq!(window.recount(generation), model);
            }
        }
    }

    proptest! {
        #[test]
        fn calls_take_the_slots_in_turn(size in 1usize..10_000, call in 0..=CALLS) {
            let window = CountWindow::new(size, 0);
            for call in [call, CALLS - call, call / size as u64 * size as u64] {
                let index = (call % size as u64) as usize;
                prop_assert!(std::ptr::eq(window.slot(call), &window.slots[index]));
            }
        }
    }

    #[test]
    fn the_successes_told_are_never_fewer_than_before_nor_more_than_there_were() {
        use std::sync::atomic::{AtomicBool, AtomicU64};
        let window = CountWindow::new(8, 0);
        let (begun, done) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for call in 0..60_000_u64 {
                    if call % 1_000 == 999 {
                        window.reset(call / 1_000 + 1);
                    }
                    let kind = Kind::ALL[(call % 3 == 0) as usize];
                    begun.fetch_add(u64::from(kind == Kind::Success), SeqCst);
                    window.record((call + 1) / 1_000, kind);
                }
                done.store(true, SeqCst);
            });
            let mut before = 0;
            while !done.load(SeqCst) {
                let told = window.successes();
                assert!(told >= before, "{told} after {before}");
                assert!(told <= begun.load(SeqCst), "{told}");
                before = told;
            }
        });
        assert_eq!(window.successes(), 40_000);
    }

    #[test]
    fn a_call_that_leaves_before_it_was_added_never_makes_the_totals_read_as_huge() {
        let window = CountWindow::new(4, 0);
        window.shift(0, Kind::SlowFailure, Kind::Success);
        assert_eq!(window.sums(0), Sums::default());
        window.shift(0, Kind::Success, Kind::SlowFailure);
        assert_eq!(window.totals.load(Relaxed), zero(0));
    }

    #[test]
    fn totals_equal_the_slots_after_threads_have_raced() {
        for generation in 0..20 {
            let window = CountWindow::new(7, generation);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let window = &window;
                    scope.spawn(move || {
                        for call in 0..500 {
                            window.record(generation, Kind::ALL[(call * 7 + thread) % 4]);
                        }
                    });
                }
            });
            assert_eq!(window.sums(generation), window.recount(generation));
        }
    }
}
