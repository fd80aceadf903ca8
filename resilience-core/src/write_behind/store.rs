//! The trait of a store: where writes wait until they are sunk.

use std::{fmt, sync::Arc};

use super::record::{
    DeadAction, RawDead, RawEntry, Settle, ShardState, Take, Taken, Write, Written,
};
use crate::fleet::{Probe, StoreClient, StoreHandle};
pub use crate::fleet::{StoreError, StoreFuture};

/// A shard of a write-behind: a part of its keys, which lies together in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard<'a> {
    /// Name of the write-behind.
    pub name: &'a str,
    /// Number of the shard: below `of`.
    pub index: u32,
    /// Number of shards.
    pub of: u32,
}

impl<'a> Shard<'a> {
    /// The shard of a key.
    #[must_use]
    pub fn of_key(name: &'a str, key: &str, of: u32) -> Self {
        // FNV-1a: every version and every process computes the same.
        let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // The low bits of it differ less than the high ones do.
        let index = (hash ^ hash >> 32) % u64::from(of.max(1));
        Self {
            name,
            index: u32::try_from(index).unwrap_or(0),
            of,
        }
    }
}

/// Where writes wait until they are sunk.
///
/// What a store knows of a shard is a [`ShardRecord`](super::record::ShardRecord): each step acts as the method of that name does.
///
/// # What holds for every step
/// - It is atomic, on the store's own clock, and one round trip.
/// - It does all it is asked, or nothing: also when the store is full.
/// - A shard that does not exist has no entries. A [`write`](Self::write) makes one.
/// - It needs no time budget of its own: callers give each one.
/// - It may be repeated with the same arguments after an [`ambiguous`](StoreError::ambiguous) error; a [`take`](Self::take)
///   then finds the lease of the first one.
pub trait WriteBehindStore: fmt::Debug + Send + Sync + 'static {
    /// Stores changes, all or none. When it has returned, they are as durable as the store makes them.
    fn write<'a>(&'a self, shard: Shard<'a>, write: &'a Write) -> StoreFuture<'a, Written>;

    /// What a key was last written with, if it is not sunk yet.
    fn read<'a>(&'a self, shard: Shard<'a>, key: &'a str) -> StoreFuture<'a, Option<RawEntry>>;

    /// Takes a batch, under a lease: those that are due, the longest due first.
    fn take<'a>(&'a self, shard: Shard<'a>, take: &'a Take) -> StoreFuture<'a, Taken>;

    /// Begins the lease of a batch again, whether or not it has ended, unless another batch was taken. Whether it is still
    /// the caller's.
    fn renew<'a>(&'a self, shard: Shard<'a>, fence: u64, lease_ms: u64) -> StoreFuture<'a, bool>;

    /// Ends the lease of a batch, and does what became of its entries; whether it was still the caller's. Otherwise nothing
    /// changes.
    fn settle<'a>(&'a self, shard: Shard<'a>, settle: &'a Settle) -> StoreFuture<'a, bool>;

    /// The state of a shard.
    fn state<'a>(&'a self, shard: Shard<'a>) -> StoreFuture<'a, ShardState>;

    /// Dead letters with keys after `after`, at most `max`, in the order of their keys.
    fn dead<'a>(
        &'a self,
        shard: Shard<'a>,
        after: Option<&'a str>,
        max: usize,
    ) -> StoreFuture<'a, Vec<RawDead>>;

    /// Acts on the dead letters of `keys`, as far as there are some; how many there were.
    fn act_on_dead<'a>(
        &'a self,
        shard: Shard<'a>,
        keys: &'a [Arc<str>],
        action: DeadAction,
    ) -> StoreFuture<'a, u64>;

    /// Enters the name of a write-behind in a list of those in use, if the store keeps one. Default: `None`.
    fn announce<'a>(&'a self, name: &'a str) -> Option<StoreFuture<'a, ()>> {
        let _ = name;
        None
    }

    /// Whether shards lie on servers that fail apart from each other. Default: `false`.
    fn is_sharded(&self) -> bool {
        false
    }

    /// This process' use of the store: return the one that it keeps, and that its clones share. Default: `None`.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(WriteBehindStore);

/// A client of a store.
pub(crate) type Client = StoreClient<dyn WriteBehindStore>;

impl Probe for dyn WriteBehindStore {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        let shard = Shard {
            name,
            index: 0,
            of: 1,
        };
        Box::pin(async move { self.state(shard).await.map(drop) })
    }

    fn is_sharded(&self) -> bool {
        WriteBehindStore::is_sharded(self)
    }
}

/// Checks that every store makes: numbers that a script cannot count with and unbounded sizes are errors.
pub mod validate {
    use std::{collections::HashSet, sync::Arc};

    use super::{Settle, Shard, StoreError, Take, Write};
    use crate::write_behind::record::EntryResult;

    /// Maximum size of the name of a write-behind, and of a writer or a holder, in bytes.
    pub const MAX_NAME: usize = 255;
    /// Maximum size of a key in bytes.
    pub const MAX_KEY: usize = 1024;
    /// Maximum size of an encoded value in bytes.
    pub const MAX_VALUE: usize = 16 << 20;
    /// Maximum size of a write in bytes.
    pub const MAX_WRITE: usize = 64 << 20;
    /// Maximum number of changes of a write, and of entries of a batch.
    pub const MAX_BATCH: usize = 1000;
    /// Maximum number of shards.
    pub const MAX_SHARDS: u32 = 1024;
    /// Maximum size of a reason in bytes.
    pub const MAX_REASON: usize = 512;
    /// About 30 years, in milliseconds.
    pub const MAX_MS: u64 = 1_000_000_000_000;
    /// One above the largest number that a script can count with.
    pub const BEYOND: u64 = 1 << 53;

    /// Checks which shard is meant.
    ///
    /// # Errors
    /// If the name is empty or too long, or there is no such shard.
    pub fn shard(shard: Shard<'_>) -> Result<(), StoreError> {
        size("name of the write-behind", shard.name.len(), 1, MAX_NAME)?;
        number("number of shards", shard.of.into(), 1, MAX_SHARDS.into())?;
        number("shard", shard.index.into(), 0, u64::from(shard.of) - 1)
    }

    /// Checks a write.
    ///
    /// # Errors
    /// If it is empty, too large, has a key twice, or a number is out of bounds.
    pub fn write(write: &Write) -> Result<(), StoreError> {
        size("name of the writer", write.writer.len(), 1, MAX_NAME)?;
        number("number of the write", write.number, 1, BEYOND - 1)?;
        number("remember", write.remember_ms, 1, MAX_MS)?;
        version("floor", write.floor)?;
        number("incarnation", write.incarnation, 1, BEYOND - 1)?;
        number("keep", write.keep_ms, 1, MAX_MS)?;
        size("number of changes", write.changes.len(), 1, MAX_BATCH)?;
        let mut bytes = 0;
        let mut keys = HashSet::with_capacity(write.changes.len());
        for change in &write.changes {
            key(&change.key)?;
            let value = change.value.as_ref().map_or(0, |it| it.len());
            size("bytes of a value", value, 0, MAX_VALUE)?;
            bytes += change.key.len() + value;
            if !keys.insert(&change.key) {
                return Err(no(format!("key `{}` is written twice", change.key)));
            }
        }
        size("bytes of a write", bytes, 0, MAX_WRITE)?;
        let bounds = &write.bounds;
        number("max_entries", bounds.max_entries, 1, BEYOND - 1)?;
        number("max_age", bounds.max_age_ms, 1, MAX_MS)?;
        number("max_first", bounds.max_first, 0, BEYOND - 1)
    }

    /// Checks a take.
    ///
    /// # Errors
    /// If a number is out of bounds, or there is no holder.
    pub fn take(take: &Take) -> Result<(), StoreError> {
        size("name of the holder", take.holder.len(), 1, MAX_NAME)?;
        version("floor", take.floor)?;
        number("lease", take.lease_ms, 1, MAX_MS)?;
        size("size of a batch", take.max, 1, MAX_BATCH)?;
        number("age", take.age_ms, 0, MAX_MS)?;
        number("keep", take.keep_ms, 1, MAX_MS)
    }

    /// Checks a renewal.
    ///
    /// # Errors
    /// If a number is out of bounds.
    pub fn renew(fence: u64, lease_ms: u64) -> Result<(), StoreError> {
        number("fence", fence, 1, BEYOND - 1)?;
        number("lease", lease_ms, 1, MAX_MS)
    }

    /// Checks a settlement.
    ///
    /// # Errors
    /// If there are too many results, a key twice, or a number is out of bounds.
    pub fn settle(settle: &Settle) -> Result<(), StoreError> {
        number("fence", settle.fence, 1, BEYOND - 1)?;
        number("pause", settle.pause_ms.unwrap_or(0), 0, MAX_MS)?;
        size("number of results", settle.results.len(), 0, MAX_BATCH)?;
        let mut keys = HashSet::with_capacity(settle.results.len());
        for (name, at, result) in &settle.results {
            key(name)?;
            number("version", *at, 1, BEYOND - 1)?;
            if !keys.insert(name) {
                return Err(no(format!("key `{name}` is settled twice")));
            }
            match result {
                EntryResult::Sunk => {}
                EntryResult::Retry { after_ms } => number("wait", *after_ms, 0, MAX_MS)?,
                EntryResult::Dead { reason } => {
                    size("bytes of a reason", reason.len(), 0, MAX_REASON)?;
                }
            }
        }
        Ok(())
    }

    /// Checks a list of keys.
    ///
    /// # Errors
    /// If there are too many, or one makes no sense.
    pub fn keys(keys: &[Arc<str>]) -> Result<(), StoreError> {
        size("number of keys", keys.len(), 0, MAX_BATCH)?;
        keys.iter().try_for_each(|it| key(it))
    }

    /// Checks a key.
    ///
    /// # Errors
    /// If it is empty or longer than [`MAX_KEY`].
    pub fn key(key: &str) -> Result<(), StoreError> {
        size("bytes of a key", key.len(), 1, MAX_KEY)
    }

    /// Checks the length of a list of dead letters.
    ///
    /// # Errors
    /// If it is zero or above [`MAX_BATCH`].
    pub fn page(max: usize) -> Result<(), StoreError> {
        size("number of dead letters", max, 1, MAX_BATCH)
    }

    /// With room for those to come: a version is followed by others.
    fn version(what: &str, version: u64) -> Result<(), StoreError> {
        number(what, version, 0, BEYOND - (1 << 20))
    }

    fn size(what: &str, it: usize, least: usize, most: usize) -> Result<(), StoreError> {
        number(what, it as u64, least as u64, most as u64)
    }

    fn number(what: &str, it: u64, least: u64, most: u64) -> Result<(), StoreError> {
        if (least..=most).contains(&it) {
            return Ok(());
        }
        Err(no(format!("{what} is {it}: must be {least} to {most}")))
    }

    fn no(reason: String) -> StoreError {
        StoreError::new(reason, false)
    }
}
