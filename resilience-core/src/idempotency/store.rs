//! What a store of records offers.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use super::record::{
    BEYOND, Claim, Claimed, Completion, Holder, RecordView, StoreResolution, WriteOutcome,
};
use crate::fleet::StoreHandle;
pub use crate::fleet::{StoreError, StoreFuture};

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// The longest owner and fingerprint, in bytes.
pub const MAX_WORD: usize = 128;
/// The largest outcome, in bytes.
pub const MAX_OUTCOME: usize = 16 << 20;
/// The largest checkpoint, in bytes.
pub const MAX_CHECKPOINT: usize = 1 << 20;

/// Where the instances of a service keep their records.
///
/// Each method is one atomic step on the [`Record`](super::record::Record) of `key` in the group called `name`, with the
/// store's own clock, in one round trip. Whatever ends a wait (a completion, a release, an unknown outcome, a
/// resolution) is told to all who are [subscribed](Self::subscribe).
///
/// A failure that is [ambiguous](StoreError::ambiguous) may have been done all the same. Every step can be repeated
/// as it is until its answer comes.
pub trait IdempotencyStore: fmt::Debug + Send + Sync + 'static {
    /// See [`Record::claim`](super::record::Record::claim).
    fn claim<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        claim: &'a Claim,
    ) -> StoreFuture<'a, Claimed>;

    /// See [`Record::extend`](super::record::Record::extend).
    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome>;

    /// See [`Record::checkpoint`](super::record::Record::checkpoint).
    fn checkpoint<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        checkpoint: &'a Bytes,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome>;

    /// See [`Record::complete`](super::record::Record::complete). An answer other than [`WriteOutcome::Lost`] means that the
    /// outcome is there for whoever asks next.
    fn complete<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        completion: &'a Completion,
    ) -> StoreFuture<'a, WriteOutcome>;

    /// See [`Record::release`](super::record::Record::release).
    fn release<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome>;

    /// See [`Record::unknown`](super::record::Record::unknown).
    fn unknown<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome>;

    /// See [`Record::resolve`](super::record::Record::resolve).
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        fence: u64,
        resolution: &'a StoreResolution,
    ) -> StoreFuture<'a, WriteOutcome>;

    /// The record as it is, if there is one.
    fn get<'a>(&'a self, name: &'a str, key: &'a str) -> StoreFuture<'a, Option<RecordView>>;

    /// Tells when the record of `key` may have changed, from now on, those who subscribe first and then claim, and are told
    /// that somebody is at work: a store need not tell anybody else. It ends with the last clone of what is returned.
    fn subscribe(&self, name: &str, key: &str) -> Changes;

    /// This process' use of the store: return the one that the store keeps, and that its clones share. The default,
    /// `None`, gives every handle one of its own: then a shutdown ends one handle at a time, and live instances are
    /// counted by the records of each pattern.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

/// Says when to look again. It may say so for nothing, and it may stay silent when a connection was lost: whoever waits
/// looks now and then of their own accord.
#[derive(Clone)]
pub struct Changes {
    heard: watch::Receiver<()>,
    /// Dropped with the last clone, so that a store can end what it does for it.
    _held: Option<Arc<dyn Send + Sync>>,
}

impl Changes {
    /// What a store hands out that has a sender for the key.
    #[must_use]
    pub const fn new(heard: watch::Receiver<()>) -> Self {
        Self { heard, _held: None }
    }

    /// The same; `held` is dropped when nobody listens any more.
    #[must_use]
    pub fn holding(heard: watch::Receiver<()>, held: Arc<dyn Send + Sync>) -> Self {
        Self {
            heard,
            _held: Some(held),
        }
    }

    /// Waits until there may be news; for ever, once the store is gone. Loses none when it is dropped.
    pub async fn next(&mut self) {
        if self.heard.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

/// What every store refuses, whatever it is made of: numbers that a script cannot count with, and sizes without bound.
pub mod validate {
    use super::{
        BEYOND, Claim, Completion, Holder, MAX_CHECKPOINT, MAX_KEY, MAX_OUTCOME, MAX_WORD,
        StoreError, StoreResolution,
    };

    /// About 30 years, in milliseconds: a moment that far ahead, in microseconds, is still a number for a script.
    pub const MAX_MS: u64 = 1_000_000_000_000;

    /// Any key.
    ///
    /// # Errors
    /// If it is empty or longer than [`MAX_KEY`].
    pub fn key(key: &str) -> Result<(), StoreError> {
        size("key", key.len(), MAX_KEY)?;
        least("bytes of the key", key.len() as u64, 1)
    }

    /// A claim.
    ///
    /// # Errors
    /// If its owner is empty or too long, its fingerprint too long, its lease zero, or its retention below its lease
    /// or beyond [`MAX_MS`].
    pub fn claim(claim: &Claim) -> Result<(), StoreError> {
        word("owner", &claim.owner)?;
        size("fingerprint", claim.fingerprint.len(), MAX_WORD)?;
        ms("lease", claim.lease_ms)?;
        ms("retention", claim.retention_ms)?;
        least("retention", claim.retention_ms, claim.lease_ms)
    }

    /// A holder.
    ///
    /// # Errors
    /// If it cannot have come from a claim that a store granted.
    pub fn holder(holder: &Holder) -> Result<(), StoreError> {
        word("owner", &holder.owner)?;
        size("fingerprint", holder.fingerprint.len(), MAX_WORD)?;
        ms("retention", holder.retention_ms)?;
        fence(holder.fence)?;
        least("attempt", holder.attempt.into(), 1)
    }

    /// A fence.
    ///
    /// # Errors
    /// If it is zero, or too large to be counted on from.
    pub fn fence(fence: u64) -> Result<(), StoreError> {
        least("fence", fence, 1)?;
        if fence >= BEYOND - 1 {
            return Err(no(format!(
                "the fence is {fence}, which is beyond counting"
            )));
        }
        Ok(())
    }

    /// A lease, in milliseconds.
    ///
    /// # Errors
    /// If it is zero or beyond [`MAX_MS`].
    pub fn lease(lease_ms: u64) -> Result<(), StoreError> {
        ms("lease", lease_ms)
    }

    /// A checkpoint of `bytes`.
    ///
    /// # Errors
    /// If it is larger than [`MAX_CHECKPOINT`].
    pub fn checkpoint(bytes: usize) -> Result<(), StoreError> {
        size("checkpoint", bytes, MAX_CHECKPOINT)
    }

    /// An outcome and its time.
    ///
    /// # Errors
    /// If it is larger than [`MAX_OUTCOME`], or its time is zero or beyond [`MAX_MS`].
    pub fn completion(completion: &Completion) -> Result<(), StoreError> {
        size("outcome", completion.outcome.len(), MAX_OUTCOME)?;
        ms("ttl", completion.ttl_ms)
    }

    /// What an outcome is resolved to.
    ///
    /// # Errors
    /// As [`completion`].
    pub fn resolution(resolution: &StoreResolution) -> Result<(), StoreError> {
        match resolution {
            StoreResolution::Done(completed) => completion(completed),
            StoreResolution::Release => Ok(()),
        }
    }

    fn word(what: &str, word: &str) -> Result<(), StoreError> {
        size(what, word.len(), MAX_WORD)?;
        if word.is_empty() {
            return Err(no(format!("the {what} is empty")));
        }
        Ok(())
    }

    fn ms(what: &str, ms: u64) -> Result<(), StoreError> {
        least(what, ms, 1)?;
        if ms > MAX_MS {
            return Err(no(format!("{what}: {ms} ms is more than {MAX_MS}")));
        }
        Ok(())
    }

    fn least(what: &str, is: u64, least: u64) -> Result<(), StoreError> {
        if is < least {
            return Err(no(format!("{what}: {is} is less than {least}")));
        }
        Ok(())
    }

    fn size(what: &str, is: usize, most: usize) -> Result<(), StoreError> {
        if is > most {
            return Err(no(format!("{what}: {is} bytes are more than {most}")));
        }
        Ok(())
    }

    fn no(reason: String) -> StoreError {
        StoreError::new(reason, false)
    }
}
