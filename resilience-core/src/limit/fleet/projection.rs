//! What an answer of the store says about the time after it, as long as nobody puts tokens back.
//!
//! A bucket is known by the time until it is full: it gains evenly, so the time until it holds any other number of
//! tokens follows, exact or a microsecond late. Late, because the store rounds to whole microseconds.

use crate::limit::{Quota, store::Standing};

/// Microseconds until a bucket that stands so holds `tokens`, which it can. Nobody else takes any.
pub(super) fn wait_for(quota: &Quota, standing: Standing, tokens: u64) -> u64 {
    if tokens <= standing.remaining {
        return 0;
    }
    let spared = (quota.capacity() - tokens.min(quota.capacity())) * quota.unit() / quota.rate();
    standing.full_in.saturating_sub(spared).max(1)
}

/// Microseconds until `tokens` could have been taken one after the other, which may be more than it holds.
pub(super) fn wait_for_all(quota: &Quota, standing: Standing, tokens: u128) -> u64 {
    let try_local = tokens.min(quota.capacity().into());
    let later = (tokens - try_local) * u128::from(quota.unit()) / u128::from(quota.rate());
    let try_local = wait_for(
        quota,
        standing,
        u64::try_from(try_local).unwrap_or(u64::MAX),
    );
    try_local.saturating_add(u64::try_from(later).unwrap_or(u64::MAX))
}

/// How it stands `passed` microseconds later, if nobody takes any: no more tokens than there are then.
pub(super) fn later(quota: &Quota, standing: Standing, passed: u64) -> Standing {
    let full_in = standing.full_in.saturating_sub(passed);
    let missing = (u128::from(full_in) * u128::from(quota.rate())).div_ceil(quota.unit().into());
    let missing = u64::try_from(missing).unwrap_or(u64::MAX);
    Standing {
        remaining: quota
            .capacity()
            .saturating_sub(missing)
            .max(standing.remaining),
        full_in,
    }
}

/// How it would stand with so many tokens more in it: those that are leased here.
pub(super) fn with(quota: &Quota, standing: Standing, more: u64) -> Standing {
    let sooner = u128::from(more) * u128::from(quota.unit()) / u128::from(quota.rate());
    let sooner = u64::try_from(sooner).unwrap_or(u64::MAX);
    Standing {
        remaining: standing
            .remaining
            .saturating_add(more)
            .min(quota.capacity()),
        full_in: standing.full_in.saturating_sub(sooner),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::token_bucket::{Claim, LimitOutcome, decide_one};

    /// 20,000 buckets a run: what is said of the future is what the machine then does.
    #[test]
    fn a_wait_told_from_the_last_answer_is_the_machines_own() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut waited = 0;
        for _ in 0..20_000 {
            let permits = [rng.u64(1..100), rng.u64(1..1_000_000)][rng.usize(0..2)];
            let period = Duration::from_micros([1_000, 999_983, 86_400_000_000][rng.usize(0..3)]);
            let made = Quota::per(permits, period).and_then(|quota| quota.burst(rng.u64(1..5_000)));
            let Ok(quota) = made else { continue };
            let start = 1_000_000_000_000;
            let claim = |bucket, cost| Claim {
                bucket,
                quota: &quota,
                cost,
            };
            let taken = i64::try_from(rng.u64(1..=quota.capacity())).unwrap();
            let (_, first) = decide_one(claim(None, taken), start);
            let token = quota.unit() / quota.rate() + 1;
            let seen = start + rng.u64(0..token * 3);
            let (_, looked) = decide_one(claim(first.bucket, 0), seen);
            let standing = Standing::from(looked);
            let want = rng.u64(1..=quota.capacity());
            let told = wait_for(&quota, standing, want);
            let (outcome, _) = decide_one(claim(first.bucket, i64::try_from(want).unwrap()), seen);
            let query_store = match outcome {
                LimitOutcome::Wait { micros, .. } => micros,
                _ => 0,
            };
            assert!(
                (query_store..=query_store + 1).contains(&told),
                "{told} for {query_store}: {want} of {quota:?}, {standing:?}"
            );
            waited += u32::from(query_store > 0);
            let passed = rng.u64(0..=standing.full_in);
            let (_, then) = decide_one(claim(first.bucket, 0), seen + passed);
            let foretold = later(&quota, standing, passed);
            assert_eq!(foretold.full_in, then.full_in);
            // Short of what is there by what a microsecond brings.
            let short = then.remaining.checked_sub(foretold.remaining);
            assert!(
                short.is_some_and(|short| short <= quota.rate() / quota.unit() + 1),
                "{foretold:?} for {then:?}, {quota:?}"
            );
        }
        assert!(waited > 1_000, "{waited}");
    }
}
