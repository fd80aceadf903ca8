//! Projects the state of a bucket from the last answer of the store, while no tokens are put back.
//!
//! The state is the time until the bucket is full: it gains evenly, so the time until it holds any other number of
//! tokens follows, exact or a microsecond late, since the store rounds to whole microseconds.

use crate::limit::{Quota, store::Standing};

/// Microseconds until a bucket in this state holds `tokens`, at most its capacity, if no tokens are taken meanwhile.
pub(super) fn wait_for(quota: &Quota, standing: Standing, tokens: u64) -> u64 {
    if tokens <= standing.remaining {
        return 0;
    }
    let spared = (quota.capacity() - tokens.min(quota.capacity())) * quota.unit() / quota.rate();
    standing.full_in.saturating_sub(spared).max(1)
}

/// Microseconds until `tokens` could have been taken one after the other, which may be more than it holds.
pub(super) fn wait_for_all(quota: &Quota, standing: Standing, tokens: u128) -> u64 {
    let first = tokens.min(quota.capacity().into());
    let later = (tokens - first) * u128::from(quota.unit()) / u128::from(quota.rate());
    let first = u64::try_from(first).unwrap_or(u64::MAX);
    let later = u64::try_from(later).unwrap_or(u64::MAX);
    wait_for(quota, standing, first).saturating_add(later)
}

/// The state `passed` microseconds later, if no tokens are taken meanwhile; a lower bound.
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

/// The state with `more` tokens in the bucket: those that are leased here.
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

    /// 20,000 buckets a run: the machine then does what was projected.
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
            let exact = match outcome {
                LimitOutcome::Wait { micros, .. } => micros,
                _ => 0,
            };
            assert!(
                (exact..=exact + 1).contains(&told),
                "{told} for {exact}: {want} of {quota:?}, {standing:?}"
            );
            waited += u32::from(exact > 0);
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
