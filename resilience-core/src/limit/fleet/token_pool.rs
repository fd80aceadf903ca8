//! The tokens that this instance has leased, and the calls that wait for more.
//!
//! A token is in one place at any time: in the store's bucket, in a pool, or spent. Tokens that are taken out of a pool
//! are spent, or put back there or into the store; so all tokens that are spent were taken from the bucket before.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{
        AtomicBool, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use crossbeam_utils::CachePadded;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    costs::Prices,
    decision::{NOTHING, Standings},
    lease_size::LeaseSize,
    plan::{MAX_LIMITS, Plan},
    projection,
};
use crate::{clock::Moment, keyed::Map, limit::store::Standing};

/// The pools of an instance, by subject.
pub(super) type TokenPools = Map<Box<str>, Arc<TokenPool>>;

/// The tokens of one subject, on each limit of its plan.
pub(super) struct TokenPool {
    pub(super) plan: Plan,
    slots: Box<[CachePadded<Slot>]>,
    /// When the rest goes back, in nanoseconds of a [`Moment`].
    expires: AtomicU64,
    /// No prefetch before.
    quiet_until: AtomicU64,
    /// Out of use: takes no more tokens.
    retired: AtomicBool,
    /// One lease at a time, in order of arrival.
    turns: Arc<Semaphore>,
    book: Mutex<Book>,
}

/// The right to ask the store for a pool: one at a time, in order of arrival.
pub(super) type Turn = OwnedSemaphorePermit;

struct Slot {
    tokens: AtomicU64,
    /// Below this, more tokens are fetched.
    low: AtomicU64,
    /// The tokens that calls wait for.
    wanted: AtomicU64,
    /// The last answer of the store, for display. Not read and written as one.
    remaining: AtomicU64,
    full_in: AtomicU64,
}

/// The demand, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) demands: [LeaseSize; MAX_LIMITS],
    /// The last answer of the store, and when it came.
    pub(super) seen: Option<(Moment, Standings)>,
}

impl TokenPool {
    pub(super) fn new(plan: Plan) -> Self {
        let slot = |_| {
            CachePadded::new(Slot {
                tokens: AtomicU64::new(0),
                low: AtomicU64::new(0),
                wanted: AtomicU64::new(0),
                remaining: AtomicU64::new(0),
                full_in: AtomicU64::new(0),
            })
        };
        Self {
            slots: plan.as_slice().iter().map(slot).collect(),
            plan,
            expires: AtomicU64::new(0),
            quiet_until: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            turns: Arc::new(Semaphore::new(1)),
            book: Mutex::default(),
        }
    }

    /// Waits for the turn of the caller.
    pub(super) async fn turn(&self) -> Turn {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.expect("the semaphore is never closed")
    }

    /// The turn, if it is free.
    pub(super) fn turn_at_once(&self) -> Option<Turn> {
        Arc::clone(&self.turns).try_acquire_owned().ok()
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all of `prices`, or nothing.
    #[inline]
    pub(super) fn take(&self, prices: &Prices) -> bool {
        for (index, slot) in self.slots.iter().enumerate() {
            if !slot.take(prices[index]) {
                let taken = self.slots[..index].iter().zip(prices);
                taken.for_each(|(slot, price)| slot.put(*price));
                return false;
            }
        }
        true
    }

    /// Takes as much of `prices` as there is.
    pub(super) fn take_some(&self, prices: &Prices) -> Prices {
        let mut taken = [0; MAX_LIMITS];
        for ((slot, price), taken) in self.slots.iter().zip(prices).zip(&mut taken) {
            let step = |tokens: u64| Some(tokens.saturating_sub(*price));
            // Never `None`.
            let before = slot.tokens.fetch_update(AcqRel, Relaxed, step);
            *taken = before.unwrap_or(0).min(*price);
        }
        taken
    }

    /// Puts tokens in, those of a lease or those that were taken and not spent.
    pub(super) fn put(&self, tokens: &Prices) {
        let slots = self.slots.iter().zip(tokens);
        slots.for_each(|(slot, tokens)| slot.put(*tokens));
    }

    /// Takes all tokens out.
    pub(super) fn drain(&self) -> Prices {
        let mut all = [0; MAX_LIMITS];
        let slots = self.slots.iter().zip(&mut all);
        slots.for_each(|(slot, tokens)| *tokens = slot.tokens.swap(0, AcqRel));
        all
    }

    pub(super) fn level(&self, index: usize) -> u64 {
        self.slots[index].tokens.load(Relaxed)
    }

    #[inline]
    pub(super) fn is_low(&self) -> bool {
        (self.slots.iter()).any(|slot| slot.tokens.load(Relaxed) < slot.low.load(Relaxed))
    }

    pub(super) fn set_low(&self, index: usize, low: u64) {
        self.slots[index].low.store(low, Relaxed);
    }

    /// Whether the lease has ended.
    #[inline]
    pub(super) fn is_over(&self, now: Moment) -> bool {
        now.as_nanos() >= self.expires.load(Acquire)
    }

    pub(super) fn expire_at(&self, at: Moment) {
        self.expires.store(at.as_nanos(), Release);
    }

    #[inline]
    pub(super) fn is_quiet(&self, now: Moment) -> bool {
        now.as_nanos() < self.quiet_until.load(Relaxed)
    }

    pub(super) fn quiet_until(&self, at: Moment) {
        self.quiet_until.store(at.as_nanos(), Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Acquire)
    }

    /// To be called by the holder of the turn.
    pub(super) fn retire(&self) {
        self.retired.store(true, Release);
    }

    pub(super) fn wanted(&self, index: usize) -> u64 {
        self.slots[index].wanted.load(Relaxed)
    }

    /// Notes a call that waits, until the result is dropped.
    pub(super) fn want(self: &Arc<Self>, prices: &Prices) -> Wanted {
        for (slot, price) in self.slots.iter().zip(prices) {
            slot.wanted.fetch_add(*price, Relaxed);
        }
        Wanted {
            pool: Arc::clone(self),
            prices: *prices,
        }
    }

    pub(super) fn note(&self, standings: &Standings) {
        for (slot, standing) in self.slots.iter().zip(standings) {
            slot.remaining.store(standing.remaining, Relaxed);
            slot.full_in.store(standing.full_in, Relaxed);
        }
    }

    /// The last answer of the store, with the tokens in the pool.
    pub(super) fn standings(&self) -> Standings {
        let mut all = [NOTHING; MAX_LIMITS];
        for ((slot, limit), standing) in self.slots.iter().zip(self.plan.as_slice()).zip(&mut all) {
            let there = Standing {
                remaining: slot.remaining.load(Relaxed),
                full_in: slot.full_in.load(Relaxed),
            };
            *standing = projection::with(&limit.quota, there, slot.tokens.load(Relaxed));
        }
        all
    }
}

impl Slot {
    #[inline]
    fn take(&self, price: u64) -> bool {
        if price == 0 {
            return true;
        }
        let mut tokens = self.tokens.load(Relaxed);
        while tokens >= price {
            let less = tokens - price;
            match (self.tokens).compare_exchange_weak(tokens, less, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(other) => tokens = other,
            }
        }
        false
    }

    fn put(&self, tokens: u64) {
        if tokens > 0 {
            self.tokens.fetch_add(tokens, AcqRel);
        }
    }
}

/// A call that waits.
pub(super) struct Wanted {
    pool: Arc<TokenPool>,
    prices: Prices,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        for (slot, price) in self.pool.slots.iter().zip(&self.prices) {
            slot.wanted.fetch_sub(*price, Relaxed);
        }
    }
}

/// Tokens for a call that has waited. Dropped unspent, they go back into the pool.
pub(super) struct HeldTokens {
    pool: Option<Arc<TokenPool>>,
    prices: Prices,
}

impl HeldTokens {
    pub(super) const fn new(pool: Arc<TokenPool>, prices: Prices) -> Self {
        Self {
            pool: Some(pool),
            prices,
        }
    }

    pub(super) fn spend(mut self) {
        self.pool = None;
    }

    pub(super) const fn of(&self, index: usize) -> u64 {
        self.prices[index]
    }
}

impl Drop for HeldTokens {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.put(&self.prices);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::Quota;

    fn pool() -> Arc<TokenPool> {
        let quota = Quota::per(10, Duration::from_secs(1)).unwrap();
        let plan = Plan::new().limit("a", quota).unwrap();
        Arc::new(TokenPool::new(plan.limit("b", quota).unwrap()))
    }

    fn two(a: u64, b: u64) -> Prices {
        [a, b, 0, 0, 0, 0, 0, 0]
    }

    #[test]
    fn all_is_taken_or_nothing() {
        let pool = pool();
        pool.put(&two(5, 2));
        assert!(!pool.take(&two(1, 3)));
        assert_eq!((pool.level(0), pool.level(1)), (5, 2));
        assert!(pool.take(&two(5, 0)) && pool.take(&two(0, 0)));
        assert_eq!(pool.take_some(&two(4, 1)), two(0, 1));
        assert_eq!(pool.take_some(&two(0, 5)), two(0, 1));
        pool.put(&two(0, 2));
        assert_eq!(pool.drain(), two(0, 2));
        assert_eq!(pool.drain(), two(0, 0));
    }

    #[test]
    fn who_no_longer_waits_wants_nothing_and_leaves_the_tokens() {
        let pool = pool();
        let one = pool.want(&two(3, 1));
        let other = pool.want(&two(1, 0));
        assert_eq!((pool.wanted(0), pool.wanted(1)), (4, 1));
        drop(one);
        assert_eq!((pool.wanted(0), pool.wanted(1)), (1, 0));
        drop(other);
        drop(HeldTokens::new(Arc::clone(&pool), two(2, 1)));
        HeldTokens::new(Arc::clone(&pool), two(5, 5)).spend();
        assert_eq!(pool.drain(), two(2, 1));
    }

    /// Threads that take, put back and drain: every token is in one place.
    #[test]
    fn no_token_is_lost_or_made_when_threads_race() {
        let pool = pool();
        let total = 40_000;
        pool.put(&two(total, total));
        let spent: u64 = std::thread::scope(|scope| {
            let work = |seed: u64| {
                let mut rng = fastrand::Rng::with_seed(seed);
                let (mut spent, pool) = (0, &pool);
                for _ in 0..10_000 {
                    let (a, b) = (rng.u64(0..4), rng.u64(0..4));
                    match rng.u8(0..10) {
                        0 => pool.put(&pool.drain()),
                        1 if pool.take(&two(a, b)) => pool.put(&two(a, b)),
                        _ if pool.take(&two(a, b)) => spent += a + b,
                        _ => {}
                    }
                }
                spent
            };
            let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || work(seed))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        let left: u64 = pool.drain().iter().sum();
        assert_eq!(spent + left, 2 * total);
        assert!(spent > total / 2, "{spent}");
    }
}
