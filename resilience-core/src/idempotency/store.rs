//! The interface of a store of records.

use std::fmt;

use bytes::Bytes;

use super::record::{
    BEYOND, Claim, Claimed, Completion, Holder, RecordView, StoreResolution, WriteOutcome,
};
use crate::fleet::{Probe, StoreClient, StoreHandle, Subscription};
pub use crate::fleet::{StoreError, StoreFuture};

/// Maximum size of a key in bytes.
pub const MAX_KEY: usize = 1024;
/// Maximum size of an owner or a fingerprint in bytes.
pub const MAX_WORD: usize = 128;
/// Maximum size of an outcome in bytes.
pub const MAX_OUTCOME: usize = 16 << 20;
/// Maximum size of a checkpoint in bytes.
pub const MAX_CHECKPOINT: usize = 1 << 20;

/// A store of idempotency records, shared by the instances of a service.
///
/// Each method is one atomic step on the [`Record`](super::record::Record) of `key` in the group called `name`, by the
/// store's own clock, in one round trip. Every step that ends a wait (a completion, a release, an unknown outcome, a
/// resolution) is sent to all [subscribers](Self::subscribe).
///
/// A step that failed with an [ambiguous](StoreError::ambiguous) error may have been done. Every step can be repeated
/// unchanged until it is answered. Steps need no time budget of their own: the handle gives each one.
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

    /// See [`Record::complete`](super::record::Record::complete). An answer other than [`WriteOutcome::Lost`] means that
    /// the next claim finds the outcome.
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

    /// Subscribes to changes of the record of `key`, from now on. A message says that the record may have changed; there may be
    /// messages without a change, and a lost connection may lose some, so that a caller that waits claims again now and
    /// then. A store needs to tell only subscribers that claim after they have subscribed and are told
    /// [`Claimed::Busy`]. Dropping the last clone unsubscribes.
    fn subscribe(&self, name: &str, key: &str) -> Subscription<()>;

    /// Enters `name` in the list of names that operators see. Handles that are built within a runtime ask for it at once and
    /// about once an hour; a failure is not reported. Default: `None`, there is no such list.
    fn announce<'a>(&'a self, name: &'a str) -> Option<StoreFuture<'a, ()>> {
        let _ = name;
        None
    }

    /// Whether the keys are divided over servers that fail apart from each other (the shards of a Cluster). Such a store marks
    /// the errors of one shard as [`partial`](StoreError::partial), and a step without an answer does not count against its
    /// health: the outage policy decides about that step alone. Default: no.
    fn is_sharded(&self) -> bool {
        false
    }

    /// This process' use of the store: return the one that the store keeps, and that its clones share. The default,
    /// `None`, gives every handle one of its own: then a shutdown ends one handle at a time, and live instances are
    /// counted by the records of each pattern.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(IdempotencyStore);

/// A client of a store of records.
pub(crate) type RecordClient = StoreClient<dyn IdempotencyStore>;

impl Probe for dyn IdempotencyStore {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        // No stored key looks like this one.
        Box::pin(async move { self.get(name, "probe").await.map(drop) })
    }

    fn is_sharded(&self) -> bool {
        IdempotencyStore::is_sharded(self)
    }
}

/// Checks that every store makes: numbers that a script cannot count with and unbounded sizes are errors.
pub mod validate {
    use super::{
        BEYOND, Claim, Completion, Holder, MAX_CHECKPOINT, MAX_KEY, MAX_OUTCOME, MAX_WORD,
        StoreError, StoreResolution,
    };

    /// About 30 years, in milliseconds: a moment that far ahead, in microseconds, is still a number for a script.
    pub const MAX_MS: u64 = 1_000_000_000_000;

    /// Checks a key.
    ///
    /// # Errors
    /// If it is empty or longer than [`MAX_KEY`].
    pub fn key(key: &str) -> Result<(), StoreError> {
        size("key", key.len(), MAX_KEY)?;
        least("bytes of the key", key.len() as u64, 1)
    }

    /// Checks a claim.
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

    /// Checks a holder.
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

    /// Checks a fence.
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

    /// Checks a lease in milliseconds.
    ///
    /// # Errors
    /// If it is zero or beyond [`MAX_MS`].
    pub fn lease(lease_ms: u64) -> Result<(), StoreError> {
        ms("lease", lease_ms)
    }

    /// Checks the size of a checkpoint in bytes.
    ///
    /// # Errors
    /// If it is larger than [`MAX_CHECKPOINT`].
    pub fn checkpoint(bytes: usize) -> Result<(), StoreError> {
        size("checkpoint", bytes, MAX_CHECKPOINT)
    }

    /// Checks an outcome and its time to live.
    ///
    /// # Errors
    /// If it is larger than [`MAX_OUTCOME`], or its time is zero or beyond [`MAX_MS`].
    pub fn completion(completion: &Completion) -> Result<(), StoreError> {
        size("outcome", completion.outcome.len(), MAX_OUTCOME)?;
        ms("ttl", completion.ttl_ms)
    }

    /// Checks a resolution.
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
