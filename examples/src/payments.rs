//! Payments: what trying again does to what must not happen twice.
//!
//! Beside its orders, every client sends payments through the same breaking upstream. The plain client tries again when
//! something goes wrong, as a loop around the call or a person at a button would. The guarded ones give each payment an
//! idempotency key, and their upstreams keep one record per key ([`IdempotentRequests`]). Upstreams book a payment when
//! they begin to work on it, so an answer that comes too late, or never, is about something that has happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use resilience_core::Idempotency;
use resilience_http::IdempotentRequests;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::{
    clients::{Caller, Sharing, fresh_prefix},
    load,
    script::Script,
    stats::{Outcome, Recorder},
};

/// Number of calls per payment.
const ORDERS_PER_PAYMENT: u32 = 6;
/// How long the second of two requests with one key waits for the answer to the first.
const WAIT: Duration = Duration::from_millis(400);
/// For how long a crash of the upstream keeps a key waiting; and for how long a hanging one may.
const LEASE: Duration = Duration::from_secs(5);
const CEILING: Duration = Duration::from_secs(30);

/// The number of a payment among all calls: none is also the number of an order.
pub(crate) const FIRST: u64 = 1 << 40;

/// How often each payment took effect. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Till(Arc<Mutex<BTreeMap<u64, u32>>>);

impl Till {
    /// A payment takes effect.
    pub(crate) fn book(&self, payment: u64) {
        *self.lock().entry(payment).or_default() += 1;
    }

    /// Bounded by the length of the run.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the payments of a client ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paid {
    /// Payments that the client was asked to make.
    pub(crate) asked: u64,
    /// Those of which it was told in the end that they are made.
    pub(crate) told: u64,
    /// Those that took effect once.
    pub(crate) once: u64,
    /// Those that took effect more often.
    pub(crate) repeatedly: u64,
    /// How often the one that did so most often.
    pub(crate) most: u32,
    /// Those that are told to be made and are not.
    pub(crate) lost: u64,
}

/// The upstream's side: one record for each key, in a store of this process, or in Redis if that is where things are
/// shared.
pub(crate) async fn once(sharing: &Sharing) -> Result<IdempotentRequests, Box<dyn Error>> {
    let handle = Idempotency::builder("payments")
        .lease(LEASE)
        .max_lease_time(CEILING)
        .wait(64, WAIT);
    let handle = match sharing.connect(&fresh_prefix(), 1).await? {
        Some(redis) => handle.store(redis.idempotency()),
        None => handle,
    };
    Ok(IdempotentRequests::new(&handle.build()?).required(true))
}

/// Who makes payments.
pub(crate) trait Payer: Clone + Send + Sync + 'static {
    /// Makes payment `number`.
    fn pay(&self, number: u64) -> impl Future<Output = Outcome> + Send;
}

/// The payments of one client, under way.
#[derive(Debug)]
pub(crate) struct Payments {
    asked: u64,
    told: Arc<Mutex<BTreeSet<u64>>>,
    drive: JoinHandle<()>,
}

impl Payments {
    /// Starts to make them, at the same moments for all clients.
    pub(crate) fn start(
        payer: impl Payer,
        epoch: Instant,
        (seed, rate): (u64, u32),
        script: Script,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let rate = (rate / ORDERS_PER_PAYMENT).max(1);
        let due = load::arrivals(seed.wrapping_add(1), rate, script.total());
        let told = Arc::default();
        let paying = Paying {
            payer,
            told: Arc::clone(&told),
        };
        let recorder = Arc::new(Recorder::start(epoch, None));
        Self {
            asked: due.len() as u64,
            told,
            drive: tokio::spawn(load::drive(paying, due, recorder, stop)),
        }
    }

    /// Waits for the last of them.
    pub(crate) async fn end(self, till: &Till) -> Paid {
        // A panic in the load generator is a bug of this program, and not to be papered over with figures.
        self.drive.await.expect("the load generator panicked");
        let (effects, told) = (till.lock(), lock(&self.told));
        let count = |is: &dyn Fn(u32) -> bool| effects.values().filter(|&&n| is(n)).count() as u64;
        Paid {
            asked: self.asked,
            told: told.len() as u64,
            once: count(&|effects| effects == 1),
            repeatedly: count(&|effects| effects > 1),
            most: effects.values().copied().max().unwrap_or(0),
            lost: told
                .iter()
                .filter(|payment| !effects.contains_key(payment))
                .count() as u64,
        }
    }
}

fn lock(told: &Mutex<BTreeSet<u64>>) -> MutexGuard<'_, BTreeSet<u64>> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A payer as the load generator knows callers.
#[derive(Clone)]
struct Paying<P> {
    payer: P,
    told: Arc<Mutex<BTreeSet<u64>>>,
}

impl<P: Payer> Caller for Paying<P> {
    async fn call(&self, number: u64) -> Outcome {
        let payment = FIRST + number;
        let outcome = self.payer.pay(payment).await;
        if outcome == Outcome::Ok {
            lock(&self.told).insert(payment);
        }
        outcome
    }
}
