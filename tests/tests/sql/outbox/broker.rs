//! A broker whose publishes fail on request.

use std::{fmt, future::pending, sync::Arc};

use resilience_core::{
    fleet::{StoreError, StoreFuture},
    stream::{
        Batch, Begin, Begun, Claim, Claimed, DeadLetter, Held, InProcessStreams, Join, Joined,
        Pause, PendingMessage, Position, Publish, Published, RawMessage, Read, Retention, Settled,
        Settlement, Start, StreamBroker, StreamState, Trimmed,
    },
};
use tokio::sync::Notify;

/// What happens to a publish.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    None,
    /// It is not done, and that is known.
    Refuse,
    /// It is done, and there is never an answer.
    LoseAnswer,
    /// It is done when this is notified, whether or not the caller still waits.
    Hold(Arc<Notify>),
}

type Plan = dyn Fn(&Publish) -> Fault + Send + Sync;

/// Delegates to a broker in this process; `plan` is asked at each publish.
#[derive(Clone)]
pub(super) struct Faulty {
    inner: InProcessStreams,
    plan: Arc<Plan>,
}

impl Faulty {
    pub(super) fn new(
        inner: &InProcessStreams,
        plan: impl Fn(&Publish) -> Fault + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner: inner.clone(),
            plan: Arc::new(plan),
        }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

macro_rules! delegated {
    ($($step:ident($($argument:ident: $of:ty),*) -> $answer:ty;)*) => {$(
        fn $step<'a>(&'a self, $($argument: $of),*) -> StoreFuture<'a, $answer> {
            self.inner.$step($($argument),*)
        }
    )*};
}

impl StreamBroker for Faulty {
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        publish: &'a Publish,
    ) -> StoreFuture<'a, Vec<Published>> {
        match (self.plan)(publish) {
            Fault::None => self.inner.publish(stream, publish),
            Fault::Refuse => Box::pin(async { Err(StoreError::new("refused", false)) }),
            Fault::LoseAnswer => Box::pin(async {
                self.inner.publish(stream, publish).await?;
                pending().await
            }),
            Fault::Hold(until) => {
                let (inner, stream, publish) =
                    (self.inner.clone(), stream.to_owned(), publish.clone());
                let late = tokio::spawn(async move {
                    until.notified().await;
                    inner.publish(&stream, &publish).await
                });
                Box::pin(async { late.await.expect("no panic") })
            }
        }
    }

    delegated! {
        join(stream: &'a str, group: &'a str, join: &'a Join) -> Joined;
        leave(stream: &'a str, group: &'a str, consumer: &'a str) -> bool;
        read(group: &'a str, read: Read<'a>) -> Batch;
        claim(stream: &'a str, group: &'a str, claim: Claim<'a>) -> Claimed;
        extend(stream: &'a str, group: &'a str, consumer: &'a str, positions: &'a [Position]) -> Vec<Held>;
        begin(stream: &'a str, group: &'a str, consumer: &'a str, begins: &'a [Begin]) -> Vec<Begun>;
        settle(stream: &'a str, group: &'a str, consumer: &'a str, settlements: &'a [Settlement]) -> Vec<Settled>;
        seek(stream: &'a str, group: &'a str, to: Start) -> bool;
        trim(stream: &'a str, retention: &'a Retention) -> Trimmed;
        pause(stream: &'a str, group: &'a str, pause: Option<&'a Pause>) -> bool;
        state(stream: &'a str) -> Option<StreamState>;
        peek(stream: &'a str, from: Position, max: usize) -> Vec<(Position, RawMessage)>;
        pending(stream: &'a str, group: &'a str, from: Position, max: usize) -> Vec<PendingMessage>;
        dead_letters(stream: &'a str, group: &'a str, from: Position, max: usize) -> Vec<DeadLetter>;
        redrive(stream: &'a str, group: &'a str, positions: &'a [Position]) -> Vec<bool>;
        drop_dead(stream: &'a str, group: &'a str, positions: &'a [Position]) -> Vec<bool>;
        remove_group(stream: &'a str, group: &'a str) -> bool;
    }
}
