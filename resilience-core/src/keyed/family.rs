//! A family of handles of one configuration, one per key.

use std::{borrow::Borrow, fmt, hash::Hash, sync::Arc};

use super::{
    Keyed,
    registry::{Evict, Registry},
};
use crate::{
    clock::Clock,
    error::{InvalidConfig, Pattern},
    order::{self, Part, setting},
    telemetry::{self, Reading, Source},
};

/// A family of handles of one configuration, one per key, made when a key is first seen. Clones
/// share the family.
///
/// It is bounded: see the [module](super) and [`Keyed`]. All members report metrics under the
/// family's name.
pub struct Family<K, H: Member> {
    inner: Arc<Inner<K, H>>,
}

struct Inner<K, H: Member> {
    name: Arc<str>,
    clock: Clock,
    members: Registry<K, H>,
    common: H::Common,
    /// [`telemetry::retire`], for a `Drop` without the bounds of its trait.
    retire: fn(&Self),
}

/// A handle of which a [`Family`] can have one per key. Sealed: implemented by handles of this
/// crate.
pub trait Member: InFamily {
    /// The state of one member at one moment.
    type Snapshot;

    /// The state of this member now.
    fn snapshot(&self) -> Self::Snapshot;
}

/// The part of [`Member`] that is this crate's own.
#[expect(unnameable_types, reason = "sealed")]
pub trait InFamily: Evict + Clone {
    /// The pattern whose metrics the family reports.
    const PATTERN: Pattern;

    /// State that all members of one family share.
    type Common: Send + Sync + 'static;

    /// Called when this member leaves, so that the family can keep its numbers.
    fn left(&self) {}

    /// Reads the metrics of a whole family.
    #[expect(private_interfaces, reason = "sealed")]
    fn read(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading));

    /// Reads the counters of a family that is being dropped.
    #[expect(private_interfaces, reason = "sealed")]
    fn read_last(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading));
}

/// The members of a family without their keys.
#[derive(Clone, Copy)]
pub(crate) struct Members<'a, H: InFamily> {
    pub(crate) common: &'a H::Common,
    visit: &'a Visit<'a, H>,
}

/// Calls a function with every member.
type Visit<'a, H> = dyn Fn(&mut dyn FnMut(&H)) + 'a;

impl<H: InFamily> Members<'_, H> {
    /// Runs `f` on every member, the overflow member included.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&H)) {
        (self.visit)(&mut f);
    }
}

impl<K, H> Family<K, H>
where
    K: Hash + Eq + Send + Sync + 'static,
    H: Member,
{
    /// An empty family called `name` that is known to the exporter. `make` builds the member of a
    /// key, or the overflow member (`None`).
    pub(crate) fn start(
        name: Arc<str>,
        clock: Clock,
        limits: Keyed,
        common: H::Common,
        make: impl Fn(Option<&K>) -> H + Send + Sync + 'static,
    ) -> Result<Self, InvalidConfig> {
        let inner = Arc::new(Inner {
            name,
            clock,
            members: Registry::new(limits, make, H::left)?,
            common,
            retire: telemetry::retire,
        });
        telemetry::register(&inner);
        Ok(Self { inner })
    }

    /// Returns the member of `key`, made if there is none. It stays usable after the family has dropped it, but new
    /// calls then go through another one: get it for each call.
    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> H
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.with(key, H::clone)
    }

    /// The number of keys that have a member now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.members.len()
    }

    /// Whether no key has a member now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The state of every member now, the overflow member included, in no particular order.
    #[must_use]
    pub fn snapshots(&self) -> Vec<H::Snapshot> {
        let mut all = Vec::with_capacity(self.len());
        self.inner
            .members
            .for_each(|_, member| all.push(Member::snapshot(member)));
        all
    }

    /// Runs `f` on the member of `key`, which is made if there is none. The clock is read on a miss
    /// only.
    #[inline]
    pub(crate) fn with<Q, R>(&self, key: &Q, f: impl FnOnce(&H) -> R) -> R
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let inner = &*self.inner;
        inner.members.with(key, || inner.clock.now(), f)
    }

    /// Runs `f` on the members as a whole.
    pub(crate) fn members<R>(&self, f: impl FnOnce(&Members<'_, H>) -> R) -> R {
        self.inner.members(f)
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn source(&self) -> &dyn Source {
        &*self.inner
    }
}

impl<K, H: Member> Family<K, H> {
    /// The name of the family.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn common(&self) -> &H::Common {
        &self.inner.common
    }
}

impl<K, H> Inner<K, H>
where
    K: Hash + Eq + Send + Sync + 'static,
    H: Member,
{
    fn members<R>(&self, f: impl FnOnce(&Members<'_, H>) -> R) -> R {
        f(&Members {
            common: &self.common,
            visit: &|each| self.members.for_each(|_, member| each(member)),
        })
    }
}

impl<K, H: Member> Clone for Family<K, H> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K, H: Member> fmt::Debug for Family<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        order::policy_part(|| {
            Part::new(H::PATTERN, Arc::clone(&self.inner.name)).set(setting::PER_KEY, true)
        });
        f.debug_struct("Family")
            .field("pattern", &H::PATTERN)
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}

impl<K, H> Source for Inner<K, H>
where
    K: Hash + Eq + Send + Sync + 'static,
    H: Member,
{
    fn pattern(&self) -> Pattern {
        H::PATTERN
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.members.sweep(self.clock.now());
        self.members(|members| H::read(members, out));
    }

    fn read_last(&self, out: &mut dyn FnMut(Reading)) {
        self.members(|members| H::read_last(members, out));
    }
}

impl<K, H: Member> Drop for Inner<K, H> {
    fn drop(&mut self) {
        (self.retire)(self);
    }
}
