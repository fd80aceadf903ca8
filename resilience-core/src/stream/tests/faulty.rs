//! A broker whose steps fail on request.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::stream::{
    Batch, Begin, Begun, Claim, Claimed, DeadLetter, Held, InProcessStreams, Join, Joined, Pause,
    PendingMessage, Position, Publish, Published, RawMessage, Read, Retention, Settled, Settlement,
    Start, StreamBroker, StreamState, Trimmed,
    broker::{StoreError, StoreFuture},
};

/// What happens to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// It is not done, and that is known.
    Refuse,
    /// It is done, and the answer is lost.
    LoseAnswer,
    /// It is not done, and there is never an answer.
    Hang,
}

type Plan = dyn Fn(&'static str, u64) -> Fault + Send + Sync;

/// Delegates to a broker in process; `plan` is asked with the name of the step and its number among those of that name.
#[derive(Clone)]
pub(super) struct Faulty {
    pub(super) inner: InProcessStreams,
    plan: Arc<Plan>,
    counts: Arc<[AtomicU64; STEPS.len()]>,
}

const STEPS: [&str; 8] = [
    "publish", "join", "read", "claim", "extend", "begin", "settle", "other",
];

impl Faulty {
    pub(super) fn new(
        inner: &InProcessStreams,
        plan: impl Fn(&'static str, u64) -> Fault + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner: inner.clone(),
            plan: Arc::new(plan),
            counts: Arc::default(),
        }
    }

    fn step<'a, T: Send + 'a>(
        &self,
        step: &'static str,
        done: StoreFuture<'a, T>,
    ) -> StoreFuture<'a, T> {
        let at = STEPS.iter().position(|it| *it == step);
        let number = self.counts[at.expect("it is listed")].fetch_add(1, Relaxed) + 1;
        let fault = (self.plan)(step, number);
        Box::pin(async move {
            match fault {
                Fault::None => done.await,
                Fault::Refuse => Err(StoreError::new("refused", false)),
                Fault::LoseAnswer => {
                    drop(done.await);
                    Err(StoreError::new("the connection broke", true))
                }
                Fault::Hang => pending().await,
            }
        })
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl StreamBroker for Faulty {
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        publish: &'a Publish,
    ) -> StoreFuture<'a, Vec<Published>> {
        // In process a step is done when it is asked for: it must not be, if it hangs.
        self.step(
            "publish",
            Box::pin(async move { self.inner.publish(stream, publish).await }),
        )
    }

    fn join<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        join: &'a Join,
    ) -> StoreFuture<'a, Joined> {
        self.step(
            "join",
            Box::pin(async move { self.inner.join(stream, group, join).await }),
        )
    }

    fn leave<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
    ) -> StoreFuture<'a, bool> {
        self.step(
            "other",
            Box::pin(async move { self.inner.leave(stream, group, consumer).await }),
        )
    }

    fn read<'a>(&'a self, group: &'a str, read: Read<'a>) -> StoreFuture<'a, Batch> {
        self.step(
            "read",
            Box::pin(async move { self.inner.read(group, read).await }),
        )
    }

    fn claim<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        claim: Claim<'a>,
    ) -> StoreFuture<'a, Claimed> {
        self.step(
            "claim",
            Box::pin(async move { self.inner.claim(stream, group, claim).await }),
        )
    }

    fn extend<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<Held>> {
        self.step(
            "extend",
            Box::pin(async move { self.inner.extend(stream, group, consumer, positions).await }),
        )
    }

    fn begin<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        begins: &'a [Begin],
    ) -> StoreFuture<'a, Vec<Begun>> {
        self.step(
            "begin",
            Box::pin(async move { self.inner.begin(stream, group, consumer, begins).await }),
        )
    }

    fn settle<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        settlements: &'a [Settlement],
    ) -> StoreFuture<'a, Vec<Settled>> {
        self.step(
            "settle",
            Box::pin(async move {
                self.inner
                    .settle(stream, group, consumer, settlements)
                    .await
            }),
        )
    }

    fn seek<'a>(&'a self, stream: &'a str, group: &'a str, to: Start) -> StoreFuture<'a, bool> {
        self.inner.seek(stream, group, to)
    }

    fn trim<'a>(&'a self, stream: &'a str, retention: &'a Retention) -> StoreFuture<'a, Trimmed> {
        self.inner.trim(stream, retention)
    }

    fn pause<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        pause: Option<&'a Pause>,
    ) -> StoreFuture<'a, bool> {
        self.inner.pause(stream, group, pause)
    }

    fn state<'a>(&'a self, stream: &'a str) -> StoreFuture<'a, Option<StreamState>> {
        self.inner.state(stream)
    }

    fn peek<'a>(
        &'a self,
        stream: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<(Position, RawMessage)>> {
        // What asks while the broker is unavailable.
        self.step(
            "other",
            Box::pin(async move { self.inner.peek(stream, from, max).await }),
        )
    }

    fn pending<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<PendingMessage>> {
        self.inner.pending(stream, group, from, max)
    }

    fn dead_letters<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>> {
        self.inner.dead_letters(stream, group, from, max)
    }

    fn redrive<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        self.inner.redrive(stream, group, positions)
    }

    fn drop_dead<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        self.inner.drop_dead(stream, group, positions)
    }

    fn remove_group<'a>(&'a self, stream: &'a str, group: &'a str) -> StoreFuture<'a, bool> {
        self.inner.remove_group(stream, group)
    }
}
