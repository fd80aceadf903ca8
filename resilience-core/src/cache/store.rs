//! The trait of a store of cached values.

use std::{
    any::Any,
    fmt,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Arc, Weak},
    time::Duration,
};

pub use super::record::{Entry, Fill, Generation, Lease, Leased, Stored, TagGeneration, Token};
use crate::fleet::{Probe, StoreClient, StoreHandle};
pub use crate::fleet::{StoreError, StoreFuture};

/// Subject of a change that a [`CacheStore`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject<'a> {
    /// The value of a key.
    Key(&'a str),
    /// The generation of a tag.
    Tag(&'a str),
}

/// Where cached values are kept beside the process: one [`Record`](super::record::Record) per key, and one generation per
/// tag.
///
/// Every step is atomic and acts on one record as [`Record`](super::record::Record) does, on the store's own clock. Steps
/// need no time budget of their own: the cache gives each one. `name` is that of the cache; caches of one name and store share
/// their values.
///
/// A store may lose values at any time. It must not bring back one that was invalidated.
pub trait CacheStore: fmt::Debug + Send + Sync + 'static {
    /// The value of each key, if it has one: see [`Record::get`](super::record::Record::get). In the order of `keys`; one
    /// round trip.
    fn get<'a>(&'a self, name: &'a str, keys: &'a [&'a str])
    -> StoreFuture<'a, Vec<Option<Entry>>>;

    /// See [`Record::lease`](super::record::Record::lease).
    fn lease<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        lease: &'a Lease,
    ) -> StoreFuture<'a, Leased>;

    /// See [`Record::fill`](super::record::Record::fill).
    fn fill<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored>;

    /// See [`Record::extend`](super::record::Record::extend).
    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        lease_ms: u64,
    ) -> StoreFuture<'a, Stored>;

    /// See [`Record::release`](super::record::Record::release).
    fn release<'a>(&'a self, name: &'a str, key: &'a str, token: Token) -> StoreFuture<'a, ()>;

    /// See [`Record::put`](super::record::Record::put).
    fn put<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        version: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored>;

    /// See [`Record::invalidate`](super::record::Record::invalidate).
    fn invalidate<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, ()>;

    /// See [`Record::begin_write`](super::record::Record::begin_write).
    fn begin_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        write_ms: u64,
    ) -> StoreFuture<'a, ()>;

    /// See [`Record::end_write`](super::record::Record::end_write).
    fn end_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: Option<&'a Fill>,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, Stored>;

    /// The generation of each tag, in the order of `tags`. A tag without one is given one that no value was ever stored
    /// with; it is kept for at least `keep_ms` from now. A read as far as [`observe`](Self::observe) is concerned.
    fn generations<'a>(
        &'a self,
        name: &'a str,
        tags: &'a [&'a str],
        keep_ms: u64,
    ) -> StoreFuture<'a, Vec<Generation>>;

    /// Gives a tag a generation that it never had, and keeps it for at least `keep_ms`: all values stored with an
    /// earlier one count as invalidated. May be repeated.
    fn invalidate_tag<'a>(
        &'a self,
        name: &'a str,
        tag: &'a str,
        keep_ms: u64,
    ) -> StoreFuture<'a, ()>;

    /// Reports changes in all caches of this store to `observer`, by their [`id`](Self::id), until the returned value is
    /// dropped. Default: `None`, the store does not report changes; caches then keep values in the process for at most
    /// [`max_stale`](super::CacheBuilder::max_stale).
    ///
    /// For a read sent between [`restored`](Observer::restored) and [`lost`](Observer::lost), every later change is
    /// reported, including changes by other programs, evictions, and the end of a time to live. There may be reports
    /// without a change.
    fn observe(&self, observer: Weak<dyn Observer>) -> Option<Arc<dyn Any + Send + Sync>> {
        let _ = observer;
        None
    }

    /// The number that reports of a change of `subject` carry. Two subjects may share one: each is then also read again after
    /// changes of the other.
    fn id(&self, name: &str, subject: Subject<'_>) -> u64 {
        BuildHasherDefault::<DefaultHasher>::new().hash_one((name, subject))
    }

    /// Enters `name` in the list of names that operators see. Asked for about once an hour; a failure is not
    /// reported. Default: `None`, there is no such list.
    fn announce<'a>(&'a self, name: &'a str) -> Option<StoreFuture<'a, ()>> {
        let _ = name;
        None
    }

    /// Keeps what an instance of a cache says about itself ([`CacheSnapshot`](super::CacheSnapshot), as JSON) for operators, for at
    /// most `ttl`; empty: the instance leaves. Sent about every ten seconds; a failure is not reported. Default: `None`, they
    /// are not kept.
    fn report<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        snapshot: &'a str,
        ttl: Duration,
    ) -> Option<StoreFuture<'a, ()>> {
        let _ = (name, instance, snapshot, ttl);
        None
    }

    /// Whether the keys are divided over servers that fail apart from each other (the shards of a Cluster). Such a store
    /// marks the errors of one shard as [`partial`](StoreError::partial). Default: no.
    fn is_sharded(&self) -> bool {
        false
    }

    /// This process' use of the store: return the one that the store keeps, and that its clones share. Default: `None`.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(CacheStore);

/// Receiver of a store's reports of changes. Called on a task of the store: must be quick and must not block.
pub trait Observer: Send + Sync {
    /// The subject with this [number](CacheStore::id) may have changed.
    fn changed(&self, id: u64);

    /// Everything may have changed.
    fn cleared(&self);

    /// Changes may have been missed from now on.
    fn lost(&self);

    /// Changes after reads that begin from now on are reported.
    fn restored(&self);
}

/// A client of a store of cached values.
pub(crate) type CacheClient = StoreClient<dyn CacheStore>;

impl Probe for dyn CacheStore {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.get(name, &["probe"]).await.map(drop) })
    }

    fn is_sharded(&self) -> bool {
        CacheStore::is_sharded(self)
    }
}

/// Checks that every store makes: numbers that a script cannot count with and unbounded sizes are errors.
pub mod validate {
    use super::{Fill, Lease, StoreError};

    /// Maximum size of a key in bytes.
    pub const MAX_KEY: usize = 1024;
    /// Maximum size of an encoded value in bytes.
    pub const MAX_BODY: usize = 64 << 20;
    /// Maximum number of tags of a value.
    pub const MAX_TAGS: usize = 32;
    /// Maximum size of a tag in bytes.
    pub const MAX_TAG: usize = 255;
    /// About 30 years, in milliseconds: a moment that far ahead is still a number for a script.
    pub const MAX_MS: u64 = 1_000_000_000_000;

    /// Checks a key.
    ///
    /// # Errors
    /// If it is empty or longer than [`MAX_KEY`].
    pub fn key(key: &str) -> Result<(), StoreError> {
        size("key", key.len(), 1, MAX_KEY)
    }

    /// Checks a tag; the empty one is the tag of all values.
    ///
    /// # Errors
    /// If it is longer than [`MAX_TAG`].
    pub fn tag(tag: &str) -> Result<(), StoreError> {
        size("tag", tag.len(), 0, MAX_TAG)
    }

    /// Checks a length of time in milliseconds.
    ///
    /// # Errors
    /// If it is beyond [`MAX_MS`].
    pub fn ms(what: &str, ms: u64) -> Result<(), StoreError> {
        if ms > MAX_MS {
            return Err(no(format!("{what}: {ms} ms is more than {MAX_MS}")));
        }
        Ok(())
    }

    /// Checks a request for a lease.
    ///
    /// # Errors
    /// If its time is zero or beyond [`MAX_MS`].
    pub fn lease(lease: &Lease) -> Result<(), StoreError> {
        if lease.lease_ms == 0 {
            return Err(no("the lease is empty".into()));
        }
        ms("lease", lease.lease_ms)
    }

    /// Checks a value.
    ///
    /// # Errors
    /// If it is larger than [`MAX_BODY`], is kept for no time or beyond [`MAX_MS`], or has too many or too long tags.
    pub fn fill(fill: &Fill) -> Result<(), StoreError> {
        size(
            "value",
            fill.body.as_ref().map_or(0, |it| it.len()),
            0,
            MAX_BODY,
        )?;
        ms("keep", fill.keep_ms)?;
        ms("load", fill.load_ms)?;
        if fill.keep_ms == 0 || fill.fresh_ms > fill.keep_ms {
            return Err(no(
                "a value is kept for as long as it is fresh, at least".into()
            ));
        }
        size("number of tags", fill.tags.len(), 0, MAX_TAGS)?;
        fill.tags.iter().try_for_each(|it| tag(&it.tag))
    }

    fn size(what: &str, is: usize, least: usize, most: usize) -> Result<(), StoreError> {
        if (least..=most).contains(&is) {
            return Ok(());
        }
        Err(no(format!(
            "{what}: {is} is not between {least} and {most}"
        )))
    }

    fn no(reason: String) -> StoreError {
        StoreError::new(reason, false)
    }
}
