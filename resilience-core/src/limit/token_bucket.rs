//! The token bucket in whole numbers: pure, exact, without a clock.
//!
//! A bucket is three numbers: whole tokens, the rest of a token in parts of [`Quota::unit`], and the microsecond that
//! they are of. A quota of `n` tokens per `per` microseconds gains `n` parts each microsecond, and `per` parts are a
//! token: nothing is ever rounded, so nothing drifts, and waits are exact to the microsecond. The parts of a bucket
//! that is full are below 2^53, so a script whose numbers are doubles gives the same answers.
//!
//! Tokens are kept, not times: a bucket whose quota changes keeps its tokens, as far as the new one can hold them,
//! and goes on at the new rate.

use super::Quota;

/// A clock that is up to this many microseconds behind is waited for; one that is further behind was set back, and time
/// restarts there. So a jittering clock earns nothing twice, and one set back by an hour does not stop the limit for an hour.
pub const TOLERATED_STEP: u64 = 100_000;

/// The content of a bucket at one microsecond. No bucket (`None`) is a full one: buckets start full, and a store may delete
/// full ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Whole tokens.
    pub tokens: u64,
    /// The rest of a token, in parts of `unit`.
    pub rest: u64,
    /// The microsecond, on the clock of the bucket's store.
    pub at: u64,
    /// The [`Quota::unit`] that `rest` is in.
    pub unit: u64,
}

/// A claim on one of several limits.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its bucket.
    pub bucket: Option<Bucket>,
    /// Its quota.
    pub quota: &'a Quota,
    /// Tokens to take. Zero reads and changes nothing; a negative cost puts tokens back, up to the capacity.
    pub cost: i64,
}

/// The outcome of the claims on several limits: all are granted, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOutcome {
    /// All are granted.
    Admitted {
        /// The limit that more calls like this one would exhaust first.
        binding: usize,
    },
    /// None is granted before this time has passed.
    Wait {
        /// The limit with the longest wait.
        binding: usize,
        /// The exact microseconds until all could be granted, if no tokens are taken meanwhile.
        micros: u64,
    },
    /// None can ever be granted: a cost is above the capacity of its limit.
    Impossible {
        /// That limit.
        binding: usize,
    },
}

impl LimitOutcome {
    /// Whether the claims are granted.
    #[must_use]
    pub const fn is_admitted(self) -> bool {
        matches!(self, Self::Admitted { .. })
    }
}

/// The state of a limit after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// Its bucket: `None` if it is full.
    pub bucket: Option<Bucket>,
    /// Whether it has to be written: not after a denial or a read, unless the clock was set back.
    pub changed: bool,
    /// Whole tokens left.
    pub remaining: u64,
    /// Microseconds until it is full, if no tokens are taken meanwhile.
    pub full_in: u64,
}

/// Decides about all `claims` at microsecond `now`. Passes the state of each limit to `after`, in their order.
///
/// # Panics
/// When there are no claims.
pub fn decide(claims: &[Claim<'_>], now: u64, mut after: impl FnMut(After)) -> LimitOutcome {
    assert!(!claims.is_empty(), "a decision is about one limit at least");
    let outcome = judge(claims, now);
    for claim in claims {
        let (mut bucket, moved) = claim.refreshed(now);
        let granted = outcome.is_admitted() && claim.cost != 0;
        if granted {
            bucket.spend(claim.quota, claim.cost);
        }
        after(After {
            bucket: (bucket.tokens < claim.quota.capacity()).then_some(bucket),
            changed: granted || moved,
            remaining: bucket.tokens,
            full_in: bucket.wait_for(claim.quota, claim.quota.capacity(), now),
        });
    }
    outcome
}

/// Decides about one limit.
#[must_use]
pub fn decide_one(claim: Claim<'_>, now: u64) -> (LimitOutcome, After) {
    let mut after = None;
    let outcome = decide(&[claim], now, |one| after = Some(one));
    (outcome, after.expect("one claim, one answer"))
}

fn judge(claims: &[Claim<'_>], now: u64) -> LimitOutcome {
    let impossible = |claim: &Claim<'_>| claim.price() > claim.quota.capacity();
    if let Some(binding) = claims.iter().position(impossible) {
        return LimitOutcome::Impossible { binding };
    }
    let (mut binding, mut micros) = (0, 0);
    let (mut scarcest, mut fewest) = (0, u64::MAX);
    for (index, claim) in claims.iter().enumerate() {
        let (bucket, _) = claim.refreshed(now);
        let price = claim.price();
        let Some(left) = bucket.tokens.checked_sub(price) else {
            let wait = bucket.wait_for(claim.quota, price, now);
            if wait > micros {
                (binding, micros) = (index, wait);
            }
            continue;
        };
        let more = left / price.max(1);
        if more < fewest {
            (scarcest, fewest) = (index, more);
        }
    }
    if micros > 0 {
        return LimitOutcome::Wait { binding, micros };
    }
    LimitOutcome::Admitted { binding: scarcest }
}

impl Claim<'_> {
    /// The tokens that have to be there.
    fn price(&self) -> u64 {
        u64::try_from(self.cost).unwrap_or(0)
    }

    /// The bucket at `now`, and whether the clock was set back.
    fn refreshed(&self, now: u64) -> (Bucket, bool) {
        let quota = self.quota;
        let full = Bucket {
            tokens: quota.capacity(),
            rest: 0,
            at: now,
            unit: quota.unit(),
        };
        let Some(mut bucket) = self.bucket else {
            return (full, false);
        };
        bucket.convert(quota);
        if now < bucket.at {
            let moved = bucket.at - now > TOLERATED_STEP;
            if moved {
                bucket.at = now;
            }
            return (bucket, moved);
        }
        if bucket.tokens >= quota.capacity()
            || now - bucket.at >= bucket.until(quota, quota.capacity())
        {
            return (full, false);
        }
        // Below what fills the bucket, so below 2^53.
        let parts = (now - bucket.at) * quota.rate() + bucket.rest;
        bucket.tokens += parts / quota.unit();
        bucket.rest = parts % quota.unit();
        bucket.at = now;
        (bucket, false)
    }
}

impl Bucket {
    /// Makes it a bucket of `quota`: the rest of a token is rounded down to the new parts.
    fn convert(&mut self, quota: &Quota) {
        if self.unit != quota.unit() {
            let rest = u128::from(self.rest) * u128::from(quota.unit()) / u128::from(self.unit);
            // A part of a token is less than a token.
            self.rest = u64::try_from(rest).unwrap_or(0);
            self.unit = quota.unit();
        }
        if self.tokens >= quota.capacity() {
            (self.tokens, self.rest) = (quota.capacity(), 0);
        }
    }

    fn spend(&mut self, quota: &Quota, cost: i64) {
        self.tokens = self
            .tokens
            .saturating_add_signed(cost.saturating_neg())
            .min(quota.capacity());
        if self.tokens == quota.capacity() {
            self.rest = 0;
        }
    }

    /// Microseconds from `at` until there are `tokens`, which the bucket can hold.
    fn until(&self, quota: &Quota, tokens: u64) -> u64 {
        let missing = (tokens.saturating_sub(self.tokens) * quota.unit()).saturating_sub(self.rest);
        missing.div_ceil(quota.rate())
    }

    /// Microseconds from `now` until there are `tokens`, which the bucket can hold.
    fn wait_for(&self, quota: &Quota, tokens: u64, now: u64) -> u64 {
        match self.until(quota, tokens) {
            0 => 0,
            wait => wait + self.at.saturating_sub(now),
        }
    }
}
