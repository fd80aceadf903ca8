//! Work that is done under a claim: in a task of its own, with a lease that is renewed, to an end that is recorded.

use std::{
    any::Any,
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::oneshot,
    task::JoinError,
    time::{Instant, sleep},
};
use tracing::instrument::{Instrument, WithSubscriber};

use super::{
    attempt::{Attempt, CURRENT},
    builder::{InDoubt, Reconciled},
    heartbeat::Heartbeat,
    key::Fingerprint,
    outcome::{Disposition, Outcomes, Recorded},
    record::{Claim, Claimed, Completion, Holder, Previous, WriteOutcome},
    shared::{Counted, Shared, ms},
    store::{IdempotencyStore, StoreError},
};
use crate::error::Pattern;

/// Whoever does the work.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Arc<str>,
    pub(super) print: Fingerprint,
    pub(super) claim: Arc<Claim>,
    /// None: unguarded.
    pub(super) held: Option<HeldClaim>,
    pub(super) checkpoint: Option<Bytes>,
    /// The same, as the store has it.
    pub(super) left: Option<Bytes>,
    pub(super) previous: Previous,
    /// Just before the claim that was granted.
    pub(super) asked: Instant,
    /// The handle's own store does not know of this, and is to be told the outcome.
    pub(super) replicate: bool,
}

/// A claim that was granted, and by which store.
#[derive(Clone)]
pub(super) struct HeldClaim {
    pub(super) store: Arc<dyn IdempotencyStore>,
    pub(super) holder: Holder,
}

/// How it went, for the caller.
pub(super) struct Finished<R> {
    pub(super) ended: Ended<R>,
    pub(super) recorded: Recorded,
}

pub(super) enum Ended<R> {
    Result(R),
    Panicked(Box<dyn Any + Send>),
    /// At the ceiling.
    Cancelled,
    /// An earlier attempt had done it.
    Reconciled(Bytes),
    /// It may have.
    StillUnknown,
}

/// What the record is to say.
enum Settlement {
    Done {
        plain: Option<Bytes>,
        completion: Completion,
    },
    /// With what is known of the attempt before.
    Release(Previous),
    Unknown,
}

/// The same, before it is sealed.
enum Decided {
    Done {
        plain: Option<Bytes>,
        ttl: Option<Duration>,
    },
    Release,
    Unknown,
}

impl Worker {
    /// Starts the work. It goes on when nobody listens any more.
    pub(super) fn start<R, O, W, Fut>(
        self: Box<Self>,
        outcomes: Arc<O>,
        work: W,
    ) -> oneshot::Receiver<Finished<R>>
    where
        R: Send + 'static,
        O: Outcomes<R>,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let supervised = async move { self.supervise(outcomes, work, tell).await };
        tokio::spawn(supervised.in_current_span().with_current_subscriber());
        told
    }

    async fn supervise<R, O, W, Fut>(
        &self,
        outcomes: Arc<O>,
        work: W,
        tell: oneshot::Sender<Finished<R>>,
    ) where
        R: Send + 'static,
        O: Outcomes<R>,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let running = Counted::new(&self.shared.totals.running);
        let attempt = Attempt::new(self);
        let mut heartbeat = Heartbeat::new(self, &attempt);
        let (settlement, ended) = match self.reconcile(&attempt, &mut heartbeat).await {
            Err((ended, decided)) => (self.seal(decided, self.previous), ended),
            Ok(previous) => {
                let (ended, decided) = self.work(outcomes, work, attempt, &mut heartbeat).await;
                (self.seal(decided, previous), ended)
            }
        };
        let settling = self.settle(&settlement, Some((tell, ended)));
        tokio::select! {
            biased;
            () = settling => {}
            () = heartbeat.forever() => {}
        }
        drop(running);
        if self.replicate {
            self.replicate(&settlement).await;
        }
    }

    /// Does the work, in a task of its own: however it keeps its thread busy, the lease is renewed.
    async fn work<R, O, W, Fut>(
        &self,
        outcomes: Arc<O>,
        work: W,
        attempt: Attempt,
        heartbeat: &mut Heartbeat<'_>,
    ) -> (Ended<R>, Decided)
    where
        R: Send + 'static,
        O: Outcomes<R>,
        W: FnOnce(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let limit = self.shared.settings.max_outcome;
        let name = Arc::clone(&self.shared.name);
        let working = CURRENT.scope(attempt.clone(), async move {
            let result = work(attempt).await;
            let decided = decide(&*outcomes, &result, limit, &name);
            (result, decided)
        });
        let mut task = tokio::spawn(working.in_current_span().with_current_subscriber());
        let joined = tokio::select! {
            biased;
            joined = &mut task => joined,
            () = heartbeat.until_cancelled() => {
                task.abort();
                // It may have ended at the last moment.
                task.await
            }
        };
        match joined {
            Ok((result, decided)) => (Ended::Result(result), decided),
            Err(error) => self.broken_off(error),
        }
    }

    fn broken_off<R>(&self, error: JoinError) -> (Ended<R>, Decided) {
        let panicked = error.is_panic();
        tracing::error!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.shared.name,
            panicked,
            "the work was broken off"
        );
        let decided = match self.shared.settings.on_panic {
            Disposition::Release => Decided::Release,
            _ => Decided::Unknown,
        };
        let ended = match error.try_into_panic() {
            Ok(panic) => Ended::Panicked(panic),
            Err(_) => Ended::Cancelled,
        };
        (ended, decided)
    }

    /// Asks the hook, if there is one and something to ask. `Ok`: do the work, this being known of the attempt before.
    async fn reconcile<R>(
        &self,
        attempt: &Attempt,
        heartbeat: &mut Heartbeat<'_>,
    ) -> Result<Previous, (Ended<R>, Decided)> {
        let hook = match &self.shared.reconcile {
            Some(hook) if self.previous.is_in_doubt() => hook,
            _ => return Ok(self.previous),
        };
        let asked = hook(InDoubt {
            key: Arc::clone(&self.key),
            previous: self.previous,
            attempt: attempt.number(),
            fence: attempt.fence(),
            checkpoint: self.checkpoint.clone(),
        });
        let mut task = tokio::spawn(asked.in_current_span().with_current_subscriber());
        let found = tokio::select! {
            biased;
            found = &mut task => found,
            () = heartbeat.until_cancelled() => {
                task.abort();
                task.await
            }
        };
        match found.unwrap_or(Reconciled::Unknown) {
            Reconciled::NotDone => Ok(Previous::Released),
            Reconciled::Unknown => Err((Ended::StillUnknown, Decided::Unknown)),
            Reconciled::Done(outcome) => {
                let plain = Some(outcome.clone());
                Err((
                    Ended::Reconciled(outcome),
                    Decided::Done { plain, ttl: None },
                ))
            }
        }
    }

    fn seal(&self, decided: Decided, previous: Previous) -> Settlement {
        let (plain, ttl) = match decided {
            Decided::Release => return Settlement::Release(previous),
            Decided::Unknown => return Settlement::Unknown,
            Decided::Done { plain, ttl } => (plain, ttl),
        };
        let settings = &self.shared.settings;
        let ttl_ms = ms(ttl.unwrap_or(settings.ttl)).min(super::store::validate::MAX_MS);
        let associated_data = self.shared.associated_data(&self.key);
        match settings
            .sealing
            .seal(plain.as_deref(), ttl_ms, &associated_data)
        {
            Ok(outcome) => Settlement::Done {
                plain,
                completion: Completion { outcome, ttl_ms },
            },
            Err(why) => {
                self.complain(&why, "the outcome cannot be sealed, and is left unknown");
                Settlement::Unknown
            }
        }
    }

    /// Tells the store how it ended, and the caller what the store said. A store that gives no answer at once is asked
    /// on while the lease can last; the caller is not kept waiting for that.
    async fn settle<R>(
        &self,
        settlement: &Settlement,
        mut caller: Option<(oneshot::Sender<Finished<R>>, Ended<R>)>,
    ) {
        let mut tell = |recorded| {
            if let Some((tell, ended)) = caller.take() {
                // Whoever asked may have gone.
                let _ = tell.send(Finished { ended, recorded });
            }
        };
        let totals = &self.shared.totals;
        let Some(held) = &self.held else {
            totals.unguarded.fetch_add(1, Relaxed);
            return tell(Recorded::Unguarded);
        };
        let until = Instant::now() + self.shared.settings.lease;
        let mut pause = Duration::from_millis(20);
        loop {
            let (asked, step) = (Instant::now(), self.told(held, settlement));
            match self.shared.within_budget(&held.store, step).await {
                Ok(WriteOutcome::Lost(loss)) => {
                    totals.lost.fetch_add(1, Relaxed);
                    self.complain(
                        &format_args!("{loss:?}"),
                        "the end of the work is not recorded",
                    );
                    return tell(Recorded::Lost);
                }
                Ok(WriteOutcome::Kept | WriteOutcome::Restored) => {
                    return tell(self.settled(settlement, asked));
                }
                Err(failure) if Instant::now() >= until => {
                    totals.not_stored.fetch_add(1, Relaxed);
                    self.complain(&failure, "the store never heard how the work ended");
                    return tell(Recorded::Pending);
                }
                Err(_) => tell(Recorded::Pending),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn told(
        &self,
        held: &HeldClaim,
        settlement: &Settlement,
    ) -> Result<WriteOutcome, StoreError> {
        let (store, name, holder) = (&held.store, &self.shared.name, &held.holder);
        match settlement {
            Settlement::Done { completion, .. } => {
                store.complete(name, &self.key, holder, completion).await
            }
            Settlement::Release(previous) => {
                let holder = Holder {
                    previous: *previous,
                    ..holder.clone()
                };
                store.release(name, &self.key, &holder).await
            }
            Settlement::Unknown => store.unknown(name, &self.key, holder).await,
        }
    }

    /// The store knows. `asked` is just before it was told.
    fn settled(&self, settlement: &Settlement, asked: Instant) -> Recorded {
        let totals = &self.shared.totals;
        let (recorded, counter) = match settlement {
            Settlement::Release(_) => (Recorded::Released, &totals.released),
            Settlement::Unknown => {
                self.complain(&"nobody knows how it ended", "the outcome is left unknown");
                (Recorded::Unknown, &totals.left_unknown)
            }
            Settlement::Done { plain, completion } => {
                let until = asked + Duration::from_millis(completion.ttl_ms);
                let cache = &self.shared.cache;
                cache.keep(&self.key, &self.print, plain, asked, until);
                let bytes = completion.outcome.len() as u64;
                totals.record_bytes.fetch_add(bytes, Relaxed);
                match plain {
                    Some(_) => (Recorded::Stored, &totals.recorded),
                    None => (Recorded::WithoutResult, &totals.recorded),
                }
            }
        };
        counter.fetch_add(1, Relaxed);
        recorded
    }

    /// Work that was done while the store was away: it is told the outcome if it comes back soon.
    async fn replicate(&self, settlement: &Settlement) {
        let Settlement::Done { completion, .. } = settlement else {
            return;
        };
        let (shared, store) = (&self.shared, &self.shared.store);
        let until = Instant::now() + shared.settings.lease;
        let mut pause = Duration::from_millis(20);
        while Instant::now() < until {
            let step = async {
                let claimed = store.claim(&shared.name, &self.key, &self.claim).await?;
                if let Claimed::New(grant) | Claimed::Mine(grant) = claimed {
                    let holder = Holder::new(&self.claim, &grant);
                    let completed = store.complete(&shared.name, &self.key, &holder, completion);
                    completed.await?;
                }
                Ok(())
            };
            if shared.within_budget(store, step).await.is_ok() {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Work that is not begun.
    pub(super) async fn give_back(&self) {
        let settlement = Settlement::Release(self.previous);
        self.settle::<()>(&settlement, None).await;
    }

    fn complain(&self, why: &dyn std::fmt::Display, what: &'static str) {
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.shared.name,
            fence = self.held.as_ref().map(|held| held.holder.fence),
            %why,
            "{what}"
        );
    }
}

fn decide<R>(outcomes: &impl Outcomes<R>, result: &R, limit: usize, name: &str) -> Decided {
    let ttl = match outcomes.decide(result) {
        Disposition::Release => return Decided::Release,
        Disposition::Unknown => return Decided::Unknown,
        Disposition::Record => None,
        Disposition::RecordFor(ttl) => Some(ttl),
    };
    let why = match outcomes.encode(result) {
        Ok(bytes) if bytes.len() <= limit => {
            let plain = Some(bytes);
            return Decided::Done { plain, ttl };
        }
        Ok(bytes) => format!("{} bytes are more than {limit}", bytes.len()),
        Err(error) => error.to_string(),
    };
    tracing::warn!(
        target: "resilience",
        pattern = Pattern::Idempotency.as_str(),
        name,
        why,
        "the work counts as done, but its outcome is not kept"
    );
    Decided::Done { plain: None, ttl }
}
