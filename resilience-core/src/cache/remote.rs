//! The store of a cache, as the handle uses it: bytes become values, and what was invalidated by a tag is no value.

use std::{
    any::Any,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use super::{
    coherence::{Coherence, Ticket},
    envelope::{Envelope, Unusable},
    generations::Generations,
    local::Held,
    pending::{Changed, Pending},
    record::{Entry, Fill, TagGeneration, Token},
    settings::Settings,
    store::{CacheClient, CacheStore, Observer, StoreError, StoreFuture, Subject},
};
use crate::{
    clock::{Clock, Moment},
    error::Pattern,
    fleet::{FleetSettings, millis},
    sync::{Mutex, lock},
};

pub(super) struct Remote<V> {
    pub(super) client: CacheClient,
    pub(super) generations: Generations,
    pub(super) pending: Pending,
    name: Arc<str>,
    envelope: Envelope<V>,
    /// How long tags are kept: as long as values that have them.
    pub(super) keep_ms: AtomicU64,
    observing: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
    pub(super) unusable: AtomicU64,
    /// This instance, as operators see it.
    pub(super) instance: Arc<str>,
}

/// The value of a key in the store.
pub(super) enum Found<V> {
    /// A value that may be used.
    Usable(Held<V>),
    /// There is an entry that may not: invalidated by a tag, or of another format.
    Unusable(Token),
    Nothing,
}

impl<V: Send + Sync + 'static> Remote<V> {
    pub(super) fn new(
        store: Arc<dyn CacheStore>,
        name: &Arc<str>,
        fleet: &FleetSettings,
        envelope: Envelope<V>,
        settings: &Settings,
    ) -> Self {
        let client = CacheClient::new(store, Pattern::Cache, Arc::clone(name), fleet);
        Self {
            client,
            generations: Generations::default(),
            pending: Pending::default(),
            name: Arc::clone(name),
            envelope,
            keep_ms: AtomicU64::new(millis(settings.longest_keep()).max(DAY_MS)),
            observing: Mutex::new(None),
            unusable: AtomicU64::new(0),
            instance: Arc::clone(&fleet.instance),
        }
    }

    /// Asks the store to report changes.
    pub(super) fn observe(&self, observer: Weak<dyn Observer>) {
        let observing = self.client.store().observe(observer);
        *lock(&self.observing) = observing;
    }

    pub(super) fn id(&self, subject: Subject<'_>) -> u64 {
        self.client.store().id(&self.name, subject)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reads keys. `tickets` were drawn before.
    pub(super) async fn get(
        &self,
        keys: &[&str],
        tickets: &[Ticket],
        coherence: &Coherence,
        clock: Clock,
    ) -> Result<Vec<Found<V>>, StoreError> {
        let entries = self
            .client
            .call(|store| store.get(&self.name, keys))
            .await?;
        let now = clock.now();
        let mut found = Vec::with_capacity(keys.len());
        for ((key, ticket), entry) in keys.iter().zip(tickets).zip(entries) {
            found.push(match entry {
                Some(entry) => self.open(key, entry, *ticket, coherence, now).await?,
                None => Found::Nothing,
            });
        }
        Ok(found)
    }

    /// Reads a key. `ticket` was drawn before.
    pub(super) async fn get_one(
        &self,
        key: &str,
        ticket: Ticket,
        coherence: &Coherence,
        clock: Clock,
    ) -> Result<Found<V>, StoreError> {
        let mut found = self.get(&[key], &[ticket], coherence, clock).await?;
        Ok(found.pop().unwrap_or(Found::Nothing))
    }

    /// Makes a value of an entry.
    pub(super) async fn open(
        &self,
        key: &str,
        entry: Entry,
        ticket: Ticket,
        coherence: &Coherence,
        now: Moment,
    ) -> Result<Found<V>, StoreError> {
        if self.pending.contains(key) {
            return Ok(Found::Unusable(entry.version));
        }
        let Some(tags) = self.tickets_of(&entry.tags, coherence).await? else {
            return Ok(Found::Unusable(entry.version));
        };
        let value = match &entry.body {
            None => None,
            Some(body) => match self.envelope.open(body, &self.associated_data(key)) {
                Ok(value) => Some(Arc::new(value)),
                Err(why) => {
                    self.tell_unusable(&why, "read");
                    return Ok(Found::Unusable(entry.version));
                }
            },
        };
        let stored = now.earlier(Duration::from_millis(entry.age_ms));
        Ok(Found::Usable(Held {
            value,
            ticket,
            tags,
            stored,
            fresh_until: stored + Duration::from_millis(entry.fresh_ms),
            load: Duration::from_millis(entry.load_ms).into(),
            version: Some(entry.version),
        }))
    }

    /// The tickets of the tags of an entry, if none was invalidated since it was stored.
    async fn tickets_of(
        &self,
        tags: &[TagGeneration],
        coherence: &Coherence,
    ) -> Result<Option<Option<Arc<[Ticket]>>>, StoreError> {
        let names: Vec<&str> = tags.iter().map(|tag| &*tag.tag).collect();
        let current = self.generations(&names, coherence).await?;
        let pairs = tags.iter().zip(&current);
        if pairs
            .clone()
            .any(|(tag, current)| tag.generation != current.number)
        {
            return Ok(None);
        }
        // Of the tag that all have, every change voids every ticket.
        let tickets = pairs.filter(|(tag, _)| !tag.tag.is_empty());
        let tickets: Vec<Ticket> = tickets.map(|(_, current)| current.ticket).collect();
        Ok(Some((!tickets.is_empty()).then(|| tickets.into())))
    }

    /// The generations of tags as they are now.
    pub(super) async fn generations(
        &self,
        tags: &[&str],
        coherence: &Coherence,
    ) -> Result<Vec<super::generations::Known>, StoreError> {
        let ask = async |missing: &[&str]| {
            let keep_ms = self.keep_ms.load(Relaxed);
            self.client
                .call(|store| store.generations(&self.name, missing, keep_ms))
                .await
        };
        let id = |tag: &str| self.id(Subject::Tag(tag));
        self.generations.current(tags, coherence, id, ask).await
    }

    /// Encodes a value; `None` (and an event) if that cannot be stored.
    pub(super) fn encode(&self, key: &str, value: Option<&V>) -> Option<Option<bytes::Bytes>> {
        let Some(value) = value else {
            return Some(None);
        };
        match self.envelope.close(value, &self.associated_data(key)) {
            Ok(body) => Some(Some(body)),
            Err(why) => {
                self.tell_unusable(&why, "stored");
                None
            }
        }
    }

    /// The context that sealed bytes are bound to.
    fn associated_data(&self, key: &str) -> String {
        format!("cache:{}:{}{key}", self.name.len(), self.name)
    }

    #[cold]
    fn tell_unusable(&self, why: &Unusable, done: &str) {
        self.unusable.fetch_add(1, Relaxed);
        if matches!(why, Unusable::OtherFormat) {
            return;
        }
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Cache.as_str(),
            name = &*self.name,
            %why,
            "a cached value cannot be {done}"
        );
    }

    /// The step that invalidates a key or a tag in `store`.
    pub(super) fn invalidate<'a>(
        &'a self,
        store: &'a dyn CacheStore,
        changed: &'a Changed,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, ()> {
        let keep_ms = self.keep_ms.load(Relaxed);
        match changed {
            Changed::Key(key) => store.invalidate(&self.name, key, tombstone_ms),
            Changed::Tag(tag) => store.invalidate_tag(&self.name, tag, keep_ms),
        }
    }

    /// Sends a fill; repeated until the lease is over.
    pub(super) async fn fill(
        &self,
        key: &str,
        token: Token,
        fill: &Fill,
        until: tokio::time::Instant,
    ) -> Result<super::record::Stored, StoreError> {
        self.client
            .call_until(until, |store| store.fill(&self.name, key, token, fill))
            .await
    }
}

const DAY_MS: u64 = 86_400_000;

/// Polls `step` once. `None`: it is done; else it is on its way, and may be completed elsewhere.
pub(super) async fn begun<F: Future<Output = ()> + Unpin>(mut step: F) -> Option<F> {
    let is_done = poll_fn(|cx| Poll::Ready(pin!(&mut step).poll(cx).is_ready())).await;
    (!is_done).then_some(step)
}

/// A change is pending until this is dropped.
pub(super) struct PendingChange<V: Send + Sync + 'static> {
    remote: Arc<Remote<V>>,
    changed: Changed,
}

impl<V: Send + Sync + 'static> PendingChange<V> {
    pub(super) fn new(remote: &Arc<Remote<V>>, changed: &Changed) -> Self {
        remote.pending.add(changed);
        Self {
            remote: Arc::clone(remote),
            changed: changed.clone(),
        }
    }
}

impl<V: Send + Sync + 'static> Drop for PendingChange<V> {
    fn drop(&mut self) {
        self.remote.pending.remove(&self.changed);
    }
}
