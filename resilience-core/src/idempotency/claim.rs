//! From a key to what is to be done: the work, a replay, or no.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    builder::Unreachable,
    cache::Known,
    key::{Fingerprint, Key},
    record::{Claim, Claimed, Grant, Holder},
    shared::{Counted, Shared},
    store::{Changes, IdempotencyStore, StoreError},
    worker::{HeldClaim, Worker},
};
use crate::{
    deadline,
    error::{Pattern, Reason, Rejected},
    sealing::Opened,
};

/// What is to be done.
pub(super) enum Admission {
    Work(Box<Worker>),
    Replay { outcome: Bytes, age: Duration },
}

/// How often a claim is tried.
const TRIES: u32 = 3;
/// What callers are told to wait when the store does not answer.
const LATER: Duration = Duration::from_secs(1);
/// Whoever waits looks again so often, should nobody tell them.
const BACKSTOP_MS: u64 = 1_000;

impl Shared {
    /// `waits` is called before the first wait for somebody else's outcome.
    pub(super) async fn admit(
        self: &Arc<Self>,
        key: &Key,
        waits: impl FnOnce() + Send,
    ) -> Result<Admission, Rejected> {
        let (stored, print) = (Arc::<str>::from(key.stored()), key.print());
        if let Some(known) = self.cache.find(&stored, print) {
            return self.known(known);
        }
        let asking = Asking {
            shared: self,
            key: stored,
            print,
            claim: Arc::new(self.claim(print)),
        };
        asking.ask(waits).await
    }

    fn known(&self, known: Known) -> Result<Admission, Rejected> {
        match known {
            Known::Mismatch => {
                self.totals.mismatched.fetch_add(1, Relaxed);
                Err(self.reject(Reason::KeyReused, None))
            }
            Known::Done { outcome, age } => {
                self.totals.replayed_here.fetch_add(1, Relaxed);
                self.replay(outcome, age)
            }
        }
    }

    fn replay(&self, outcome: Option<Bytes>, age: Duration) -> Result<Admission, Rejected> {
        match outcome {
            Some(outcome) => Ok(Admission::Replay { outcome, age }),
            None => Err(self.reject(Reason::OutcomeNotKept, None)),
        }
    }

    /// The store to begin with: the local one for what it knows of.
    async fn first_store(&self, key: &str) -> (Arc<dyn IdempotencyStore>, bool) {
        if self.settings.unreachable == Unreachable::Local && !self.local.is_empty() {
            let known = self.local.get(&self.name, key).await;
            if matches!(known, Ok(Some(_))) {
                return (Arc::new(self.local.clone()), true);
            }
        }
        (Arc::clone(&self.store), false)
    }
}

struct Asking<'a> {
    shared: &'a Arc<Shared>,
    key: Arc<str>,
    print: &'a Fingerprint,
    claim: Arc<Claim>,
}

impl Asking<'_> {
    async fn ask(self, waits: impl FnOnce() + Send) -> Result<Admission, Rejected> {
        let shared = self.shared;
        let (mut store, mut is_local) = shared.first_store(&self.key).await;
        let (mut waiting, mut waits) = (None, Some(waits));
        loop {
            match self.claim(&store).await {
                Ok((_, Claimed::Busy { remaining_ms })) => {
                    let left = Duration::from_millis(remaining_ms);
                    let Some(waiting) = &mut waiting else {
                        shared.totals.in_flight.fetch_add(1, Relaxed);
                        let begun = Waiting::begin(shared, &*store, &self.key);
                        // Asked once more, now that news would be heard.
                        waiting = Some(begun.ok_or_else(|| self.in_flight(left))?);
                        if let Some(waits) = waits.take() {
                            waits();
                        }
                        continue;
                    };
                    let looked = waiting.look_again(left).await;
                    looked.map_err(|()| self.in_flight(left))?;
                }
                Ok((asked, claimed)) => return self.answered(claimed, &store, is_local, asked),
                Err(abandoned)
                    if shared.settings.unreachable == Unreachable::Local && !is_local =>
                {
                    abandoned.disown();
                    (store, is_local) = (Arc::new(shared.local.clone()), true);
                    waiting = None;
                }
                Err(abandoned) if shared.settings.unreachable == Unreachable::Open => {
                    abandoned.disown();
                    return Ok(self.unguarded());
                }
                // Given back, if it was granted after all.
                Err(_orphan) => return Err(shared.reject(Reason::StoreUnreachable, Some(LATER))),
            }
        }
    }

    /// Everything but [`Claimed::Busy`].
    fn answered(
        self,
        claimed: Claimed,
        store: &Arc<dyn IdempotencyStore>,
        is_local: bool,
        asked: Instant,
    ) -> Result<Admission, Rejected> {
        let (shared, totals) = (self.shared, &self.shared.totals);
        match claimed {
            Claimed::New(grant) | Claimed::Mine(grant) => {
                totals.granted.fetch_add(1, Relaxed);
                self.worker(store, is_local, grant, asked)
            }
            Claimed::Done {
                outcome, age_ms, ..
            } => {
                totals.replayed.fetch_add(1, Relaxed);
                self.replay(&outcome, Duration::from_millis(age_ms), asked)
            }
            Claimed::Mismatch => {
                totals.mismatched.fetch_add(1, Relaxed);
                Err(shared.reject(Reason::KeyReused, None))
            }
            Claimed::Unknown { .. } => {
                totals.unknown.fetch_add(1, Relaxed);
                Err(shared.reject(Reason::OutcomeUnknown, None))
            }
            Claimed::Busy { remaining_ms } => {
                Err(self.in_flight(Duration::from_millis(remaining_ms)))
            }
        }
    }

    /// One claim, as often as it takes, under one name.
    async fn claim(
        &self,
        store: &Arc<dyn IdempotencyStore>,
    ) -> Result<(Instant, Claimed), AbandonedClaim> {
        let mut abandoned = AbandonedClaim::new(self, store);
        let mut certain = true;
        for attempt in 0..TRIES {
            if attempt > 0 {
                sleep(Duration::from_millis(5 << (2 * attempt))).await;
            }
            let asked = Instant::now();
            let step = store.claim(&self.shared.name, &self.key, &self.claim);
            match self.shared.within_budget(store, step).await {
                Ok(claimed) => {
                    abandoned.disown_in_place();
                    return Ok((asked, claimed));
                }
                Err(failure) => {
                    certain &= !failure.ambiguous;
                    self.failed(&failure);
                }
            }
            if deadline::current().is_some_and(deadline::Deadline::is_past) {
                break;
            }
        }
        if certain {
            abandoned.disown_in_place();
        }
        Err(abandoned)
    }

    fn failed(&self, failure: &StoreError) {
        tracing::debug!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.shared.name,
            %failure,
            "the store gave no answer to a claim"
        );
    }

    fn worker(
        self,
        store: &Arc<dyn IdempotencyStore>,
        is_local: bool,
        grant: Grant,
        asked: Instant,
    ) -> Result<Admission, Rejected> {
        let holder = Holder::new(&self.claim, &grant);
        let opened = match &grant.checkpoint {
            Some(sealed) => self.shared.open(sealed, &self.key),
            None => Ok(Opened::default()),
        };
        let mut worker = Worker {
            shared: Arc::clone(self.shared),
            key: self.key,
            print: self.print.clone(),
            claim: self.claim,
            held: Some(HeldClaim {
                store: Arc::clone(store),
                holder,
            }),
            checkpoint: None,
            left: grant.checkpoint,
            previous: grant.previous,
            asked,
            replicate: is_local,
        };
        match opened {
            Ok(opened) => {
                worker.checkpoint = opened.plain;
                Ok(Admission::Work(Box::new(worker)))
            }
            Err(rejected) => {
                // Without what the last attempt has left, the work is not to be done.
                spawn(async move { worker.give_back().await });
                Err(rejected)
            }
        }
    }

    fn unguarded(self) -> Admission {
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.shared.name,
            "the store gave no answer: the work is done without protection"
        );
        Admission::Work(Box::new(Worker {
            shared: Arc::clone(self.shared),
            key: self.key,
            print: self.print.clone(),
            claim: self.claim,
            held: None,
            checkpoint: None,
            left: None,
            previous: Default::default(),
            asked: Instant::now(),
            replicate: true,
        }))
    }

    fn replay(&self, sealed: &Bytes, age: Duration, asked: Instant) -> Result<Admission, Rejected> {
        let opened = self.shared.open(sealed, &self.key)?;
        let left = Duration::from_millis(opened.ttl_ms).saturating_sub(age);
        let done = asked.checked_sub(age).unwrap_or(asked);
        let cache = &self.shared.cache;
        cache.keep(&self.key, self.print, &opened.plain, done, asked + left);
        self.shared.replay(opened.plain, age)
    }

    fn in_flight(&self, left: Duration) -> Rejected {
        self.shared.reject(Reason::InFlight, Some(left))
    }
}

/// A caller that waits for somebody else's outcome.
struct Waiting<'a> {
    _place: Counted<'a>,
    changes: Changes,
    until: Instant,
}

impl<'a> Waiting<'a> {
    /// If the handle lets callers wait, and there is a place.
    fn begin(shared: &'a Shared, store: &dyn IdempotencyStore, key: &str) -> Option<Self> {
        let (most, longest) = shared.settings.wait?;
        let place = Counted::below(&shared.totals.waiting, most)?;
        let until = Instant::now() + longest;
        let until = deadline::current().map_or(until, |deadline| until.min(deadline.instant()));
        Some(Self {
            _place: place,
            changes: store.subscribe(&shared.name, key),
            until,
        })
    }

    /// Waits until it is time to look again; an error, when there is no more time.
    async fn look_again(&mut self, left: Duration) -> Result<(), ()> {
        let now = Instant::now();
        if now >= self.until {
            return Err(());
        }
        // Not all at once.
        let backstop = BACKSTOP_MS * 3 / 4 + fastrand::u64(0..=BACKSTOP_MS / 2);
        let look = left.min(Duration::from_millis(backstop));
        let mut news = pin!(self.changes.next());
        tokio::select! {
            () = &mut news => {}
            () = sleep_until(self.until.min(now + look)) => {}
        }
        Ok(())
    }
}

/// A claim to which no answer has come, and which nobody waits for any more, may have been granted: it is given back,
/// rather than keeping others out for a lease.
struct AbandonedClaim(Option<Box<Lost>>);

struct Lost {
    shared: Arc<Shared>,
    store: Arc<dyn IdempotencyStore>,
    key: Arc<str>,
    claim: Arc<Claim>,
}

impl AbandonedClaim {
    fn new(asking: &Asking<'_>, store: &Arc<dyn IdempotencyStore>) -> Self {
        Self(Some(Box::new(Lost {
            shared: Arc::clone(asking.shared),
            store: Arc::clone(store),
            key: Arc::clone(&asking.key),
            claim: Arc::clone(&asking.claim),
        })))
    }

    fn disown_in_place(&mut self) {
        self.0 = None;
    }

    fn disown(mut self) {
        self.disown_in_place();
    }
}

impl Drop for AbandonedClaim {
    fn drop(&mut self) {
        if let Some(lost) = self.0.take() {
            spawn(lost.find());
        }
    }
}

impl Lost {
    /// Asks under the same name what became of the claim, for as long as it could last.
    async fn find(self: Box<Self>) {
        let until = Instant::now() + self.shared.settings.lease;
        let mut pause = Duration::from_millis(20);
        while Instant::now() < until {
            let step = self.store.claim(&self.shared.name, &self.key, &self.claim);
            match self.shared.within_budget(&self.store, step).await {
                Ok(Claimed::New(grant) | Claimed::Mine(grant)) => {
                    let holder = Holder::new(&self.claim, &grant);
                    let (name, key) = (&self.shared.name, &self.key);
                    // The work was not begun. What became of it before is as open as it was.
                    let step = self.store.release(name, key, &holder);
                    let _ = self.shared.within_budget(&self.store, step).await;
                    return;
                }
                Ok(_) => return,
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

/// On the runtime that is running; nowhere, if none is.
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(work);
    }
}
