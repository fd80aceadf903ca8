//! What is asked of a shard, and what it answers.

use std::sync::Arc;

use bytes::Bytes;

/// One change as stores keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawChange {
    /// The key that changes.
    pub key: Arc<str>,
    /// The encoded value; `None`: the key is deleted.
    pub value: Option<Bytes>,
}

/// A write of one or more changes, all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// A name that one write in progress uses at a time.
    pub writer: Arc<str>,
    /// Number of the write, of those under this name. A repetition has the same.
    pub number: u64,
    /// How long the number is remembered, in milliseconds.
    pub remember_ms: u64,
    /// The highest version that the caller knows of in this shard: the versions of the changes are above it.
    pub floor: u64,
    /// A number for a shard that does not exist yet.
    pub incarnation: u64,
    /// The changes, in order; each key at most once.
    pub changes: Vec<RawChange>,
    /// When the shard is full.
    pub bounds: Bounds,
    /// How long the shard is kept after its last step, in milliseconds.
    pub keep_ms: u64,
}

/// When a shard takes no more writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Number of entries from which on no more keys are taken. Keys that have an entry may be written.
    pub max_entries: u64,
    /// Age of the oldest entry from which on no writes are taken, in milliseconds.
    pub max_age_ms: u64,
    /// Up to how many entries a full shard takes writes nevertheless, to be sunk first; zero: it takes none.
    pub max_first: u64,
}

/// What a shard was like before a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Number of the incarnation of the shard; another one: the shard was lost meanwhile. Zero: it does not exist.
    pub incarnation: u64,
    /// The highest version so far.
    pub version: u64,
    /// Number of entries.
    pub entries: u64,
}

/// Answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Before the write.
    pub before: Head,
    /// What became of it.
    pub outcome: WriteOutcome,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteOutcome {
    /// It is stored. The changes have this version and the following ones.
    Stored {
        /// Version of the first change.
        first: u64,
        /// The shard is full: the changes are to be sunk before others.
        is_full: bool,
    },
    /// It had been stored before, with this version and the following ones.
    Repeated {
        /// Version of the first change.
        first: u64,
    },
    /// It came after a later write of the same writer: nothing is stored.
    Late,
    /// The shard is full: nothing is stored.
    Full {
        /// Age of the oldest entry in milliseconds.
        oldest_ms: u64,
    },
    /// The shard has entries of a handle with another number of shards: nothing is stored.
    Resharded {
        /// That number.
        shards: u32,
    },
}

/// What [`take`](super::ShardRecord::take) is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// Name of the process, as operators see it.
    pub holder: Arc<str>,
    /// The highest version that the caller knows of in this shard.
    pub floor: u64,
    /// How long the batch is the caller's, in milliseconds, unless it is renewed.
    pub lease_ms: u64,
    /// The largest number of entries.
    pub max: usize,
    /// A smaller batch is only taken once its first entry is due for this long, in milliseconds.
    pub age_ms: u64,
    /// How long the shard is kept after its last step, in milliseconds.
    pub keep_ms: u64,
}

/// Answer to a take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Before the step.
    pub before: Head,
    /// Age of the oldest entry in milliseconds.
    pub oldest_ms: u64,
    /// Number of dead letters.
    pub dead: u64,
    /// What was taken.
    pub batch: TakenBatch,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TakenBatch {
    /// There are no entries.
    Idle,
    /// No batch is due yet, or the shard pauses after a failure.
    NotDue {
        /// When to ask again, in milliseconds.
        in_ms: u64,
        /// Whether the shard pauses.
        is_paused: bool,
    },
    /// Another process sinks.
    Busy {
        /// When its lease ends, in milliseconds.
        for_ms: u64,
    },
    /// The caller holds the shard.
    Batch {
        /// Names the lease; above all versions and fences before.
        fence: u64,
        /// How many pauses there were since the last success.
        pauses: u64,
        /// What is to be sunk.
        entries: Vec<TakenEntry>,
    },
}

/// An entry that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenEntry {
    /// The key.
    pub key: Arc<str>,
    /// The version of the value.
    pub version: u64,
    /// How often the sink has refused the key before.
    pub attempts: u32,
    /// The encoded value; `None`: the key was deleted.
    pub value: Option<Bytes>,
}

/// What [`settle`](super::ShardRecord::settle) is asked: ends the lease of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// The fence that the batch was taken under.
    pub fence: u64,
    /// What became of the entries. Those that are left out stay as they are.
    pub results: Vec<(Arc<str>, u64, EntryResult)>,
    /// For how long no batch is taken from the shard, in milliseconds: the sink fails.
    pub pause_ms: Option<u64>,
}

/// What became of an entry in the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryResult {
    /// The sink has it.
    Sunk,
    /// The sink has refused it: to be tried again.
    Retry {
        /// When, in milliseconds.
        after_ms: u64,
    },
    /// To be set aside.
    Dead {
        /// Why, for operators.
        reason: String,
    },
}

/// What a read finds of a key that is not sunk yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// The version of the value.
    pub version: u64,
    /// The encoded value; `None`: the key was deleted.
    pub value: Option<Bytes>,
}

/// The state of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardState {
    /// Incarnation, version and number of entries.
    pub head: Head,
    /// The time of the shard in milliseconds: of its store's clock, and never going back.
    pub now_ms: u64,
    /// Since when the oldest entry has not been sunk, by that time; `None`: there are no entries.
    pub oldest_since_ms: Option<u64>,
    /// Number of dead letters.
    pub dead: u64,
    /// The process that sinks, and how long its lease lasts, in milliseconds.
    pub lease: Option<(Arc<str>, u64)>,
    /// Until when no batch is taken because the sink fails, in milliseconds from now.
    pub pause_ms: u64,
}

/// A dead letter as stores keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawDead {
    /// The key.
    pub key: Arc<str>,
    /// The version of the value.
    pub version: u64,
    /// How often the sink has refused it.
    pub attempts: u32,
    /// How long ago it was set aside, in milliseconds.
    pub age_ms: u64,
    /// Why.
    pub reason: String,
    /// The encoded value; `None`: the key was deleted.
    pub value: Option<Bytes>,
}

/// What becomes of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadAction {
    /// They are to be sunk again, as if they had been written now, but with their version.
    Redrive,
    /// They are removed.
    Discard,
}
