//! A store that fails at will.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicU32,
        Ordering::{Relaxed, SeqCst},
    },
};

use bytes::Bytes;

use crate::{
    fleet::{StoreHandle, Subscription},
    idempotency::{
        IdempotencyStore, InProcessIdempotency,
        record::{Claim, Claimed, Completion, Holder, RecordView, StoreResolution, WriteOutcome},
        store::{StoreError, StoreFuture},
    },
};

/// The in-process store behind a connection that fails at will.
#[derive(Clone, Debug, Default)]
pub(super) struct Shaky {
    pub(super) inner: InProcessIdempotency,
    pub(super) handle: StoreHandle,
    line: Arc<Line>,
}

#[derive(Debug, Default)]
struct Line {
    down: AtomicBool,
    hangs: AtomicBool,
    lose_replies: AtomicU32,
    silent: AtomicBool,
    lists: AtomicBool,
    announced: AtomicU32,
    asked: AtomicU32,
}

impl Shaky {
    /// A connection of its own to `inner`.
    pub(super) fn over(inner: &InProcessIdempotency) -> Self {
        Self {
            inner: inner.clone(),
            ..Self::default()
        }
    }

    /// Steps are refused, and nothing is done.
    pub(super) fn down(&self, down: bool) {
        self.line.down.store(down, SeqCst);
    }

    /// Steps are done, and their answers never come.
    pub(super) fn hangs(&self, hangs: bool) {
        self.line.hangs.store(hangs, SeqCst);
    }

    /// The next steps are done, and their answers are lost.
    pub(super) fn lose_replies(&self, number: u32) {
        self.line.lose_replies.store(number, SeqCst);
    }

    /// Subscribers are not told of changes.
    pub(super) fn silent(&self) {
        self.line.silent.store(true, SeqCst);
    }

    /// The store has a list of names.
    pub(super) fn lists(&self) {
        self.line.lists.store(true, SeqCst);
    }

    /// Announcements so far.
    pub(super) fn announced(&self) -> u32 {
        self.line.announced.load(SeqCst)
    }

    /// Steps so far.
    pub(super) fn asked(&self) -> u32 {
        self.line.asked.load(SeqCst)
    }

    fn pass<'a, T: Send + 'a>(&'a self, step: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        Box::pin(async move {
            self.line.asked.fetch_add(1, SeqCst);
            if self.line.down.load(SeqCst) {
                return Err(StoreError::new("refused", false));
            }
            let answer = step.await;
            if self.line.hangs.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            let lose = |left: u32| left.checked_sub(1);
            if self
                .line
                .lose_replies
                .fetch_update(SeqCst, Relaxed, lose)
                .is_ok()
            {
                return Err(StoreError::new("lost", true));
            }
            answer
        })
    }
}

impl IdempotencyStore for Shaky {
    fn announce<'a>(&'a self, name: &'a str) -> Option<StoreFuture<'a, ()>> {
        self.line.lists.load(SeqCst).then(|| {
            assert_eq!(name, "test");
            self.pass(Box::pin(async move {
                self.line.announced.fetch_add(1, SeqCst);
                Ok(())
            }))
        })
    }

    fn claim<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        claim: &'a Claim,
    ) -> StoreFuture<'a, Claimed> {
        self.pass(Box::pin(
            async move { self.inner.claim(name, key, claim).await },
        ))
    }

    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        self.pass(Box::pin(async move {
            self.inner.extend(name, key, holder, lease_ms).await
        }))
    }

    fn checkpoint<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        checkpoint: &'a Bytes,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        self.pass(Box::pin(async move {
            let saved = self
                .inner
                .checkpoint(name, key, holder, checkpoint, lease_ms);
            saved.await
        }))
    }

    fn complete<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        completion: &'a Completion,
    ) -> StoreFuture<'a, WriteOutcome> {
        self.pass(Box::pin(async move {
            self.inner.complete(name, key, holder, completion).await
        }))
    }

    fn release<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        self.pass(Box::pin(async move {
            self.inner.release(name, key, holder).await
        }))
    }

    fn unknown<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        self.pass(Box::pin(async move {
            self.inner.unknown(name, key, holder).await
        }))
    }

    fn resolve<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        fence: u64,
        resolution: &'a StoreResolution,
    ) -> StoreFuture<'a, WriteOutcome> {
        self.pass(Box::pin(async move {
            self.inner.resolve(name, key, fence, resolution).await
        }))
    }

    fn get<'a>(&'a self, name: &'a str, key: &'a str) -> StoreFuture<'a, Option<RecordView>> {
        self.pass(Box::pin(async move { self.inner.get(name, key).await }))
    }

    fn subscribe(&self, name: &str, key: &str) -> Subscription<()> {
        if self.line.silent.load(SeqCst) {
            self.inner.subscribe(name, "another key")
        } else {
            self.inner.subscribe(name, key)
        }
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.handle)
    }
}
