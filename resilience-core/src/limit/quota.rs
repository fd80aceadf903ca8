//! The quota of a rate limit: rate and burst, validated when it is made.

use std::time::Duration;

use crate::error::InvalidConfig;

/// Whole numbers below this are exact in the doubles of a store's scripts.
const EXACT: u128 = 1 << 53;

/// `permits` per `period`, of which up to `burst` can be saved up.
///
/// The bucket holds `burst` tokens, starts full, and gains one token every `period / permits`. So at most
/// `burst + t * permits / period` tokens are taken in a time `t`.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::Quota;
///
/// let quota = Quota::per(100, Duration::from_secs(1))?.burst(200)?;
/// assert_eq!((quota.permits(), quota.capacity()), (100, 200));
/// # Ok::<(), resilience_core::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    permits: u64,
    /// Microseconds.
    period: u64,
    capacity: u64,
    /// The rate in lowest terms: `n` tokens every `per` microseconds.
    n: u64,
    per: u64,
}

impl Quota {
    /// A quota of `permits` per `period`, all of which can be used at once: the burst is `permits` unless
    /// [`burst`](Self::burst) says otherwise.
    ///
    /// # Errors
    /// If `permits` is zero, if `period` is no whole number of microseconds or zero, or if the numbers are too large
    /// to be exact: see [`burst`](Self::burst).
    pub fn per(permits: u64, period: Duration) -> Result<Self, InvalidConfig> {
        if permits == 0 {
            return Err(InvalidConfig::new("permits", permits, "must be above zero"));
        }
        let micros = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
        if micros == 0 || !period.subsec_nanos().is_multiple_of(1000) {
            let rule = "must be a whole number of microseconds, and above zero";
            return Err(InvalidConfig::new("period", period, rule));
        }
        let common = gcd(permits, micros);
        let quota = Self {
            permits,
            period: micros,
            capacity: permits,
            n: permits / common,
            per: micros / common,
        };
        if quota.is_exact() {
            return Ok(quota);
        }
        let rule = "too large: burst times period, in microseconds and over what it has in common with the permits, \
                    must be below 2^53";
        Err(InvalidConfig::new("permits", permits, rule))
    }

    /// Sets the number of tokens that can be saved up, the most that can be taken at once.
    ///
    /// # Errors
    /// If `burst` is zero, or if `burst * period / gcd(permits, period) + permits / gcd(permits, period)`, with the
    /// period in microseconds, is not below 2^53: beyond that the scripts of a store could not be exact. (A million
    /// per day is far within; a prime number per year with a burst of a thousand is not.)
    pub fn burst(mut self, burst: u64) -> Result<Self, InvalidConfig> {
        if burst == 0 {
            return Err(InvalidConfig::new("burst", burst, "must be above zero"));
        }
        self.capacity = burst;
        if self.is_exact() {
            return Ok(self);
        }
        let rule = "too large: burst times period, in microseconds and over what it has in common with the permits, \
                    must be below 2^53";
        Err(InvalidConfig::new("burst", burst, rule))
    }

    /// Share number `part` of `of`: the permits in a period `of` times as long, and its part of the burst, dealt out token by
    /// token.
    pub(super) fn share(&self, part: u64, of: u64) -> Result<Self, InvalidConfig> {
        let period = self.period.saturating_mul(of);
        let common = gcd(self.permits, period);
        let share = Self {
            permits: self.permits,
            period,
            capacity: self.capacity / of + u64::from(part < self.capacity % of),
            n: self.permits / common,
            per: period / common,
        };
        if share.is_exact() {
            return Ok(share);
        }
        let rule = "too many for this quota: its shares would no longer be exact";
        Err(InvalidConfig::new("parts", of, rule))
    }

    /// `parts` of `of` of the rate, and a burst of `burst`.
    pub(super) fn portion(&self, parts: u64, of: u64, burst: u64) -> Result<Self, InvalidConfig> {
        let (permits, period) = (
            self.permits.saturating_mul(parts),
            self.period.saturating_mul(of),
        );
        let common = gcd(permits, period);
        let portion = Self {
            permits,
            period,
            capacity: burst,
            n: permits / common,
            per: period / common,
        };
        if portion.is_exact() {
            return Ok(portion);
        }
        let rule = "too many for this quota: its portions would no longer be exact";
        Err(InvalidConfig::new("parts", of, rule))
    }

    /// Tokens gained per [`period`](Self::period).
    #[must_use]
    pub const fn permits(&self) -> u64 {
        self.permits
    }

    /// The time in which [`permits`](Self::permits) tokens are gained.
    #[must_use]
    pub const fn period(&self) -> Duration {
        Duration::from_micros(self.period)
    }

    /// The most tokens that can be saved up: the burst.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Tokens gained every [`unit`](Self::unit) microseconds, in lowest terms.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        self.n
    }

    /// The microseconds in which [`rate`](Self::rate) tokens are gained, in lowest terms. A bucket counts in this
    /// many parts of a token.
    #[must_use]
    pub const fn unit(&self) -> u64 {
        self.per
    }

    const fn is_exact(&self) -> bool {
        // The largest number that ever comes up.
        self.capacity as u128 * self.per as u128 + (self.n as u128) < EXACT
    }
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn what_cannot_work_is_refused_by_name_when_it_is_built() {
        let field = |quota: Result<Quota, InvalidConfig>| quota.unwrap_err().field();
        assert_eq!(field(Quota::per(0, DAY)), "permits");
        assert_eq!(field(Quota::per(1, Duration::ZERO)), "period");
        assert_eq!(field(Quota::per(1, Duration::from_nanos(1500))), "period");
        assert_eq!(field(Quota::per(u64::MAX, DAY)), "permits");
        assert_eq!(field(Quota::per(1, 400_000 * DAY)), "permits");
        assert_eq!(field(Quota::per(1, DAY).unwrap().burst(0)), "burst");
        assert_eq!(field(Quota::per(7, DAY).unwrap().burst(1 << 20)), "burst");
    }

    /// Peers keep whole milliseconds per token: above 1000 a second that is none, which is no limit at all.
    #[test]
    fn a_rate_above_a_thousand_and_above_a_million_a_second_is_kept_as_it_is() {
        for rate in [1_001, 999_983, 1_000_003, 3_000_000] {
            let quota = Quota::per(rate, Duration::from_secs(1)).unwrap();
            assert_eq!(quota.rate() * (1_000_000 / quota.unit()), rate);
        }
    }

    #[test]
    fn the_rate_is_in_lowest_terms() {
        let quota = Quota::per(1_000_000, DAY).unwrap();
        assert_eq!((quota.rate(), quota.unit()), (1, 86_400));
    }
}
