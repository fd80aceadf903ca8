//! What work knows of the claim that it is done under.

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
    record::{Previous, WriteOutcome},
    shared::{Shared, ms},
    store::StoreError,
    worker::{HeldClaim, Worker},
};

tokio::task_local! {
    pub(super) static CURRENT: Attempt;
}

/// One attempt at the work: its fence, what the last attempt has left, keys for what it calls, and whether it still
/// holds the lease. Cheap to clone.
#[derive(Clone)]
pub struct Attempt(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    key: Arc<str>,
    held: Option<HeldClaim>,
    previous: Previous,
    checkpoint: Option<Bytes>,
    lost: watch::Sender<bool>,
    /// The last one that was saved, here or before, as the store has it.
    saved: Mutex<Option<Bytes>>,
}

/// Why a checkpoint was not saved. The work may go on; a next attempt begins where the last checkpoint was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointFailed {
    /// Larger than the handle allows.
    #[error("{bytes} bytes are more than the {most} that a checkpoint may have")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// What is allowed.
        most: usize,
    },
    /// It has no form in JSON, or could not be sealed.
    #[error("{0}")]
    Codec(#[from] CodecError),
    /// Somebody else holds the key: stop.
    #[error("somebody else holds the key")]
    Lost,
    /// The work is done [without protection](super::Unreachable::Open).
    #[error("there is no record to save it in")]
    Unguarded,
    /// The store gave no answer.
    #[error("the store gave no answer: {0}")]
    Store(StoreError),
}

impl Attempt {
    pub(super) fn new(worker: &Worker) -> Self {
        Self(Arc::new(Inner {
            shared: Arc::clone(&worker.shared),
            key: Arc::clone(&worker.key),
            held: worker.held.clone(),
            previous: worker.previous,
            checkpoint: worker.checkpoint.clone(),
            lost: watch::Sender::new(false),
            saved: Mutex::new(worker.left.clone()),
        }))
    }

    /// The attempt that the code which is running is part of, if it is part of one: visible in all that the work itself
    /// polls, not in tasks that it spawns.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Higher than that of every attempt before it on this key: hand it to whatever can refuse what is older than it
    /// has seen. Zero, if the work is done [without protection](super::Unreachable::Open).
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.0.held.as_ref().map_or(0, |held| held.holder.fence)
    }

    /// Counts from one, for as long as the record is kept.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.held.as_ref().map_or(1, |held| held.holder.attempt)
    }

    /// How the attempt before this one ended.
    #[must_use]
    pub fn previous(&self) -> Previous {
        self.0.previous
    }

    /// What an attempt before this one has left.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.0.checkpoint.as_ref()
    }

    /// The same, from JSON.
    ///
    /// # Errors
    /// If it is not JSON, or not of this type.
    pub fn checkpoint_as<T: DeserializeOwned>(&self) -> Result<Option<T>, CodecError> {
        let parse = |bytes: &Bytes| serde_json::from_slice(bytes).map_err(CodecError::new);
        self.0.checkpoint.as_ref().map(parse).transpose()
    }

    /// Leaves `checkpoint` for the next attempt, should there be one; a sign of life as well. One round trip.
    ///
    /// # Errors
    /// If it was not saved, or may not have been.
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
        let sealed = shared
            .settings
            .sealing
            .seal(Some(&plain), 0, &associated_data);
        let sealed = sealed.map_err(CodecError::new)?;
        match self.leave(held, &sealed).await {
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

    /// The same, as JSON.
    ///
    /// # Errors
    /// If it was not saved, or may not have been.
    pub async fn save_checkpoint_as(
        &self,
        checkpoint: &(impl Serialize + Sync),
    ) -> Result<(), CheckpointFailed> {
        self.save_checkpoint(to_json(checkpoint)?).await
    }

    /// A key for a call that the work makes, in the form of a UUID: the same in every attempt, so that whoever is called
    /// can tell that it is asked again; another for every `label` and every key of this handle.
    #[must_use]
    pub fn child_key(&self, label: &str) -> String {
        key::child(&self.0.shared.name, &self.0.key, label)
    }

    /// Waits until the lease is lost; for ever, if it never is. From then on, somebody else may be doing the same work,
    /// and its outcome will be recorded only if nobody is: stop, or do nothing that a fence does not guard.
    pub async fn lost(&self) {
        let mut lost = self.0.lost.subscribe();
        // The sender is in `self`.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Whether the lease is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.0.lost.borrow()
    }

    /// True the first time.
    pub(super) fn lose(&self) -> bool {
        !self.0.lost.send_replace(true)
    }

    /// The store had lost the record, and with it the checkpoint.
    pub(super) async fn leave_checkpoint_again(&self, held: &HeldClaim) {
        let saved = self.saved().clone();
        if let Some(sealed) = saved {
            // If it fails, there is none: a next attempt begins at the beginning.
            let _ = self.leave(held, &sealed).await;
        }
    }

    async fn leave(&self, held: &HeldClaim, sealed: &Bytes) -> Result<WriteOutcome, StoreError> {
        let (shared, lease_ms) = (&self.0.shared, ms(self.0.shared.settings.lease));
        let step = held
            .store
            .checkpoint(&shared.name, &self.0.key, &held.holder, sealed, lease_ms);
        shared.within_budget(&held.store, step).await
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
