//! From a key to what is to be done: run the work, replay its outcome, or reject the call.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    abandoned::AbandonedClaim,
    attempt::HeldClaim,
    cache::Known,
    key::{Fingerprint, Key},
    record::{Claim, Claimed, Grant, Holder},
    shared::{Counted, Shared},
    store::{IdempotencyStore, RecordClient, StoreError},
    worker::Worker,
};
use crate::{
    backoff::Backoff,
    deadline,
    error::{Pattern, Reason, Rejected},
    fleet::{InProgress, OnOutage, Subscription},
    sealing::Opened,
};

/// What is to be done.
pub(super) enum Admission {
    Work(Box<Worker>),
    Replay { outcome: Bytes, age: Duration },
}

/// How often a claim is tried.
const TRIES: usize = 3;
/// The `retry_after` of a rejection because the store is unavailable, or the instance is shutting down.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Interval at which a waiting caller claims again without a message from the store, in milliseconds.
const BACKSTOP_MS: u64 = 1_000;

/// The pauses between the tries of a claim.
fn pauses() -> Backoff {
    Backoff::decorrelated_jitter(Duration::from_millis(20), Duration::from_millis(100))
}

impl Shared {
    /// Calls `on_wait` before the first wait for another attempt's outcome.
    pub(super) async fn admit(
        self: &Arc<Self>,
        key: &Key,
        on_wait: impl FnOnce() + Send,
    ) -> Result<Admission, Rejected> {
        let (stored, print) = (Arc::<str>::from(key.stored()), key.print());
        if let Some(known) = self.cache.find(&stored, print, key.former()) {
            return self.known(known);
        }
        let claiming = Claiming {
            shared: self,
            in_progress: self.tasks.enter().ok_or_else(|| self.shutting_down())?,
            key: stored,
            print,
            former: key.former(),
            claim: Arc::new(self.claim(print)),
        };
        claiming.admit(on_wait).await
    }

    pub(super) fn shutting_down(&self) -> Rejected {
        self.reject(Reason::ShuttingDown, Some(RETRY_AFTER))
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

    /// The store to claim from first, and whether it is the local one: that one for the keys it has.
    async fn first_store(&self, key: &str) -> (&RecordClient, bool) {
        if self.store.on_outage() == OnOutage::Local && !self.local.is_empty() {
            let known = self.local.get(&self.name, key).await;
            if matches!(known, Ok(Some(_))) {
                return (&self.local_store, true);
            }
        }
        (&self.store, false)
    }
}

struct Claiming<'a> {
    shared: &'a Arc<Shared>,
    in_progress: InProgress,
    key: Arc<str>,
    print: &'a Fingerprint,
    /// The fingerprint to claim with when the record has another one.
    former: Option<&'a Fingerprint>,
    claim: Arc<Claim>,
}

impl Claiming<'_> {
    async fn admit(mut self, on_wait: impl FnOnce() + Send) -> Result<Admission, Rejected> {
        let shared = self.shared;
        let (mut store, mut is_local) = shared.first_store(&self.key).await;
        let (mut waiting, mut on_wait) = (None, Some(on_wait));
        loop {
            match self.claim(store).await {
                Ok((_, Claimed::Busy { remaining_ms })) => {
                    let left = Duration::from_millis(remaining_ms);
                    let Some(waiting) = &mut waiting else {
                        shared.totals.in_flight.fetch_add(1, Relaxed);
                        let begun = Waiting::begin(shared, store, &self.key);
                        // Claims once more, now that a change would be noticed.
                        waiting = Some(begun.ok_or_else(|| self.in_flight(left))?);
                        if let Some(on_wait) = on_wait.take() {
                            on_wait();
                        }
                        continue;
                    };
                    tokio::select! {
                        biased;
                        () = shared.tasks.closing() => return Err(shared.shutting_down()),
                        waited = waiting.until_changed(left) => {
                            waited.map_err(|()| self.in_flight(left))?;
                        }
                    }
                }
                Ok((_, Claimed::Mismatch)) if self.former.is_some() => self.by_former(),
                Ok((asked, claimed)) => return self.answered(claimed, store, is_local, asked),
                Err(mut abandoned) => match store.on_outage() {
                    OnOutage::Local if !is_local => {
                        abandoned.resolve();
                        (store, is_local) = (&shared.local_store, true);
                        waiting = None;
                    }
                    OnOutage::FailOpen => {
                        abandoned.resolve();
                        return Ok(self.unguarded());
                    }
                    // Given back, if it was granted after all.
                    OnOutage::Local | OnOutage::FailClosed => {
                        return Err(shared.reject(Reason::StoreUnreachable, Some(RETRY_AFTER)));
                    }
                },
            }
        }
    }

    /// Goes on with the other fingerprint that the record may have.
    fn by_former(&mut self) {
        if let Some(former) = self.former.take() {
            self.print = former;
            self.claim = Arc::new(self.shared.claim(former));
        }
    }

    /// Every answer but [`Claimed::Busy`].
    fn answered(
        self,
        claimed: Claimed,
        store: &RecordClient,
        is_local: bool,
        asked: Instant,
    ) -> Result<Admission, Rejected> {
        let (shared, totals) = (self.shared, &self.shared.totals);
        if !is_local {
            shared.local.heard(&claimed);
        }
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

    /// One claim, tried up to [`TRIES`] times under one owner while the store is available. The answer comes with the moment
    /// just before it was asked for.
    async fn claim(&self, store: &RecordClient) -> Result<(Instant, Claimed), AbandonedClaim> {
        let (name, key, claim) = (&self.shared.name, &self.key, &self.claim);
        let mut abandoned = AbandonedClaim::new(self.shared, store, key, claim);
        let mut is_certain = true;
        let mut pauses = pauses().delays();
        for left in (0..TRIES).rev() {
            let asked = Instant::now();
            match store.call(|store| store.claim(name, key, claim)).await {
                Ok(claimed) => {
                    abandoned.resolve();
                    return Ok((asked, claimed));
                }
                Err(failure) => {
                    is_certain &= !failure.ambiguous;
                    self.failed(&failure);
                }
            }
            let is_late = deadline::current().is_some_and(deadline::Deadline::is_past);
            if left == 0 || is_late || !store.is_available() {
                break;
            }
            sleep(pauses.next().unwrap_or_default()).await;
        }
        if is_certain {
            abandoned.resolve();
        }
        Err(abandoned)
    }

    fn failed(&self, failure: &StoreError) {
        tracing::debug!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.shared.name,
            %failure,
            "a claim had no answer"
        );
    }

    fn worker(
        self,
        store: &RecordClient,
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
            in_progress: Some(self.in_progress),
            key: self.key,
            print: self.print.clone(),
            claim: self.claim,
            held: Some(HeldClaim {
                store: store.clone(),
                holder,
            }),
            checkpoint: None,
            sealed_checkpoint: grant.checkpoint,
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
                // The work must not be run without the checkpoint of an earlier attempt.
                self.shared.spawn(async move { worker.give_back().await });
                Err(rejected)
            }
        }
    }

    fn unguarded(self) -> Admission {
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.shared.name,
            "the store is unavailable: the work runs without protection"
        );
        Admission::Work(Box::new(Worker {
            shared: Arc::clone(self.shared),
            in_progress: Some(self.in_progress),
            key: self.key,
            print: self.print.clone(),
            claim: self.claim,
            held: None,
            checkpoint: None,
            sealed_checkpoint: None,
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

/// A caller that waits for another attempt's outcome.
struct Waiting<'a> {
    _place: Counted<'a>,
    changes: Subscription<()>,
    until: Instant,
}

impl<'a> Waiting<'a> {
    /// `None` if the handle lets no callers wait, or as many as may wait already.
    fn begin(shared: &'a Shared, store: &RecordClient, key: &str) -> Option<Self> {
        let (max_callers, max_wait) = shared.settings.wait?;
        let place = Counted::below(&shared.totals.waiting, max_callers)?;
        Some(Self {
            _place: place,
            changes: store.store().subscribe(&shared.name, key),
            until: deadline::before_deadline(max_wait),
        })
    }

    /// Waits until the record may have changed; an error, when the time is over.
    async fn until_changed(&mut self, left: Duration) -> Result<(), ()> {
        let now = Instant::now();
        if now >= self.until {
            return Err(());
        }
        // Jittered, so that callers do not claim all at once.
        let backstop = BACKSTOP_MS * 3 / 4 + fastrand::u64(0..=BACKSTOP_MS / 2);
        let again = now + left.min(Duration::from_millis(backstop));
        tokio::select! {
            _ = self.changes.next() => {}
            () = sleep_until(self.until.min(again)) => {}
        }
        Ok(())
    }
}
