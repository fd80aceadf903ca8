//! What the steps of a record take and answer.

use std::{num::NonZeroU64, sync::Arc};

use bytes::Bytes;

/// The number of a lease, a write, or a value, drawn at random: no two are equal. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(NonZeroU64);

impl Token {
    /// A new token.
    #[must_use]
    pub fn random() -> Self {
        Self(NonZeroU64::new(fastrand::u64(1..)).unwrap_or(NonZeroU64::MIN))
    }

    /// The token with this number; `None` for zero.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number of the token.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// A tag of a value, and the generation of that tag before the value was loaded. When the tag has another generation, the
/// value counts as invalidated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagGeneration {
    /// Name of the tag; empty: the tag that every value of a cache has.
    pub tag: Arc<str>,
    /// Its generation.
    pub generation: u64,
}

/// The state of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    /// A number that the tag never had before, and that no value was stored with before the tag was last invalidated.
    pub number: u64,
    /// Milliseconds since the tag was last invalidated. `None`: not since the store knows it.
    pub invalidated_ms: Option<u64>,
}

/// A value on its way to a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fill {
    /// The encoded value; `None`: known not to exist.
    pub body: Option<Bytes>,
    /// How long it is fresh, in milliseconds.
    pub fresh_ms: u64,
    /// How long it is kept, in milliseconds; at least `fresh_ms`.
    pub keep_ms: u64,
    /// How long it took to load, in milliseconds.
    pub load_ms: u64,
    /// The tags of the value.
    pub tags: Arc<[TagGeneration]>,
}

/// A value as a store returns it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The token that stored it.
    pub version: Token,
    /// The encoded value; `None`: known not to exist.
    pub body: Option<Bytes>,
    /// Time since it was stored, in milliseconds.
    pub age_ms: u64,
    /// How long it was fresh from then on, in milliseconds.
    pub fresh_ms: u64,
    /// How long it is kept from then on, in milliseconds.
    pub keep_ms: u64,
    /// How long it took to load, in milliseconds.
    pub load_ms: u64,
    /// The tags of the value.
    pub tags: Arc<[TagGeneration]>,
}

impl Entry {
    /// Whether it is fresh.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        self.age_ms < self.fresh_ms
    }
}

/// A request to load a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Of the request; the fill must have it too.
    pub token: Token,
    /// How long it holds, in milliseconds. A holder that dies blocks the key for as long.
    pub lease_ms: u64,
    /// A fresh value of this version is to be loaded again, before it is stale.
    pub renew: Option<Token>,
}

/// Answer to a [`Lease`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leased {
    /// The caller loads. `stale`: the value that the key has meanwhile.
    Granted {
        /// The value that the key keeps until it is filled.
        stale: Option<Entry>,
    },
    /// There is a fresh value.
    Fresh(Entry),
    /// Another caller loads.
    Held {
        /// Milliseconds until its lease ends.
        left_ms: u64,
        /// The value that the key keeps meanwhile.
        stale: Option<Entry>,
    },
    /// The key was invalidated just now, or is being written: what is loaded now must not be kept.
    Refused {
        /// Milliseconds until leases are granted again.
        left_ms: u64,
    },
}

/// Answer to a step that stores a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The value is stored.
    Stored,
    /// The record is not the one that the step began with: nothing was stored.
    Refused,
}
