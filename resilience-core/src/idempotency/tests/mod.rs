//! The handle, over the store of this process and over one that fails at will.

mod announcing;
mod config;
mod doubt;
mod effect;
mod fingerprint;
mod hanging;
mod leases;
mod places;
mod run;
mod shaky;
mod shutdown;
mod unreachable;
mod unrecorded;
mod waiting;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use super::{
    Attempt, Effect, Idempotency, IdempotencyBuilder, InProcessIdempotency, Outcome, Recorded,
    Source,
};
use crate::error::{Error, Reason};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(30);

type Answer = Result<Outcome<u32>, Error<io::Error>>;

/// Callers are rejected at once while an attempt is in progress.
fn builder(store: &InProcessIdempotency) -> IdempotencyBuilder {
    let builder = Idempotency::builder("test").store(store.clone());
    builder.without_wait()
}

fn handle(store: &InProcessIdempotency) -> Idempotency {
    builder(store).build().unwrap()
}

/// A handle whose work may be done again.
fn repeating(store: &InProcessIdempotency) -> Idempotency {
    let builder = builder(store).effect(Effect::Idempotent);
    builder.build().unwrap()
}

/// Work that takes effect: how often, and what it answers with.
#[derive(Clone, Debug, Default)]
struct Effects(Arc<AtomicU32>);

impl Effects {
    fn count(&self) -> u32 {
        self.0.load(SeqCst)
    }

    /// One more effect; its number is the result.
    fn happen(&self) -> u32 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    /// Takes effect after `wait`.
    async fn after(self, wait: Duration) -> Result<u32, io::Error> {
        tokio::time::sleep(wait).await;
        Ok(self.happen())
    }

    async fn once(&self, handle: &Idempotency, key: &str) -> Answer {
        self.taking(handle, key, Duration::ZERO).await
    }

    async fn taking(&self, handle: &Idempotency, key: &str, wait: Duration) -> Answer {
        let effects = self.clone();
        handle.run(key, move |_| effects.after(wait)).await
    }

    /// The same in a task of its own, which has begun.
    async fn begin(
        &self,
        handle: &Idempotency,
        key: &'static str,
        wait: Duration,
    ) -> tokio::task::JoinHandle<Answer> {
        let (effects, handle) = (self.clone(), handle.clone());
        let before = handle.snapshot().granted;
        let counted = handle.clone();
        let task = tokio::spawn(async move { effects.taking(&handle, key, wait).await });
        let mut looks = 0;
        while counted.snapshot().granted == before {
            tokio::task::yield_now().await;
            // Should it take some time, the clock must be let go on.
            looks += 1;
            if looks % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        task
    }
}

#[track_caller]
fn fresh(answer: Answer) -> u32 {
    let outcome = answer.expect("an outcome");
    assert_eq!(outcome.source, Source::Fresh(Recorded::Stored));
    outcome.value
}

#[track_caller]
fn replayed(answer: Answer) -> u32 {
    let outcome = answer.expect("an outcome");
    assert!(outcome.replayed().is_some(), "{:?}", outcome.source);
    outcome.value
}

#[track_caller]
fn refused(answer: Answer) -> (Reason, Option<Duration>) {
    match answer {
        Err(Error::Rejected(rejected)) => (rejected.reason(), rejected.retry_after()),
        other => panic!("not refused: {other:?}"),
    }
}

async fn fail(_: Attempt) -> Result<u32, io::Error> {
    Err(io::Error::other("failed"))
}
