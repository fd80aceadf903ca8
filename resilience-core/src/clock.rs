//! Monotonic time for the state machines, from the cheapest clock that tests can control.
//!
//! State machines never read a clock: they are handed a [`Moment`]. The layer in front of them reads it from a
//! [`Clock`]. There are two, and a handle picks one when it is built ([`Clock::auto`]):
//!
//! - the processor's time stamp counter, calibrated once (about 10 ns per reading; `std`'s takes 25);
//! - tokio's clock, which `tokio::time::pause` stops and `advance` moves: under a paused clock, and in debug builds.
//!
//! # Time in tests
//!
//! A paused tokio clock is the manual clock of every handle and layer: timeouts, backoffs, open intervals, windows, buckets,
//! leases and the in-process stores follow it. It takes tokio's feature `test-util` and a runtime of one thread, as
//! `#[tokio::test(start_paused = true)]` makes. `tokio::time::advance` moves it by hand; while all tasks wait, it moves by
//! itself to the next timer, so that a test that waits for an hour takes no time.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{CircuitBreaker, Error, Rejected, breaker::{OpenFor, State}, execute::Stack};
//!
//! # // In a test: #[tokio::test(start_paused = true)]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::time::pause();
//! let open_for = OpenFor::fixed(Duration::from_secs(60));
//! let breaker = CircuitBreaker::builder("stock").consecutive_failures(1).open_for(open_for).build()?;
//! let stock = Stack::builder().breaker(&breaker).build();
//!
//! let down = stock.call(async || Err::<(), _>("down")).await;
//! assert_eq!(down, Err(Error::Service("down")));
//! let rejected = stock.call(async || Ok::<_, &str>(7)).await;
//! assert_eq!(rejected.unwrap_err().rejected().and_then(Rejected::retry_after), Some(Duration::from_secs(60)));
//!
//! tokio::time::advance(Duration::from_secs(60)).await;
//! assert_eq!(stock.call(async || Ok::<_, &str>(7)).await, Ok(7)); // a probe
//! assert_eq!(breaker.snapshot().state, State::HalfOpen);
//! # Ok(()) }
//! ```
//!
//! What does not follow it:
//! - in a release build, handles that were built before the clock was paused: they read the processor's counter, unless they
//!   were built with [`Clock::tokio`] (`.clock(..)` of the builders);
//! - other processes: a Redis decides about its leases and buckets by its own `TIME`, a database by its own clock;
//! - sockets: while a test waits for a real server, all tasks wait, and the clock jumps to the next timer. A test with a real
//!   server runs on real time, or replaces the server by an in-process store or a service of the test;
//! - threads (`spawn_blocking`, `std::thread::sleep`), and dates: a `Retry-After` with a date is compared with the system's clock.

// The only place that uses std's clock: the base that tokio's clock is measured from.
#![allow(clippy::disallowed_types)]

use std::{
    ops::Add,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// A point in time of this process: nanoseconds on a [`Clock`]. Comparable between all handles that use the same
/// clock; not to be stored, sent, or compared with another process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment `nanos` nanoseconds after the clock's zero. State machines keep moments in atomics as plain numbers.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero if this moment is not later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment `time` before this one; the clock's zero at the earliest.
    #[cfg(feature = "cache")]
    pub(crate) fn earlier(self, time: Duration) -> Self {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanos))
    }
}

/// Saturates 584 years after the clock's zero.
impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Source of time of a layer. One byte, `Copy`.
///
/// Cost of a reading: about 10 ns ([`fast`](Self::fast)) or 25 ns ([`tokio`](Self::tokio)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock(Source);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Fast,
    Tokio,
}

/// The first moment: so far above zero that no subtraction underflows.
const ZERO: u64 = 1 << 42;

impl Clock {
    /// The processor's counter. The first use in a process calibrates it (some milliseconds).
    #[must_use]
    pub fn fast() -> Self {
        counter();
        Self(Source::Fast)
    }

    /// Tokio's clock, the one that `tokio::time::pause` and `advance` control.
    #[must_use]
    pub fn tokio() -> Self {
        base();
        Self(Source::Tokio)
    }

    /// The default of every handle: tokio's clock in debug builds and where it is paused at this moment, the
    /// processor's counter elsewhere.
    #[must_use]
    pub fn auto() -> Self {
        if cfg!(debug_assertions) || tokio_is_paused() {
            Self::tokio()
        } else {
            Self::fast()
        }
    }

    /// The time now.
    #[inline]
    #[must_use]
    pub fn now(self) -> Moment {
        match self.0 {
            Source::Fast => {
                let (clock, start) = counter();
                Moment(ZERO + clock.delta_as_nanos(*start, clock.raw()))
            }
            Source::Tokio => since_base(tokio::time::Instant::now().into_std()),
        }
    }

    /// Whether this is tokio's clock: one bit, for values that keep a clock and a moment in one word.
    #[inline]
    pub(crate) const fn is_tokio(self) -> bool {
        matches!(self.0, Source::Tokio)
    }

    /// The clock for a bit from [`is_tokio`](Self::is_tokio).
    #[inline]
    pub(crate) const fn from_is_tokio(tokio: bool) -> Self {
        Self(if tokio { Source::Tokio } else { Source::Fast })
    }

    /// The same moment for tokio's timers.
    #[must_use]
    pub fn instant(self, at: Moment) -> tokio::time::Instant {
        let now = tokio::time::Instant::now();
        let ahead = at.since(self.now());
        // Beyond what tokio can represent: 30 years, as tokio itself does.
        now.checked_add(ahead)
            .unwrap_or(now + Duration::from_secs(86_400 * 365 * 30))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::auto()
    }
}

#[inline]
fn counter() -> &'static (quanta::Clock, u64) {
    static COUNTER: OnceLock<(quanta::Clock, u64)> = OnceLock::new();
    COUNTER.get_or_init(|| {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        (clock, start)
    })
}

/// Real time, not tokio's: the first caller may be a test whose paused clock has run far ahead.
fn base() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    *BASE.get_or_init(Instant::now)
}

/// A paused clock stands still while real time goes on, so it may well be behind a base that another test has set.
fn since_base(now: Instant) -> Moment {
    let base = base();
    match now.checked_duration_since(base) {
        Some(ahead) => Moment(ZERO) + ahead,
        None => Moment(ZERO.saturating_sub(base.duration_since(now).as_nanos() as u64)),
    }
}

/// A running clock reads between two readings of the real one; a paused one has fallen behind or run ahead.
fn tokio_is_paused() -> bool {
    let before = Instant::now();
    let tokio = tokio::time::Instant::now().into_std();
    tokio < before || tokio > Instant::now()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_moment_saturates_at_both_ends() {
        let zero = Moment::from_nanos(0);
        assert_eq!(zero.since(zero + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(zero + Duration::MAX, Moment::from_nanos(u64::MAX));
    }

    #[test]
    fn the_fast_clock_keeps_pace_with_the_real_one() {
        let clock = Clock::fast();
        let (started, start) = (Instant::now(), clock.now());
        while started.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let (counted, real) = (clock.now().since(start), started.elapsed());
        assert!(
            counted.abs_diff(real) < Duration::from_millis(2),
            "{counted:?} against {real:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_is_noticed_and_followed() {
        assert!(tokio_is_paused());
        let clock = Clock::tokio();
        let start = clock.now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(3600));
    }

    #[test]
    fn a_clock_behind_the_base_still_moves() {
        let behind = base().checked_sub(Duration::from_secs(60)).unwrap();
        let later = behind + Duration::from_millis(5);
        let moved = since_base(later).since(since_base(behind));
        assert_eq!(moved, Duration::from_millis(5));
    }

    #[tokio::test]
    async fn a_running_clock_is_not_taken_for_a_paused_one() {
        assert!((0..1000).all(|_| !tokio_is_paused()));
    }

    #[tokio::test(start_paused = true)]
    async fn timers_end_at_the_moment_asked_for() {
        let clock = Clock::tokio();
        let at = clock.now() + Duration::from_millis(250);
        tokio::time::sleep_until(clock.instant(at)).await;
        assert!(clock.now() >= at);
    }
}
