//! An estimate of the server's clock that costs no command, its steps, and the floor of what is made of it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{
        AtomicI64, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use tokio::time::Instant;

/// A difference of clocks below this, in microseconds, is no step: nodes of a Cluster differ, and answers are late.
pub(crate) const STEP: u64 = 1_000_000;

/// Microseconds after which the time is asked for, where that matters.
const STALE: i64 = 500_000;

/// The server's clock as of its last answer, plus the time since: behind by the time that an answer takes. A step of the
/// server's clock is noticed with the next answer.
#[derive(Debug)]
pub(crate) struct ServerClock {
    origin: Instant,
    /// The server's time at the origin, in microseconds.
    shown: AtomicI64,
    /// When that was noted, in microseconds after the origin.
    noted: AtomicI64,
    /// The fleet's time at the origin, in microseconds; zero: not known.
    fleet: AtomicI64,
    /// The highest fence that this process was given.
    fence: AtomicU64,
    /// Between what and what the server's time at the origin was, by the last sample.
    sample: Mutex<Option<(i64, i64)>>,
}

impl ServerClock {
    pub(super) fn new() -> Self {
        Self {
            origin: Instant::now(),
            shown: AtomicI64::new(0),
            noted: AtomicI64::new(0),
            fleet: AtomicI64::new(0),
            fence: AtomicU64::new(0),
            sample: Mutex::new(None),
        }
    }

    /// Notes that an answer, just received, contained the time `micros`.
    pub(crate) fn shows(&self, micros: u64) {
        let passed = self.passed();
        self.shown.store(signed(micros) - passed, Relaxed);
        self.noted.store(passed, Relaxed);
    }

    /// Whether no answer has contained the time for half a second: the clock may have been set since.
    pub(crate) fn is_stale(&self) -> bool {
        self.passed() - self.noted.load(Relaxed) > STALE
    }

    /// The estimated time, in microseconds.
    pub(crate) fn now(&self) -> u64 {
        let now = self.shown.load(Relaxed).saturating_add(self.passed());
        now.try_into().unwrap_or(0)
    }

    /// Notes a time `micros` that the server's clock has shown between `sent` and now. Returns by how many microseconds it was
    /// set since the last sample, if it was: at least by that.
    pub(super) fn sample(&self, sent: Instant, micros: u64) -> Option<i64> {
        self.shows(micros);
        let sent = self.since_origin(sent);
        let (low, high) = (signed(micros) - self.passed(), signed(micros) - sent);
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let (lowest, highest) = sample.replace((low, high))?;
        let step = if low > highest {
            low - highest
        } else {
            (high - lowest).min(0)
        };
        (step.unsigned_abs() > STEP).then_some(step)
    }

    /// Notes the fleet's time, in microseconds: the latest that any instance knows of.
    pub(crate) fn fleet_shows(&self, micros: u64) {
        self.fleet.store(signed(micros) - self.passed(), Relaxed);
    }

    /// Notes a fence that this process was given.
    pub(crate) fn gave(&self, fence: u64) {
        self.fence.fetch_max(fence, AcqRel);
    }

    /// A time that the server's clock was at, as far as this process knows, in microseconds: what is made of the clock is
    /// made of this, if the clock is behind it by more than a [`STEP`]. Fences then rise although their record was lost.
    pub(crate) fn floor(&self) -> u64 {
        let fleet = match self.fleet.load(Relaxed) {
            0 => 0,
            origin => origin + self.passed(),
        };
        let fleet = u64::try_from(fleet).unwrap_or(0);
        fleet.max(self.fence.load(Acquire))
    }

    fn passed(&self) -> i64 {
        self.since_origin(Instant::now())
    }

    fn since_origin(&self, then: Instant) -> i64 {
        let passed = then.saturating_duration_since(self.origin).as_micros();
        i64::try_from(passed).unwrap_or(i64::MAX)
    }
}

/// Times are below 2^53; more is no time.
fn signed(micros: u64) -> i64 {
    micros.min(1 << 53).cast_signed()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_from_what_it_showed_last() {
        let clock = ServerClock::new();
        tokio::time::advance(Duration::from_secs(5)).await;
        clock.shows(1_700_000_000_000_000);
        tokio::time::advance(Duration::from_millis(3)).await;
        assert_eq!(clock.now(), 1_700_000_000_003_000);
        // Set back, by its operator.
        clock.shows(1_600_000_000_000_000);
        tokio::time::advance(Duration::from_micros(7)).await;
        assert_eq!(clock.now(), 1_600_000_000_000_007);
        clock.shows(u64::MAX);
        assert_eq!(clock.now(), 1 << 53);
    }

    const HOUR: u64 = 3_600_000_000;

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_clock_is_told_from_an_answer_that_took_long() {
        let (clock, second) = (ServerClock::new(), Duration::from_secs(1));
        let mut shown = 1_700_000_000_000_000;
        assert_eq!(clock.sample(Instant::now(), shown), None, "the first");
        for late in [0, 3, 0, 20, 0] {
            tokio::time::advance(second * 5).await;
            shown += 5_000_000;
            let sent = Instant::now();
            tokio::time::advance(second * late).await;
            assert_eq!(clock.sample(sent, shown), None, "{late} s late");
            shown += 1_000_000 * u64::from(late);
        }
        assert_eq!(
            clock.sample(Instant::now(), shown - HOUR),
            Some(-3_600_000_000)
        );
        assert_eq!(clock.sample(Instant::now(), shown - HOUR), None, "once");
        assert_eq!(clock.sample(Instant::now(), shown), Some(3_600_000_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_floor_is_what_was_seen_whatever_the_clock_shows_now() {
        let clock = ServerClock::new();
        assert_eq!(clock.floor(), 0);
        clock.gave(1_700_000_000_000_000);
        clock.gave(1_600_000_000_000_000);
        clock.shows(1_500_000_000_000_000);
        assert_eq!(clock.floor(), 1_700_000_000_000_000);
        clock.fleet_shows(1_700_000_000_000_000 + HOUR);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(clock.floor(), 1_700_000_009_000_000 + HOUR);
    }
}
