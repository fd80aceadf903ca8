//! What loaders return, and what their errors mean.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use super::{
    guarded::LoadOutcome,
    store::validate::{MAX_TAG, MAX_TAGS},
};
use crate::{classify::Classify, error::Error, verdict::Verdict};

/// The error of a call that loads: a rejection (the load timed out, too many loads, ..), or the loader's own error, which
/// all callers that shared the load share. For a loader behind a stack of layers, [`guarded`](fn@super::guarded) keeps the two
/// apart.
pub type LoadError<E> = Error<Arc<E>>;

/// What a loader returns for a key: a value or the knowledge that there is none, optionally with a time to live and tags
/// of its own. Values and `Option`s of values convert into it.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::cache::Loaded;
///
/// let price = Loaded::new(7).ttl(Duration::from_secs(5)).tag("product:42");
/// let nothing = Loaded::<u32>::missing();
/// # let _ = (price, nothing);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Loaded<V> {
    pub(super) value: Option<Arc<V>>,
    pub(super) ttl: Option<Duration>,
    pub(super) tags: Vec<Arc<str>>,
}

impl<V> Loaded<V> {
    /// A value.
    pub fn new(value: impl Into<Arc<V>>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::missing()
        }
    }

    /// There is no value: kept for the [`negative_ttl`](super::CacheBuilder::negative_ttl).
    pub const fn missing() -> Self {
        Self {
            value: None,
            ttl: None,
            tags: Vec::new(),
        }
    }

    /// How long the value is fresh, in place of the cache's [`ttl`](super::CacheBuilder::ttl); zero: it is not cached.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Adds a tag, of 1 to 255 bytes: [`invalidate_tag`](super::Cache::invalidate_tag) invalidates all values that have it.
    /// A value with more than 31 tags, or with an invalid one, is not cached.
    pub fn tag(mut self, tag: impl Into<Arc<str>>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// The tags, after the one that all values have. `None`: some are not allowed, or there are too many.
    pub(super) fn all_tags(&self) -> Option<Vec<Arc<str>>> {
        let is_valid = |tag: &Arc<str>| (1..=MAX_TAG).contains(&tag.len());
        if self.tags.len() >= MAX_TAGS || !self.tags.iter().all(is_valid) {
            return None;
        }
        let all = std::iter::once(Arc::from(""));
        Some(all.chain(self.tags.iter().cloned()).collect())
    }

    /// Adds several tags.
    pub fn tags<T: Into<Arc<str>>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Self {
        value.map_or(Self::missing(), Self::new)
    }
}

impl<V> From<Arc<V>> for Loaded<V> {
    fn from(value: Arc<V>) -> Self {
        Self::new(value)
    }
}

/// One load, not begun yet. Boxed: only calls that load have one.
pub(super) type Load<V, E> = Box<dyn FnOnce() -> Loading<V, E> + Send>;
pub(super) type Loading<V, E> = Pin<Box<dyn Future<Output = Result<Loaded<V>, Error<E>>> + Send>>;

/// Makes a load of a closure that was passed to a call.
pub(super) fn load<V, R, F>(load: impl FnOnce() -> F + Send + 'static) -> Load<V, R::Error>
where
    R: LoadOutcome<Value: Into<Loaded<V>>>,
    F: Future<Output = R> + Send + 'static,
{
    Box::new(move || {
        let loading = load();
        Box::pin(async move { loading.await.into_result().map(Into::into) })
    })
}

/// What the errors of loaders mean, by their type.
#[derive(Clone, Default)]
pub(super) struct ErrorRules {
    not_found: HashMap<TypeId, Rule<bool>>,
    verdict: HashMap<TypeId, Rule<Verdict>>,
}

type Rule<T> = Arc<dyn Fn(&dyn Any) -> Option<T> + Send + Sync>;

impl ErrorRules {
    pub(super) fn add_not_found<E: 'static>(
        &mut self,
        rule: impl Fn(&E) -> bool + Send + Sync + 'static,
    ) {
        let rule = move |error: &dyn Any| error.downcast_ref().map(&rule);
        self.not_found.insert(TypeId::of::<E>(), Arc::new(rule));
    }

    pub(super) fn add_classifier<E: 'static>(
        &mut self,
        classifier: impl Classify<(), E> + Send + Sync + 'static,
    ) {
        let rule = move |error: &dyn Any| {
            let error = error.downcast_ref::<E>()?;
            Some(classifier.classify(Err(error)))
        };
        self.verdict.insert(TypeId::of::<E>(), Arc::new(rule));
    }

    /// Whether the error says that there is no value.
    pub(super) fn is_not_found<E: 'static>(&self, error: &E) -> bool {
        let rule = self.not_found.get(&TypeId::of::<E>());
        rule.and_then(|rule| rule(error)).unwrap_or(false)
    }

    /// Whether a stale value may be served in place of the error: not for one that is the caller's own fault.
    pub(super) fn allows_stale<E: 'static>(&self, error: &LoadError<E>) -> bool {
        let Error::Service(error) = error else {
            return true;
        };
        let rule = self.verdict.get(&TypeId::of::<E>());
        let verdict = rule.and_then(|rule| rule(&**error));
        verdict.is_none_or(Verdict::is_failure)
    }
}

impl fmt::Debug for ErrorRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorRules")
            .field("not_found", &self.not_found.len())
            .field("verdict", &self.verdict.len())
            .finish()
    }
}
