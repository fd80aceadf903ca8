//! Durations on their way to a store, and the time of a record.

use std::time::Duration;

use crate::clock::Moment;

/// Whole milliseconds, as store traits and scripts take them.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Until when the holder of a lease can be certain of it. The store counts the lease from when it receives the request,
/// which is after `sent`; the last twentieth is left to clocks that run at different speeds and to pauses of the process.
pub(crate) fn certain_until(sent: Moment, lease: Duration) -> Moment {
    sent + lease.mul_f64(0.95)
}

/// `interval`, up to a fifth shorter or longer: instances that started together must not go on together.
pub(crate) fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Time of one record, which follows its store's clock and never goes back.
///
/// A store's clock is set back by its operator, by NTP, or by a failover to a server whose clock is behind. Moments of such a
/// record would then be in the future: what it holds would last longer by the size of the step. Therefore the record keeps the
/// latest time it was changed at. When the clock shows less, the time of the record goes on from there, ahead of the clock by a
/// constant lead, until the clock is beyond it again:
///
/// ```text
/// clock    10:00  10:01 | 9:01  9:02 | 10:03      (set back by an hour, and forward again)
/// record   10:00  10:01 | 10:01 10:02 | 10:03
/// ```
///
/// So nothing lasts longer than it was asked for, but for the time since the record was last changed; a clock that goes to and
/// fro is no time gained; and moments of a record may be compared with each other, but not with those of another one.
///
/// A clock set forward cannot be told from time that has passed. What the record holds then ends early, once.
///
/// Stores keep one for each record, and pass its time to the record's steps. The unit is the store's.
///
/// ```
/// use resilience_core::fleet::RecordClock;
///
/// let clock = RecordClock::default().read(36_000);
/// let set_back = clock.read(32_400);
/// assert_eq!((set_back.now(), set_back.lead()), (36_000, 3_600));
/// assert_eq!(set_back.read(32_460).now(), 36_060);
/// assert_eq!(set_back.read(36_070).now(), 36_070);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RecordClock {
    now: u64,
    lead: u64,
}

impl RecordClock {
    /// The clock of a record as it was kept: the latest time of the record, and the lead at that time.
    #[must_use]
    pub const fn new(now: u64, lead: u64) -> Self {
        Self { now, lead }
    }

    /// The clock of the record when the store's clock shows `shown`.
    #[must_use]
    pub const fn read(self, shown: u64) -> Self {
        let lead = if shown >= self.now {
            // As far as the record: never set back, or forward again.
            0
        } else if shown.saturating_add(self.lead) >= self.now {
            self.lead
        } else {
            // Set back, by at least this much.
            self.now - shown
        };
        Self {
            now: shown.saturating_add(lead),
            lead,
        }
    }

    /// The time of the record.
    #[must_use]
    pub const fn now(self) -> u64 {
        self.now
    }

    /// How far the record is ahead of the store's clock. Zero, unless that was set back.
    #[must_use]
    pub const fn lead(self) -> u64 {
        self.lead
    }
}

/// The end of what began or was renewed before `now`, and was to last for `length` from then on: a later end than that is one
/// by a clock that was set back since.
#[cfg(any(feature = "idempotency", feature = "stream"))]
pub(crate) const fn at_most(end: u64, now: u64, length: u64) -> u64 {
    let longest = now.saturating_add(length);
    if end < longest { end } else { longest }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_record_goes_on_at_its_own_pace_when_the_clock_is_set_back() {
        let mut clock = RecordClock::default().read(10 * HOUR);
        for passed in 1..100 {
            clock = clock.read(9 * HOUR + passed);
            // The first reading tells of the step, and not how long ago it was.
            assert_eq!(clock.now(), 10 * HOUR + passed - 1);
        }
        clock = clock.read(4 * HOUR);
        assert_eq!(clock.now(), 10 * HOUR + 98, "set back once more");
        assert_eq!(clock.read(4 * HOUR + 5).now(), 10 * HOUR + 103);
    }

    #[test]
    fn a_clock_that_goes_to_and_fro_gains_no_time() {
        let mut clock = RecordClock::default().read(HOUR);
        for step in 0..50 {
            let passed = step * 10;
            clock = clock.read(passed + 5);
            clock = clock.read(HOUR + passed + 10);
        }
        assert_eq!(clock, RecordClock::new(HOUR + 500, 0));
    }

    #[test]
    fn time_never_goes_back_and_never_stands_still_for_long() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..1_000 {
            let (mut clock, mut shown) = (RecordClock::default(), rng.u64(HOUR..100 * HOUR));
            for _ in 0..50 {
                let before = clock.read(shown);
                clock = before;
                if rng.u8(0..4) == 0 {
                    shown = rng.u64(0..100 * HOUR);
                    clock = clock.read(shown);
                    assert!(clock.now() >= before.now());
                }
                let passed = rng.u64(0..HOUR);
                shown += passed;
                let then = clock.read(shown).now();
                // It may have been ahead, where the clock is now.
                assert!(then == clock.now() + passed || then == shown && then >= clock.now());
            }
        }
    }

    #[test]
    fn an_end_is_no_further_away_than_what_it_ends_was_to_last() {
        assert_eq!(at_most(15, 10, 20), 15);
        assert_eq!(at_most(3_615, 10, 20), 30);
        assert_eq!(at_most(u64::MAX, 10, u64::MAX), u64::MAX);
    }
}
