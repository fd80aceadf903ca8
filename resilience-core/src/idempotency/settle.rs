//! The end of work under a claim: what the store records of it, and what the caller receives.

use std::{pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    outcome::Recorded,
    record::{Claimed, Completion, Holder, WriteOutcome},
    settlement::Settlement,
    store::{IdempotencyStore, StoreFuture},
    unrecorded::OnUnrecorded,
    worker::{Caller, Ending, Worker},
};
use crate::{
    deadline::{self, Deadline},
    error::{Pattern, Reason},
};

impl Worker {
    /// Records the ending, and tells the caller what the store said, or that it has not answered in the caller's time. The
    /// step is repeated for as long as the record would be kept: also after the lease has ended, since it counts unless
    /// another claim was granted.
    pub(super) async fn settle<R>(
        &self,
        settlement: &Settlement,
        caller: Option<(Caller<R>, Ending<R>)>,
    ) {
        let deadline = caller.as_ref().and_then(|(caller, _)| caller.deadline);
        let mut caller = caller;
        let mut tell = |recorded| {
            if let Some((caller, ending)) = caller.take() {
                // The caller may be gone.
                let _ = caller
                    .sender
                    .send(self.for_caller(ending, settlement, recorded));
            }
        };
        let totals = &self.shared.totals;
        let Some(held) = &self.held else {
            totals.unguarded.fetch_add(1, Relaxed);
            return tell(Recorded::Unguarded);
        };
        let holder = &settlement.holder(&held.holder);
        let mut asked = Instant::now();
        let answer = {
            let until = asked + settlement.kept(&self.shared.settings);
            let mut writing = pin!(held.store.call_until(until, |store| {
                asked = Instant::now();
                self.write(store, holder, settlement)
            }));
            tokio::select! {
                biased;
                answer = &mut writing => answer,
                () = self.caller_waits(settlement, deadline) => {
                    tell(Recorded::Pending);
                    writing.await
                }
            }
        };
        match answer {
            Ok(WriteOutcome::Lost(loss)) => {
                totals.lost.fetch_add(1, Relaxed);
                let why = format_args!("{loss:?}");
                self.warn(&why, "the end of the work is not recorded");
                tell(Recorded::Lost);
            }
            Ok(WriteOutcome::Kept | WriteOutcome::Restored) => {
                tell(self.settled(settlement, asked));
            }
            Err(failure) => {
                totals.not_stored.fetch_add(1, Relaxed);
                self.warn(&failure, "the outcome never reached the store");
                tell(Recorded::Pending);
            }
        }
    }

    /// Completes when the caller has waited for the record for long enough.
    async fn caller_waits(&self, settlement: &Settlement, deadline: Option<Deadline>) {
        let wait = match (self.shared.settings.on_unrecorded, settlement) {
            (OnUnrecorded::Hold(longest), Settlement::Done { .. }) => longest,
            _ => self.shared.store.budget(),
        };
        tokio::select! {
            () = sleep_until(deadline::before(deadline, wait)) => {}
            () = self.shared.tasks.overdue() => {}
        }
    }

    /// The ending as the caller gets it.
    fn for_caller<R>(
        &self,
        ending: Ending<R>,
        settlement: &Settlement,
        recorded: Recorded,
    ) -> Ending<R> {
        let holds = matches!(self.shared.settings.on_unrecorded, OnUnrecorded::Hold(_));
        let done = matches!(settlement, Settlement::Done { .. });
        match ending {
            _ if holds && done && recorded == Recorded::Pending => {
                Ending::Rejected(Reason::Unrecorded)
            }
            Ending::Result(result, _) => Ending::Result(result, recorded),
            other => other,
        }
    }

    fn write<'a>(
        &'a self,
        store: &'a dyn IdempotencyStore,
        holder: &'a Holder,
        settlement: &'a Settlement,
    ) -> StoreFuture<'a, WriteOutcome> {
        let name = &self.shared.name;
        match settlement {
            Settlement::Done { completion, .. } => {
                store.complete(name, &self.key, holder, completion)
            }
            Settlement::Release(_) => store.release(name, &self.key, holder),
            Settlement::Unknown => store.unknown(name, &self.key, holder),
        }
    }

    /// Counts what the store has recorded. `asked` is just before it was asked to.
    fn settled(&self, settlement: &Settlement, asked: Instant) -> Recorded {
        let totals = &self.shared.totals;
        let (recorded, counter) = match settlement {
            Settlement::Release(_) => (Recorded::Released, &totals.released),
            Settlement::Unknown => {
                let why = "it is not known how the work ended";
                self.warn(&why, "the outcome is left unknown");
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

    /// Tells the handle's own store the outcome of work that was done while it was unavailable, if it is back within a
    /// lease.
    pub(super) async fn replicate(&self, settlement: &Settlement) {
        let Settlement::Done { completion, .. } = settlement else {
            return;
        };
        let until = Instant::now() + self.shared.settings.lease;
        let store = &self.shared.store;
        let recorded = store.call_until(until, |store| self.record_in(store, completion));
        // If it stays unavailable, other instances do not know of the outcome.
        let _ = recorded.await;
    }

    fn record_in<'a>(
        &'a self,
        store: &'a dyn IdempotencyStore,
        completion: &'a Completion,
    ) -> StoreFuture<'a, ()> {
        let (name, key) = (&self.shared.name, &self.key);
        Box::pin(async move {
            let claimed = store.claim(name, key, &self.claim).await?;
            if let Claimed::New(grant) | Claimed::Mine(grant) = claimed {
                let holder = Holder::new(&self.claim, &grant);
                store.complete(name, key, &holder, completion).await?;
            }
            Ok(())
        })
    }

    /// Gives the key back; for work that was not begun.
    pub(super) async fn give_back(&self) {
        let settlement = Settlement::Release(self.previous);
        self.settle::<()>(&settlement, None).await;
    }

    pub(super) fn warn(&self, why: &dyn std::fmt::Display, what: &'static str) {
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
