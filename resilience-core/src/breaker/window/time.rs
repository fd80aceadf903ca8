//! Window over the last N seconds, in ten buckets, striped by thread.

use std::{
    sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst},
    time::Duration,
};

use crossbeam_utils::CachePadded;

use super::{Kind, Noted, Sums};
use crate::{clock::Moment, stripe, sync::atomic::AtomicU64};

/// How many buckets a window has. It slides in steps of one bucket, so what it covers is between nine and ten
/// tenths of its length.
pub(in crate::breaker) const BUCKETS: usize = if cfg!(all(loom, test)) { 2 } else { 10 };

/// Recording is one compare-and-swap on a cache line of the thread's own; reading adds up all stripes.
#[derive(Debug)]
pub(in crate::breaker) struct TimeWindow {
    /// Buckets per nanosecond, as a fraction of 2^64: a multiplication is half the price of a division.
    pace: u64,
    stripes: Box<[CachePadded<Stripe>]>,
    /// By kind, the highest total ever told.
    told: [AtomicU64; 4],
}

#[derive(Debug)]
struct Stripe {
    /// The latest bucket of time that this stripe was written in.
    latest: AtomicU64,
    /// By bucket of time modulo [`BUCKETS`], by [`Kind`]: see [`Cell`].
    cells: [[AtomicU64; 4]; BUCKETS],
    /// By kind, what has been counted in cells since written over.
    retired: [AtomicU64; 4],
}

impl TimeWindow {
    /// `stripes`: a power of two.
    pub(in crate::breaker) fn new(
        length: Duration,
        stripes: usize,
        generation: u64,
        now: Moment,
    ) -> Self {
        debug_assert!(stripes.is_power_of_two());
        let bucket = (length.as_nanos() / BUCKETS as u128).max(2);
        let window = Self {
            pace: u64::try_from((1u128 << 64) / bucket).unwrap_or(u64::MAX),
            stripes: (0..stripes)
                .map(|_| CachePadded::new(Stripe::new()))
                .collect(),
            told: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        window.reset(generation, now);
        window
    }

    /// Which bucket of time `now` lies in.
    #[inline]
    pub(in crate::breaker) fn tick(&self, now: Moment) -> u64 {
        ((u128::from(now.as_nanos()) * u128::from(self.pace)) >> 64) as u64
    }

    #[inline(always)]
    pub(in crate::breaker) fn record(&self, generation: u64, kind: Kind, now: Moment) -> Noted {
        let tick = self.tick(now);
        let stripe = self.stripe();
        if stripe.add_in_place(generation, tick, kind) {
            return Noted::Quietly;
        }
        stripe.add_anyhow(generation, tick, kind)
    }

    /// Counts a call if its cell counts for this bucket of time already, so that nothing slides. False: it was not counted.
    #[inline(always)]
    pub(super) fn record_in_place(&self, generation: u64, kind: Kind, now: Moment) -> bool {
        self.stripe().add_in_place(generation, self.tick(now), kind)
    }

    #[inline(always)]
    fn stripe(&self) -> &Stripe {
        &self.stripes[stripe::thread() & (self.stripes.len() - 1)]
    }

    /// What the window holds at `now`. Calls that end meanwhile may be missing; plain successes are read last, so
    /// that the share of the others is never made out to be higher than it was.
    pub(in crate::breaker) fn sums(&self, generation: u64, now: Moment) -> Sums {
        let tick = self.tick(now);
        let failures = self.sum(Kind::Failure, generation, tick);
        let both = self.sum(Kind::SlowFailure, generation, tick);
        let slow = self.sum(Kind::SlowSuccess, generation, tick);
        let successes = self.sum(Kind::Success, generation, tick);
        Sums {
            calls: successes + slow + failures + both,
            failures: failures + both,
            slow: slow + both,
        }
    }

    fn sum(&self, kind: Kind, generation: u64, tick: u64) -> u64 {
        self.stripes
            .iter()
            .filter(|stripe| stripe.latest.load(Relaxed) + BUCKETS as u64 > tick)
            .flat_map(|stripe| &stripe.cells)
            .map(|cells| Cell(cells[kind as usize].load(Relaxed)))
            .filter(|cell| cell.is_of(generation) && cell.age(tick) < BUCKETS as i64)
            .map(Cell::count)
            .sum()
    }

    pub(in crate::breaker) fn reset(&self, generation: u64, now: Moment) {
        let tick = self.tick(now);
        for stripe in &self.stripes {
            stripe.latest.store(tick, Relaxed);
            for tick in last_ticks(tick) {
                for kind in Kind::ALL {
                    let empty = Cell::new(generation, tick, 0);
                    let old = stripe.cell(tick, kind).swap(empty.0, AcqRel);
                    stripe.retire(kind, Cell(old));
                }
            }
        }
    }

    /// All calls of this kind ever recorded, by whatever generation. Never less than it was told before.
    pub(in crate::breaker) fn total(&self, kind: Kind) -> u64 {
        let stripes = self.stripes.iter();
        let total = stripes.map(|stripe| stripe.total(kind)).sum();
        self.told[kind as usize]
            .fetch_max(total, Relaxed)
            .max(total)
    }
}

impl Stripe {
    fn new() -> Self {
        Self {
            latest: AtomicU64::new(0),
            cells: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            retired: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn cell(&self, tick: u64, kind: Kind) -> &AtomicU64 {
        &self.cells[(tick % BUCKETS as u64) as usize][kind as usize]
    }

    /// Adds to a cell that counts for this generation and tick already, on a stripe that has slid up to this tick. False:
    /// it does not, or is full, and nothing was counted.
    #[inline(always)]
    fn add_in_place(&self, generation: u64, tick: u64, kind: Kind) -> bool {
        if self.latest.load(Relaxed) < tick {
            return false;
        }
        let (cell, stamp) = (
            self.cell(tick, kind),
            Cell::new(generation, tick, 0).stamp(),
        );
        let mut seen = Cell(cell.load(Relaxed));
        while seen.stamp() == stamp && !seen.is_full() {
            // SeqCst: as in `add`.
            match cell.compare_exchange_weak(seen.0, seen.0 + 1, SeqCst, Relaxed) {
                Ok(_) => return true,
                Err(other) => seen = Cell(other),
            }
        }
        false
    }

    #[cold]
    #[inline(never)]
    fn add_anyhow(&self, generation: u64, tick: u64, kind: Kind) -> Noted {
        let slid = self.latest.load(Relaxed) < tick && self.advance(generation, tick);
        match (self.add(generation, tick, kind), slid) {
            (false, _) => Noted::Stale,
            (true, false) => Noted::Quietly,
            (true, true) => Noted::AfterSliding,
        }
    }

    /// False: a later generation has the cell, and nothing was counted.
    fn add(&self, generation: u64, tick: u64, kind: Kind) -> bool {
        let cell = self.cell(tick, kind);
        let mut seen = Cell(cell.load(Relaxed));
        loop {
            if !seen.is_of(generation) {
                return false;
            }
            let outdated = seen.age(tick) > 0;
            let next = if outdated {
                Cell::new(generation, tick, 1)
            } else {
                seen.plus_one()
            };
            // SeqCst: of two threads that each count a call and then look, one must see both.
            match cell.compare_exchange_weak(seen.0, next.0, SeqCst, Relaxed) {
                Ok(_) => {
                    if outdated {
                        self.retire(kind, seen);
                    }
                    return true;
                }
                Err(other) => seen = Cell(other),
            }
        }
    }

    /// The first call of a new bucket of time clears what it slid past, so that no cell is ever older than the ring
    /// is long and the short stamps cannot be taken for later ones. True for the one caller who did it.
    #[cold]
    fn advance(&self, generation: u64, tick: u64) -> bool {
        let before = self.latest.fetch_max(tick, AcqRel);
        // Idle for so long that what is left in a cell may bear the very stamp that is now due.
        let stamps_mean_nothing = tick.saturating_sub(before) > 1 << 22;
        for tick in last_ticks(tick).filter(|&tick| tick > before) {
            for kind in Kind::ALL {
                self.clear(generation, tick, kind, stamps_mean_nothing);
            }
        }
        before < tick
    }

    fn clear(&self, generation: u64, tick: u64, kind: Kind, always: bool) {
        let (cell, empty) = (self.cell(tick, kind), Cell::new(generation, tick, 0));
        let mut seen = Cell(cell.load(Relaxed));
        while seen.is_of(generation) && (always || seen.age(tick) > 0) {
            match cell.compare_exchange_weak(seen.0, empty.0, AcqRel, Relaxed) {
                Ok(_) => return self.retire(kind, seen),
                Err(other) => seen = Cell(other),
            }
        }
    }

    fn retire(&self, kind: Kind, cell: Cell) {
        if cell.count() > 0 {
            self.retired[kind as usize].fetch_add(cell.count(), SeqCst);
        }
    }

    /// What is on its way from a cell to the retired is missing for that moment, and never counted twice.
    fn total(&self, kind: Kind) -> u64 {
        let retired = self.retired[kind as usize].load(SeqCst);
        let cells = self.cells.iter().map(|cells| &cells[kind as usize]);
        let live = cells.map(|cell| Cell(cell.load(SeqCst)).count());
        retired + live.sum::<u64>()
    }
}

fn last_ticks(tick: u64) -> impl Iterator<Item = u64> {
    (tick + 1).saturating_sub(BUCKETS as u64)..=tick
}

/// `generation (8 bits) | tick (24 bits) | count (32 bits)`. The cells of a window are all brought to each new
/// generation before any result of it can come, so eight bits are enough to tell "mine" from "no longer mine".
#[derive(Clone, Copy)]
struct Cell(u64);

impl Cell {
    const fn new(generation: u64, tick: u64, count: u32) -> Self {
        Self((generation & 0xff) << 56 | (tick & 0xff_ffff) << 32 | count as u64)
    }

    const fn is_of(self, generation: u64) -> bool {
        self.0 >> 56 == generation & 0xff
    }

    /// How many ticks older than `tick` this is; negative if younger.
    const fn age(self, tick: u64) -> i64 {
        // Both sides moved to the top bits, so that the difference wraps at 24 bits and keeps its sign.
        ((tick << 40).wrapping_sub((self.0 >> 32) << 40) as i64) >> 40
    }

    const fn count(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// Generation and tick.
    const fn stamp(self) -> u64 {
        self.0 >> 32
    }

    /// Four thousand million calls on one thread in one bucket.
    const fn is_full(self) -> bool {
        self.count() == 0xffff_ffff
    }

    /// Stays full when full.
    const fn plus_one(self) -> Self {
        Self(self.0 + !self.is_full() as u64)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(1 << 42) + Duration::from_millis(millis)
    }

    fn window(millis: u64) -> TimeWindow {
        TimeWindow::new(Duration::from_millis(millis), 2, 0, at(0))
    }

    #[test]
    fn an_age_is_right_across_the_end_of_the_short_stamp() {
        let late = Cell::new(0, 0xff_fffe, 0);
        assert_eq!(late.age(0x100_0001), 3);
        assert_eq!(Cell::new(0, 0x100_0001, 0).age(0xff_fffe), -3);
        assert_eq!(late.age(0xff_fffe), 0);
    }

    #[test]
    fn a_window_that_was_idle_for_the_whole_range_of_the_stamp_is_empty() {
        let window = window(1000);
        window.record(0, Kind::Failure, at(0));
        // A hundred milliseconds a tick: the 24 bits come round to the same stamp.
        let later = at(100 * (1 << 24));
        assert_eq!(window.sums(0, later), Sums::default());
        window.record(0, Kind::Success, later + Duration::from_millis(300));
        assert_eq!(window.sums(0, later + Duration::from_millis(300)).calls, 1);
        assert_eq!(window.total(Kind::Failure), 1);
    }

    #[test]
    fn a_full_cell_stays_full() {
        let full = Cell::new(3, 9, u32::MAX);
        assert_eq!(full.plus_one().0, full.0);
    }

    #[test]
    fn a_stale_result_is_not_counted_and_totals_outlive_resets() {
        let window = window(1000);
        window.record(0, Kind::Failure, at(0));
        window.reset(1, at(10));
        assert_eq!(window.record(0, Kind::Failure, at(20)), Noted::Stale);
        assert_eq!(window.sums(1, at(20)), Sums::default());
        assert_eq!(window.total(Kind::Failure), 1);
    }

    proptest! {
        #[test]
        fn holds_exactly_what_a_queue_of_results_would(
            steps in prop::collection::vec((0u64..3000, 0usize..4, any::<bool>()), 1..400),
        ) {
            let window = window(1000);
            let (mut queue, mut totals) = (VecDeque::new(), [0; 4]);
            let (mut now, mut generation) = (0, 0);
            for (step, kind, calm) in steps {
                // Mostly many calls in a bucket, sometimes a pause of some windows.
                now += if calm { step % 40 } else { step };
                if step % 97 == 13 {
                    generation += 1;
                    window.reset(generation, at(now));
                    queue.clear();
                }
                let tick = window.tick(at(now));
                window.record(generation, Kind::ALL[kind], at(now));
                queue.push_back((tick, Kind::ALL[kind]));
                totals[kind] += 1;
                queue.retain(|(then, _)| then + BUCKETS as u64 > tick);
                let count = |f: fn(&Kind) -> bool| queue.iter().filter(|(_, kind)| f(kind)).count() as u64;
                prop_assert_eq!(window.sums(generation, at(now)), Sums {
                    calls: queue.len() as u64,
                    failures: count(|kind| kind.failed()),
                    slow: count(|kind| kind.slow()),
                });
                for kind in Kind::ALL {
                    prop_assert_eq!(window.total(kind), totals[kind as usize]);
                }
            }
        }
    }

    #[test]
    fn a_total_never_goes_down_while_calls_leave_the_window() {
        let window = window(10);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for call in 0..100_000 {
                    window.record(0, Kind::Success, at(call / 20));
                }
                done.store(true, SeqCst);
            });
            let mut before = 0;
            while !done.load(SeqCst) {
                let total = window.total(Kind::Success);
                assert!(total >= before, "{total} after {before}");
                before = total;
            }
        });
        assert_eq!(window.total(Kind::Success), 100_000);
    }

    #[test]
    fn threads_lose_no_call() {
        let window = window(60_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..10_000).for_each(|_| {
                        window.record(0, Kind::Success, at(5));
                    })
                });
            }
        });
        assert_eq!(window.sums(0, at(5)).calls, 40_000);
    }
}
