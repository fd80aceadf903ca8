//! Waits between attempts.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;

use crate::error::InvalidConfig;

/// Waits before each attempt after the first. Cheap to clone.
///
/// | | wait before attempt n+1 |
/// |---|---|
/// | [`fixed`](Self::fixed) | constant |
/// | [`exponential`](Self::exponential) | `base * 2^(n-1)`, at most `max` |
/// | [`full_jitter`](Self::full_jitter) | evenly spread from zero to the exponential wait |
/// | [`decorrelated_jitter`](Self::decorrelated_jitter) | evenly spread from `base` to three times the previous wait, at most `max` |
/// | [`custom`](Self::custom) | the next item of an iterator, until it ends |
///
/// Without jitter, clients that failed together retry together. Both kinds of jitter need far fewer calls until all
/// clients are served. Full jitter spreads widest and may retry at once; decorrelated jitter never waits less than
/// `base`, which is why it is the default.
///
/// # References
/// Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::retry::Backoff;
///
/// let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_millis(150));
/// let waits: Vec<_> = backoff.delays().take(4).map(|wait| wait.as_millis()).collect();
/// assert_eq!(waits, [50, 100, 150, 150]);
/// ```
#[derive(Clone)]
pub struct Backoff {
    kind: Kind,
    seeded: Option<Seeded>,
}

#[derive(Clone)]
enum Kind {
    Fixed(Duration),
    Exponential { base: Duration, max: Duration },
    FullJitter { base: Duration, max: Duration },
    DecorrelatedJitter { base: Duration, max: Duration },
    Custom(Arc<dyn Fn() -> Custom + Send + Sync>),
}

type Custom = Box<dyn Iterator<Item = Duration> + Send>;

#[derive(Clone)]
struct Seeded {
    seed: u64,
    calls: Arc<AtomicU64>,
}

impl Backoff {
    /// A constant `wait`; zero retries at once.
    #[must_use]
    pub const fn fixed(wait: Duration) -> Self {
        Self::new(Kind::Fixed(wait))
    }

    /// `base`, doubled each time, at most `max`. No jitter: clients that failed together retry together.
    #[must_use]
    pub const fn exponential(base: Duration, max: Duration) -> Self {
        Self::new(Kind::Exponential { base, max })
    }

    /// Evenly spread between zero and the wait of [`exponential`](Self::exponential).
    #[must_use]
    pub const fn full_jitter(base: Duration, max: Duration) -> Self {
        Self::new(Kind::FullJitter { base, max })
    }

    /// Evenly spread between `base` and three times the previous wait, at most `max`.
    #[must_use]
    pub const fn decorrelated_jitter(base: Duration, max: Duration) -> Self {
        Self::new(Kind::DecorrelatedJitter { base, max })
    }

    /// The items of an iterator that `delays` makes for each retried call. When it ends, the call is not retried again.
    /// Costs one allocation per retried call, none for a call that passes.
    #[must_use]
    pub fn custom<F, I>(delays: F) -> Self
    where
        F: Fn() -> I + Send + Sync + 'static,
        I: IntoIterator<Item = Duration>,
        I::IntoIter: Send + 'static,
    {
        Self::new(Kind::Custom(Arc::new(move || {
            Box::new(delays().into_iter())
        })))
    }

    /// Makes jitter repeatable: the nth retried call draws the same waits in every run. Clones continue the same
    /// sequence.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        let calls = Arc::new(AtomicU64::new(0));
        self.seeded = Some(Seeded { seed, calls });
        self
    }

    /// The waits of one call, in order.
    #[must_use]
    pub fn delays(&self) -> Delays {
        Delays(match self.kind {
            Kind::Fixed(wait) => Sequence::Fixed(wait),
            Kind::Exponential { base, max } => Sequence::Exponential { next: base, max },
            Kind::FullJitter { base, max } => {
                let rng = self.rng();
                Sequence::FullJitter {
                    next: base,
                    max,
                    rng,
                }
            }
            Kind::DecorrelatedJitter { base, max } => {
                let rng = self.rng();
                Sequence::DecorrelatedJitter {
                    base,
                    before: base,
                    max,
                    rng,
                }
            }
            Kind::Custom(ref delays) => Sequence::Custom(delays()),
        })
    }

    const fn new(kind: Kind) -> Self {
        Self { kind, seeded: None }
    }

    fn rng(&self) -> Rng {
        let Some(Seeded { seed, calls }) = &self.seeded else {
            return Rng::new();
        };
        // Spread out, so that the sequences of consecutive calls have nothing in common.
        let call = calls
            .fetch_add(1, Relaxed)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Rng::with_seed(seed.wrapping_add(call))
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidConfig> {
        match self.kind {
            Kind::Fixed(_) | Kind::Custom(_) => Ok(()),
            Kind::Exponential { base, max }
            | Kind::FullJitter { base, max }
            | Kind::DecorrelatedJitter { base, max } => {
                if base.is_zero() {
                    return Err(InvalidConfig::new(
                        "backoff",
                        base,
                        "its base must be above zero",
                    ));
                }
                if max < base {
                    return Err(InvalidConfig::new(
                        "backoff",
                        max,
                        "its max must not be below its base",
                    ));
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Fixed(wait) => write!(f, "Backoff::fixed({wait:?})"),
            Kind::Exponential { base, max } => write!(f, "Backoff::exponential({base:?}, {max:?})"),
            Kind::FullJitter { base, max } => write!(f, "Backoff::full_jitter({base:?}, {max:?})"),
            Kind::DecorrelatedJitter { base, max } => {
                write!(f, "Backoff::decorrelated_jitter({base:?}, {max:?})")
            }
            Kind::Custom(_) => f.write_str("Backoff::custom(..)"),
        }
    }
}

/// The waits of one call. See [`Backoff::delays`].
pub struct Delays(Sequence);

enum Sequence {
    Fixed(Duration),
    Exponential {
        next: Duration,
        max: Duration,
    },
    FullJitter {
        next: Duration,
        max: Duration,
        rng: Rng,
    },
    DecorrelatedJitter {
        base: Duration,
        before: Duration,
        max: Duration,
        rng: Rng,
    },
    Custom(Custom),
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        match &mut self.0 {
            Sequence::Fixed(wait) => Some(*wait),
            Sequence::Exponential { next, max } => Some(double(next, *max)),
            Sequence::FullJitter { next, max, rng } => {
                let ceiling = double(next, *max);
                Some(between(rng, Duration::ZERO, ceiling))
            }
            Sequence::DecorrelatedJitter {
                base,
                before,
                max,
                rng,
            } => {
                let ceiling = before.saturating_mul(3).min(*max);
                *before = between(rng, *base, ceiling);
                Some(*before)
            }
            Sequence::Custom(delays) => delays.next(),
        }
    }
}

impl fmt::Debug for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delays").finish_non_exhaustive()
    }
}

/// Returns `next`, at most `max`, and doubles it.
fn double(next: &mut Duration, max: Duration) -> Duration {
    let now = (*next).min(max);
    *next = now.saturating_mul(2);
    now
}

/// Evenly spread over `low..=high`, to the nanosecond; at most 584 years.
fn between(rng: &mut Rng, low: Duration, high: Duration) -> Duration {
    let nanos = |wait: Duration| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    let (low, high) = (nanos(low), nanos(high));
    Duration::from_nanos(rng.u64(low..=high.max(low)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base_and_max() -> impl Strategy<Value = (Duration, Duration)> {
        let nanos = || prop_oneof![1..1000u64, 1..u64::MAX, Just(u64::MAX)];
        (nanos(), nanos()).prop_map(|(one, other)| {
            (
                Duration::from_nanos(one.min(other)),
                Duration::from_nanos(one.max(other)),
            )
        })
    }

    proptest! {
        #[test]
        fn exponential_doubles_up_to_its_maximum_without_overflow((base, max) in base_and_max(), n in 0..200u32) {
            let wait = Backoff::exponential(base, max).delays().nth(n as usize).unwrap();
            let exact = if n < 64 { base.as_nanos() << n } else { u128::MAX };
            prop_assert_eq!(wait.as_nanos(), exact.min(max.as_nanos()));
        }

        #[test]
        fn full_jitter_never_exceeds_exponential((base, max) in base_and_max(), seed: u64) {
            let jitter = Backoff::full_jitter(base, max).seed(seed).delays();
            for (wait, ceiling) in jitter.zip(Backoff::exponential(base, max).delays()).take(100) {
                prop_assert!(wait <= ceiling);
            }
        }

        #[test]
        fn decorrelated_jitter_stays_between_base_and_thrice_the_wait_before((base, max) in base_and_max(), seed: u64) {
            let mut before = base;
            for wait in Backoff::decorrelated_jitter(base, max).seed(seed).delays().take(100) {
                prop_assert!(wait >= base && wait <= max && wait <= before.saturating_mul(3));
                before = wait;
            }
        }

        #[test]
        fn a_seed_makes_jitter_repeatable((base, max) in base_and_max(), seed: u64) {
            for make in [Backoff::full_jitter, Backoff::decorrelated_jitter] {
                let (one, other) = (make(base, max).seed(seed), make(base, max).seed(seed));
                for _ in 0..3 {
                    let (one, other) = (one.delays().take(9), other.delays().take(9));
                    prop_assert!(one.eq(other));
                }
            }
        }

        #[test]
        fn fixed_is_fixed(nanos: u64) {
            let wait = Duration::from_nanos(nanos);
            prop_assert!(Backoff::fixed(wait).delays().take(9).all(|each| each == wait));
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn extreme_durations_do_not_overflow() {
        for backoff in [
            Backoff::fixed(Duration::MAX),
            Backoff::exponential(Duration::MAX, Duration::MAX),
            Backoff::full_jitter(Duration::MAX, Duration::MAX),
            Backoff::decorrelated_jitter(Duration::MAX, Duration::MAX),
        ] {
            assert_eq!(backoff.delays().take(100).count(), 100, "{backoff:?}");
        }
    }

    #[test]
    fn two_calls_under_one_seed_draw_different_waits() {
        let backoff = Backoff::full_jitter(secs(1), secs(60)).seed(7);
        let (one, other) = (backoff.delays().next(), backoff.delays().next());
        assert_ne!(one, other);
    }

    #[test]
    fn full_jitter_covers_its_range_evenly() {
        let mean = mean_of(&Backoff::full_jitter(secs(10), secs(10)));
        assert!(
            mean.abs_diff(secs(5)) < Duration::from_millis(200),
            "{mean:?}"
        );
    }

    #[test]
    fn decorrelated_jitter_covers_its_range_evenly() {
        let mean = mean_of(&Backoff::decorrelated_jitter(secs(10), secs(100)));
        assert!(
            mean.abs_diff(secs(20)) < Duration::from_millis(400),
            "{mean:?}"
        );
    }

    fn mean_of(backoff: &Backoff) -> Duration {
        let backoff = backoff.clone().seed(42);
        let firsts = (0..10_000).filter_map(|_| backoff.delays().next());
        firsts.sum::<Duration>() / 10_000
    }

    #[test]
    fn a_custom_backoff_starts_anew_for_each_call_and_ends_when_its_iterator_does() {
        let backoff = Backoff::custom(|| [secs(1), secs(5)]);
        for _ in 0..2 {
            assert!(backoff.delays().eq([secs(1), secs(5)]));
        }
    }

    #[test]
    fn a_backoff_that_cannot_grow_is_refused() {
        let zero = Backoff::exponential(Duration::ZERO, secs(1)).validate();
        assert!(zero.unwrap_err().to_string().contains("above zero"));
        let upside_down = Backoff::full_jitter(secs(2), secs(1)).validate();
        assert!(
            upside_down
                .unwrap_err()
                .to_string()
                .contains("below its base")
        );
        assert!(Backoff::fixed(Duration::ZERO).validate().is_ok());
    }
}
