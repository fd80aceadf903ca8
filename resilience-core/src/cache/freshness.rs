//! What a value is good for, by its age. Pure: no clock, no randomness of its own.
//!
//! # References
//! - `stale-while-revalidate`, `stale-if-error`: [RFC 5861](https://www.rfc-editor.org/rfc/rfc5861).
//! - XFetch: Vattani, Chierichetti, Lowenstein, [Optimal Probabilistic Cache Stampede
//!   Prevention](https://www.vldb.org/pvldb/vol8/p886-vattani.pdf) (VLDB 2015).

use std::time::Duration;

/// What a value is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Serve it.
    Fresh,
    /// Serve it, and load it again meanwhile, before it is stale.
    Early,
    /// Serve it, and load it again meanwhile.
    Stale,
    /// Load; serve it if that fails.
    Fallback,
    /// Load.
    Gone,
}

/// When a value is loaded again before it is stale.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RefreshEarly {
    /// With a probability that rises as the end comes near, sooner the longer the load took (XFetch). A higher factor
    /// refreshes earlier; 1 is the paper's.
    Probability(f64),
    /// From this fraction of its time to live on, e.g. 0.8.
    Threshold(f64),
}

/// The windows of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Windows {
    pub(super) while_revalidate: Duration,
    pub(super) if_error: Duration,
    pub(super) early: Option<RefreshEarly>,
}

/// A value's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) age: Duration,
    /// How long it is fresh.
    pub(super) fresh: Duration,
    /// How long it took to load.
    pub(super) load: Duration,
    /// Whether it says that there is no value.
    pub(super) negative: bool,
}

impl Windows {
    /// How long a value that is fresh for `fresh` is kept.
    pub(super) fn keep(&self, fresh: Duration, negative: bool) -> Duration {
        if negative {
            return fresh;
        }
        fresh.saturating_add(self.while_revalidate.max(self.if_error))
    }

    /// What a value is good for. `random`: a number from 0 to 1, asked for when the end is near.
    #[inline]
    pub(super) fn judge(&self, times: &Times, random: impl FnOnce() -> f64) -> Use {
        if times.age < times.fresh {
            return match self.early {
                Some(early) if early.is_due(times, random) => Use::Early,
                _ => Use::Fresh,
            };
        }
        let over = times.age - times.fresh;
        if times.negative {
            Use::Gone
        } else if over < self.while_revalidate {
            Use::Stale
        } else if over < self.if_error {
            Use::Fallback
        } else {
            Use::Gone
        }
    }
}

impl RefreshEarly {
    #[inline]
    fn is_due(self, times: &Times, random: impl FnOnce() -> f64) -> bool {
        match self {
            Self::Threshold(fraction) => times.age >= times.fresh.mul_f64(fraction),
            Self::Probability(beta) => {
                let left = (times.fresh - times.age).as_secs_f64();
                let scale = beta * times.load.as_secs_f64();
                // Below e^-20 otherwise: no logarithm on an ordinary hit.
                left <= 20.0 * scale && -scale * random().max(f64::MIN_POSITIVE).ln() >= left
            }
        }
    }

    pub(super) fn is_sensible(self) -> bool {
        match self {
            Self::Probability(beta) => beta > 0.0 && beta <= 100.0,
            Self::Threshold(fraction) => fraction > 0.0 && fraction < 1.0,
        }
    }
}

/// `ttl`, shorter by up to `jitter` of it: values that are stored together do not end together. `random`: from 0 to 1.
pub(super) fn jittered(ttl: Duration, jitter: f64, random: f64) -> Duration {
    ttl.mul_f64(1.0 - jitter * random)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WINDOWS: Windows = Windows {
        while_revalidate: Duration::from_secs(5),
        if_error: Duration::from_secs(60),
        early: None,
    };

    fn times(age: u64) -> Times {
        Times {
            age: SECOND * age as u32,
            fresh: SECOND * 10,
            load: SECOND,
            negative: false,
        }
    }

    fn judged(age: u64) -> Use {
        WINDOWS.judge(&times(age), || unreachable!())
    }

    #[test]
    fn a_value_is_fresh_then_stale_then_a_fallback_then_gone() {
        let uses = [0, 9, 10, 14, 15, 69, 70].map(judged);
        use Use::{Fallback, Fresh, Gone, Stale};
        assert_eq!(uses, [Fresh, Fresh, Stale, Stale, Fallback, Fallback, Gone]);
        assert_eq!(WINDOWS.keep(SECOND * 10, false), SECOND * 70);
    }

    #[test]
    fn a_negative_value_is_never_stale() {
        let negative = Times {
            negative: true,
            ..times(10)
        };
        assert_eq!(WINDOWS.judge(&negative, || 0.5), Use::Gone);
        assert_eq!(WINDOWS.keep(SECOND, true), SECOND);
    }

    #[test]
    fn a_threshold_is_a_fraction_of_the_time_to_live() {
        let windows = Windows {
            early: Some(RefreshEarly::Threshold(0.8)),
            ..WINDOWS
        };
        assert_eq!(windows.judge(&times(7), || 0.0), Use::Fresh);
        assert_eq!(windows.judge(&times(8), || 0.0), Use::Early);
    }

    #[test]
    fn xfetch_refreshes_with_the_probability_of_the_paper() {
        let windows = Windows {
            early: Some(RefreshEarly::Probability(1.0)),
            ..WINDOWS
        };
        // P = exp(-left / (beta * load)).
        for (age, expected) in [(9, (-1.0_f64).exp()), (8, (-2.0_f64).exp())] {
            let early = (0..100_000).filter(|draw| {
                let random = (f64::from(*draw) + 0.5) / 100_000.0;
                windows.judge(&times(age), || random) == Use::Early
            });
            let share = early.count() as f64 / 100_000.0;
            assert!((share - expected).abs() < 1e-4, "{share} of {expected}");
        }
    }

    proptest! {
        #[test]
        fn jitter_only_shortens_and_within_its_bound(ms in 1..10_000_000_u64, jitter in 0.0..0.9, random in 0.0..1.0) {
            let ttl = Duration::from_millis(ms);
            let it = jittered(ttl, jitter, random);
            prop_assert!(it <= ttl && it >= ttl.mul_f64(1.0 - jitter));
        }

        #[test]
        fn a_value_never_gets_better_with_age(ages in proptest::array::uniform2(0..100_u64)) {
            let [younger, older] = [ages[0].min(ages[1]), ages[0].max(ages[1])];
            prop_assert!(judged(younger) as u8 <= judged(older) as u8);
        }
    }
}
