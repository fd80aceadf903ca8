//! One attempt at the work, as the work sees it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    key,
    outcome::{CodecError, to_json},
    record::{Holder, Previous, WriteOutcome},
    settings::ms,
    shared::Shared,
    store::{RecordClient, StoreError},
};

tokio::task_local! {
    pub(super) static CURRENT: Attempt;
}

/// A granted claim, and the store that granted it.
#[derive(Clone)]
pub(super) struct HeldClaim {
    pub(super) store: RecordClient,
    pub(super) holder: Holder,
}

/// One attempt at the work: its fence, the checkpoint of an earlier attempt, keys for the calls that the work makes, and
/// whether the lease still holds. Cheap to clone.
#[derive(Clone)]
pub struct Attempt(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    key: Arc<str>,
    /// `None`: without protection.
    held: Option<HeldClaim>,
    previous: Previous,
    checkpoint: Option<Bytes>,
    lost: watch::Sender<bool>,
    /// The last checkpoint as the store has it, from this attempt or an earlier one.
    saved: Mutex<Option<Bytes>>,
}

/// Why a checkpoint was not saved. The work may go on; a next attempt begins at the last saved checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointFailed {
    /// The checkpoint is larger than the handle allows.
    #[error("{bytes} bytes are more than the {most} that a checkpoint may have")]
    TooLarge {
        /// Size of the checkpoint in bytes.
        bytes: usize,
        /// Maximum size in bytes.
        most: usize,
    },
    /// The checkpoint cannot be represented in JSON, or could not be sealed.
    #[error("{0}")]
    Codec(#[from] CodecError),
    /// Another attempt holds the key: stop the work.
    #[error("another attempt holds the key")]
    Lost,
    /// The work runs [without protection](crate::fleet::OnOutage::FailOpen), so there is no record.
    #[error("there is no record to save it in")]
    Unguarded,
    /// The store failed or had no answer in time.
    #[error("the store gave no answer: {0}")]
    Store(StoreError),
}

impl Attempt {
    /// `checkpoint` is the plain form of `saved`.
    pub(super) fn new(
        shared: Arc<Shared>,
        key: Arc<str>,
        held: Option<HeldClaim>,
        previous: Previous,
        checkpoint: Option<Bytes>,
        saved: Option<Bytes>,
    ) -> Self {
        Self(Arc::new(Inner {
            shared,
            key,
            held,
            previous,
            checkpoint,
            lost: watch::Sender::new(false),
            saved: Mutex::new(saved),
        }))
    }

    /// Returns the attempt that the running code is part of, if any: set in the work's own task, not in tasks that the
    /// work spawns.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// The fencing token of this attempt, higher than that of every earlier attempt on this key. Pass it to systems that can
    /// reject an older token than they have seen. Zero if the work runs
    /// [without protection](crate::fleet::OnOutage::FailOpen).
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.0.held.as_ref().map_or(0, |held| held.holder.fence)
    }

    /// Number of this attempt, counted from one for as long as the record is kept.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.held.as_ref().map_or(1, |held| held.holder.attempt)
    }

    /// How the previous attempt ended.
    #[must_use]
    pub fn previous(&self) -> Previous {
        self.0.previous
    }

    /// The last checkpoint of an earlier attempt.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.0.checkpoint.as_ref()
    }

    /// The last checkpoint of an earlier attempt, decoded from JSON.
    ///
    /// # Errors
    /// [`CodecError`] if it is not JSON, or not of this type.
    pub fn checkpoint_as<T: DeserializeOwned>(&self) -> Result<Option<T>, CodecError> {
        let parse = |bytes: &Bytes| serde_json::from_slice(bytes).map_err(CodecError::new);
        self.0.checkpoint.as_ref().map(parse).transpose()
    }

    /// Saves `checkpoint` for a next attempt, and renews the lease. One round trip, tried once within the store's time
    /// budget, also while the store is unavailable.
    ///
    /// # Errors
    /// [`CheckpointFailed`] if it was not saved, or may not have been.
    pub async fn save_checkpoint(
        &self,
        checkpoint: impl Into<Bytes>,
    ) -> Result<(), CheckpointFailed> {
        let held = self.0.held.as_ref().ok_or(CheckpointFailed::Unguarded)?;
        let (shared, plain) = (&self.0.shared, checkpoint.into());
        let (bytes, most) = (plain.len(), shared.settings.max_checkpoint);
        if bytes > most {
            return Err(CheckpointFailed::TooLarge { bytes, most });
        }
        let associated_data = shared.associated_data(&self.0.key);
        let sealed = shared.sealing().seal(Some(&plain), 0, &associated_data);
        let sealed = sealed.map_err(CodecError::new)?;
        match self.write_checkpoint(held, &sealed).await {
            Ok(WriteOutcome::Lost(_)) => {
                self.lose();
                Err(CheckpointFailed::Lost)
            }
            Ok(_) => {
                *self.saved() = Some(sealed);
                Ok(())
            }
            Err(failure) => Err(CheckpointFailed::Store(failure)),
        }
    }

    /// Saves `checkpoint` as JSON; see [`save_checkpoint`](Self::save_checkpoint).
    ///
    /// # Errors
    /// [`CheckpointFailed`] if it was not saved, or may not have been.
    pub async fn save_checkpoint_as(
        &self,
        checkpoint: &(impl Serialize + Sync),
    ) -> Result<(), CheckpointFailed> {
        self.save_checkpoint(to_json(checkpoint)?).await
    }

    /// Derives an idempotency key for a call that the work makes, in the form of a UUID: the same in every attempt,
    /// different for every `label` and every key of this handle.
    #[must_use]
    pub fn child_key(&self, label: &str) -> String {
        key::child(&self.0.shared.name, &self.0.key, label)
    }

    /// Waits until the lease is lost; forever, if it never is. From then on another attempt may be running the same work,
    /// and this one's outcome is recorded only if none is: stop, or do only what a fence guards.
    pub async fn lost(&self) {
        let mut lost = self.0.lost.subscribe();
        // Cannot fail: the sender is in `self`.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Whether the lease is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.0.lost.borrow()
    }

    /// Marks the lease as lost. True the first time.
    pub(super) fn lose(&self) -> bool {
        !self.0.lost.send_replace(true)
    }

    /// Saves the checkpoint again after the store lost the record.
    pub(super) async fn save_checkpoint_again(&self, held: &HeldClaim) {
        let saved = self.saved().clone();
        if let Some(sealed) = saved {
            // If this fails, a next attempt starts at the beginning.
            let _ = self.write_checkpoint(held, &sealed).await;
        }
    }

    async fn write_checkpoint(
        &self,
        held: &HeldClaim,
        sealed: &Bytes,
    ) -> Result<WriteOutcome, StoreError> {
        let (name, key) = (&self.0.shared.name, &self.0.key);
        let lease_ms = ms(self.0.shared.settings.lease);
        let step = held
            .store
            .attempt(|store| store.checkpoint(name, key, &held.holder, sealed, lease_ms));
        step.await
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(super) fn key(&self) -> &str {
        &self.0.key
    }

    pub(super) fn held(&self) -> Option<&HeldClaim> {
        self.0.held.as_ref()
    }

    fn saved(&self) -> std::sync::MutexGuard<'_, Option<Bytes>> {
        self.0.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("name", &self.0.shared.name)
            .field("fence", &self.fence())
            .field("number", &self.number())
            .field("previous", &self.previous())
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
