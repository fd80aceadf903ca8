//! What claimants, holders and operators exchange with a record.

use std::sync::Arc;

use bytes::Bytes;

/// A request to run the work of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Name of the claimant, never used for another claim. A claim that is repeated under the same name, because its
    /// answer was lost, gets the same answer.
    pub owner: Arc<str>,
    /// Digest of what the work is about. Another fingerprint under the same key is a [mismatch](Claimed::Mismatch), unless
    /// the key was given back and nothing is left of the attempts on it.
    pub fingerprint: Bytes,
    /// How long the claim holds without a renewal, in milliseconds.
    pub lease_ms: u64,
    /// How long the record is kept after the last renewal, unless it is completed, in milliseconds. Not below the lease.
    pub retention_ms: u64,
    /// Which earlier attempts without a known outcome the claim takes over from.
    pub takeover: Takeover,
}

/// Whether a claim takes over from an attempt that did not say how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Takeover {
    /// Neither when its lease has ended nor when its outcome is unknown: both are answered with
    /// [`Claimed::Unknown`].
    Never,
    /// When its lease has ended.
    #[default]
    Ended,
    /// When its lease has ended, and when its outcome is unknown.
    Any,
}

/// How the previous attempt ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Previous {
    /// There was none within the record's lifetime.
    #[default]
    None,
    /// It gave the key back without effects.
    Released,
    /// Its lease ended: it crashed, or hangs. It may have done all or some of its work. Remains so across attempts that give
    /// the key back without having found out.
    Ended,
    /// It reported an unknown outcome. Remains so across attempts that give the key back without having found out.
    Unknown,
}

impl Previous {
    /// Whether the attempt may have done its work: [`Ended`](Self::Ended) or [`Unknown`](Self::Unknown).
    #[must_use]
    pub const fn is_in_doubt(self) -> bool {
        matches!(self, Self::Ended | Self::Unknown)
    }
}

/// A granted claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Fencing token, higher than that of every earlier claim.
    pub fence: u64,
    /// Number of the attempt, counted from one.
    pub attempt: u32,
    /// The last checkpoint of an earlier attempt.
    pub checkpoint: Option<Bytes>,
    /// How the previous attempt ended.
    pub previous: Previous,
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Claimed {
    /// Granted.
    New(Grant),
    /// Granted already to the same owner; the lease starts again.
    Mine(Grant),
    /// Another attempt is in progress.
    Busy {
        /// The rest of its lease in milliseconds; never zero.
        remaining_ms: u64,
    },
    /// The work is done.
    Done {
        /// The recorded outcome.
        outcome: Bytes,
        /// Time since the completion in milliseconds.
        age_ms: u64,
        /// Fence of the attempt that completed it.
        fence: u64,
    },
    /// The key belongs to other work.
    Mismatch,
    /// It is not known whether the work was done, and the claim does not [take over](Claim::takeover).
    Unknown {
        /// The fence to [resolve](super::Record::resolve) it under.
        fence: u64,
        /// Attempts so far.
        attempt: u32,
        /// Time in this state, in milliseconds.
        age_ms: u64,
    },
}

/// The holder of a granted claim, and what it knows of the record: enough to restore it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// See [`Claim::owner`].
    pub owner: Arc<str>,
    /// See [`Grant::fence`].
    pub fence: u64,
    /// See [`Grant::attempt`].
    pub attempt: u32,
    /// See [`Grant::previous`]. [`Previous::Released`] instead, when giving the key back after finding out that the previous
    /// attempt did not do the work.
    pub previous: Previous,
    /// See [`Claim::fingerprint`].
    pub fingerprint: Bytes,
    /// See [`Claim::retention_ms`].
    pub retention_ms: u64,
}

impl Holder {
    /// The holder of `grant`, which answered `claim`.
    #[must_use]
    pub fn new(claim: &Claim, grant: &Grant) -> Self {
        Self {
            owner: Arc::clone(&claim.owner),
            fence: grant.fence,
            attempt: grant.attempt,
            previous: grant.previous,
            fingerprint: claim.fingerprint.clone(),
            retention_ms: claim.retention_ms,
        }
    }
}

/// A recorded outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Completion {
    /// The outcome, as it is replayed.
    pub outcome: Bytes,
    /// How long it is kept, in milliseconds.
    pub ttl_ms: u64,
}

/// What an unknown outcome turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreResolution {
    /// The work was done, with this outcome.
    Done(Completion),
    /// It was not done: the next claim is granted.
    Release,
}

/// The answer to a step that only the holder may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteOutcome {
    /// The step was done, now or before.
    Kept,
    /// The step was done after the record was restored: the store had lost it, or gone back to an older state. A checkpoint
    /// may be lost.
    Restored,
    /// The caller is no longer the holder; nothing was changed.
    Lost(Loss),
}

/// Why a caller is no longer the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Another claim was granted since.
    Taken,
    /// The attempt was ended in another way, by its holder or by a resolution.
    Over,
    /// There is no record, and the claim is too old to restore it.
    Gone,
}

/// State of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Free: given back, or never claimed. The next claim may still find [`Previous::Ended`], from an attempt before the one
    /// that gave the key back.
    #[default]
    Released,
    /// Claimed. The lease may have ended.
    Running,
    /// Done.
    Done,
    /// The outcome is unknown.
    Unknown,
}

/// A record as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordView {
    /// State.
    pub phase: Phase,
    /// Fence of the last claim.
    pub fence: u64,
    /// Attempts so far.
    pub attempt: u32,
    /// Time in this state, in milliseconds.
    pub age_ms: u64,
    /// Rest of the lease in milliseconds; zero if the key is not held.
    pub remaining_ms: u64,
    /// Time until the record is forgotten, in milliseconds.
    pub expires_ms: u64,
    /// Bytes of the outcome.
    pub outcome_bytes: u64,
    /// Bytes of the checkpoint.
    pub checkpoint_bytes: u64,
}
