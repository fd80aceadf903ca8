//! What sinks, readers and operators are given.

use std::{fmt, slice, sync::Arc, time::Duration};

use serde::Serialize;

/// The last change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<V> {
    pub(super) key: Arc<str>,
    pub(super) version: u64,
    pub(super) attempts: u32,
    pub(super) value: Option<V>,
}

impl<V> Change<V> {
    /// A change, for tests of sinks.
    pub fn new(key: impl Into<Arc<str>>, version: u64, value: Option<V>) -> Self {
        Self {
            key: key.into(),
            version,
            attempts: 0,
            value,
        }
    }

    /// The key that was written.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Version of the value: above those of all earlier writes of the key, and below 2^53. What the sink writes to compares it.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// How often the sink has refused the key before.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The value; `None`: the key was deleted.
    #[must_use]
    pub const fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// Whether the key was deleted.
    #[must_use]
    pub const fn is_deletion(&self) -> bool {
        self.value.is_none()
    }
}

/// Changes of different keys, for one call of the sink. Cheap to clone.
pub struct Batch<V>(Arc<[Arc<Change<V>>]>);

impl<V> Batch<V> {
    pub(super) fn new(changes: impl Into<Arc<[Arc<Change<V>>]>>) -> Self {
        Self(changes.into())
    }

    /// Number of changes: at least one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no changes: never, in a sink.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes, in no order that means anything.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, V> {
        Iter(self.0.iter())
    }
}

impl<V> From<Vec<Change<V>>> for Batch<V> {
    /// A batch, for tests of sinks.
    fn from(changes: Vec<Change<V>>) -> Self {
        Self(changes.into_iter().map(Arc::new).collect())
    }
}

impl<'a, V> IntoIterator for &'a Batch<V> {
    type Item = &'a Change<V>;
    type IntoIter = Iter<'a, V>;

    fn into_iter(self) -> Iter<'a, V> {
        self.iter()
    }
}

/// The changes of a [`Batch`].
#[derive(Debug)]
pub struct Iter<'a, V>(slice::Iter<'a, Arc<Change<V>>>);

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = &'a Change<V>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|it| &**it)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<V> ExactSizeIterator for Iter<'_, V> {}

impl<V> Clone for Batch<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V> fmt::Debug for Batch<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// A value that is not sunk yet; from [`WriteBehind::read`](super::WriteBehind::read).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirty<V> {
    pub(super) version: u64,
    pub(super) value: Option<V>,
}

impl<V> Dirty<V> {
    /// Its version.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The value; `None`: the key was deleted.
    #[must_use]
    pub const fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// The value; `None`: the key was deleted.
    #[must_use]
    pub fn into_value(self) -> Option<V> {
        self.value
    }
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acknowledged {
    /// Version of the value.
    pub version: u64,
    /// Whether it is sunk already. Only with [`write_through_when_full`](super::WriteBehindBuilder::write_through_when_full), when
    /// the write-behind is full; it is in the store, and is sunk later, otherwise.
    pub sunk: bool,
}

/// What waits, in all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pending {
    /// Keys that are not sunk yet.
    pub entries: u64,
    /// Age of the oldest of them.
    pub oldest: Option<Duration>,
    /// Dead letters.
    pub dead: u64,
    /// Shards in which no batch is taken at the moment, because the sink failed.
    pub paused_shards: u32,
}

/// A change that was set aside: the sink refused it too often.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadChange<V> {
    /// The key.
    pub key: Arc<str>,
    /// Version of the value.
    pub version: u64,
    /// How often the sink has refused it.
    pub attempts: u32,
    /// How long ago it was set aside.
    pub age: Duration,
    /// Why.
    pub reason: String,
    /// The value, or why it cannot be read.
    pub value: Result<Option<V>, String>,
}
