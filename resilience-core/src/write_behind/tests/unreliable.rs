//! A store that loses answers, refuses, or never answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use crate::write_behind::{
    InProcessWriteBehind, WriteBehindStore,
    record::{DeadAction, RawDead, RawEntry, Settle, ShardState, Take, Taken, Write, Written},
    store::{Shard, StoreError, StoreFuture},
};

#[derive(Clone, Debug)]
pub(super) struct Unreliable(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    inner: InProcessWriteBehind,
    /// Steps are not done.
    refuse: AtomicBool,
    /// Steps never end.
    hang: AtomicBool,
    /// Number of answers to writes and settlements to lose: the step is done.
    lose: AtomicUsize,
}

impl Unreliable {
    pub(super) fn new() -> Self {
        Self::over(InProcessWriteBehind::new())
    }

    pub(super) fn over(inner: InProcessWriteBehind) -> Self {
        Self(Arc::new(Inner {
            inner,
            refuse: AtomicBool::new(false),
            hang: AtomicBool::new(false),
            lose: AtomicUsize::new(0),
        }))
    }

    pub(super) fn refuse(&self, yes: bool) {
        self.0.refuse.store(yes, SeqCst);
    }

    pub(super) fn hang(&self, yes: bool) {
        self.0.hang.store(yes, SeqCst);
    }

    pub(super) fn lose(&self, answers: usize) {
        self.0.lose.store(answers, SeqCst);
    }

    fn step<'a, T: Send + 'a>(
        &'a self,
        changes: bool,
        step: impl FnOnce(&'a InProcessWriteBehind) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            if self.0.hang.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.0.refuse.load(SeqCst) {
                return Err(StoreError::new("refused", false));
            }
            let answer = step(&self.0.inner).await;
            let lost = |left: usize| left.checked_sub(1);
            if changes && self.0.lose.fetch_update(SeqCst, SeqCst, lost).is_ok() {
                return Err(StoreError::new("the answer was lost", true));
            }
            answer
        })
    }
}

impl WriteBehindStore for Unreliable {
    fn write<'a>(&'a self, shard: Shard<'a>, write: &'a Write) -> StoreFuture<'a, Written> {
        self.step(true, move |it| it.write(shard, write))
    }

    fn read<'a>(&'a self, shard: Shard<'a>, key: &'a str) -> StoreFuture<'a, Option<RawEntry>> {
        self.step(false, move |it| it.read(shard, key))
    }

    fn take<'a>(&'a self, shard: Shard<'a>, take: &'a Take) -> StoreFuture<'a, Taken> {
        self.step(false, move |it| it.take(shard, take))
    }

    fn renew<'a>(&'a self, shard: Shard<'a>, fence: u64, lease_ms: u64) -> StoreFuture<'a, bool> {
        self.step(false, move |it| it.renew(shard, fence, lease_ms))
    }

    fn settle<'a>(&'a self, shard: Shard<'a>, settle: &'a Settle) -> StoreFuture<'a, bool> {
        self.step(true, move |it| it.settle(shard, settle))
    }

    fn state<'a>(&'a self, shard: Shard<'a>) -> StoreFuture<'a, ShardState> {
        self.step(false, move |it| it.state(shard))
    }

    fn dead<'a>(
        &'a self,
        shard: Shard<'a>,
        after: Option<&'a str>,
        max: usize,
    ) -> StoreFuture<'a, Vec<RawDead>> {
        self.step(false, move |it| it.dead(shard, after, max))
    }

    fn act_on_dead<'a>(
        &'a self,
        shard: Shard<'a>,
        keys: &'a [Arc<str>],
        action: DeadAction,
    ) -> StoreFuture<'a, u64> {
        self.step(false, move |it| it.act_on_dead(shard, keys, action))
    }
}
