//! The builder of a handle. Invalid settings are errors when it is built.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use super::{
    Idempotency,
    announce::Announcing,
    cache::Cache,
    effect::Effect,
    memory::InProcessIdempotency,
    reconcile::{InDoubt, Reconcile, Reconciled},
    record::Takeover,
    settings::Settings,
    shared::Shared,
    store::{IdempotencyStore, RecordClient},
    unrecorded::OnUnrecorded,
};
use crate::{
    error::{InvalidConfig, Pattern},
    fleet::{FleetOptions, IntoStore},
    sealing::Sealing,
    telemetry,
};

/// Settings of an [`Idempotency`].
///
/// # Default
/// | setting | value |
/// |---|---|
/// | [`store`](Self::store) | one in this process |
/// | [`lease`](Self::lease), [`max_lease_time`](Self::max_lease_time) | 30 s, 10 min, after which the work is [cancelled](Self::cancel_at_max_lease_time) |
/// | [`ttl`](Self::ttl), [`retention`](Self::retention) | 24 h, 24 h |
/// | [`fleet`](Self::fleet) | budget: 1 s, or the lease if that is shorter; on outage: `FailClosed` |
/// | [`wait`](Self::wait) | 1,024 callers, for up to 10 s each |
/// | [`effect`](Self::effect) | `AtMostOnce`: work that may have been done is not done again |
/// | [`on_unrecorded`](Self::on_unrecorded) | `Hold`, for up to 10 s |
/// | [`max_outcome`](Self::max_outcome), [`max_checkpoint`](Self::max_checkpoint) | 1 MiB, 64 KiB |
#[derive(Clone)]
#[must_use]
pub struct IdempotencyBuilder {
    name: Arc<str>,
    store: Option<Arc<dyn IdempotencyStore>>,
    fleet: Option<FleetOptions>,
    cache: usize,
    reconcile: Option<Reconcile>,
    settings: Settings,
}

impl IdempotencyBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            store: None,
            fleet: None,
            cache: 0,
            reconcile: None,
            settings: Settings::default(),
        }
    }

    /// Keeps the records in `store`. Handles of the same name and store share them, across processes. Default: an
    /// [`InProcessIdempotency`] of the handle's own.
    pub fn store(mut self, store: impl IntoStore<dyn IdempotencyStore>) -> Self {
        self.store = Some(store.into_store());
        self
    }

    /// How the handle takes part in its fleet: time budget of one step of the store (a claim is tried three times), and what
    /// happens to calls while the store is unavailable. Needs a [`store`](Self::store). The instance name is not used,
    /// and there is no heartbeat to set: attempts are live for as long as their [`lease`](Self::lease) is renewed.
    ///
    /// | [`OnOutage`](crate::fleet::OnOutage) | what happens to calls while the store is unavailable |
    /// |---|---|
    /// | `FailClosed`, the default | rejected with [`Reason::StoreUnreachable`](crate::Reason::StoreUnreachable): for work that must not be done twice |
    /// | `FailOpen` | the work runs without protection, which is counted and logged; its outcome is recorded if the store is back within a lease. For work that is better done twice than not at all ([`Effect::Idempotent`]) |
    /// | `Local` | this instance alone does no work twice, by records in the process; other instances are not protected from. Outcomes are passed on to the store if it is back within a lease, and local records are used until they expire |
    ///
    /// Steps of attempts that are in progress (renewals, checkpoints, completions) go to the store that granted the
    /// claim, also while it is unavailable.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = Some(options);
        self
    }

    /// How long a claim holds without a renewal, and so how long a crash blocks a key; at least 10 ms. The lease is
    /// renewed every third of it while the work runs.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Maximum time that work may take: the total time a lease is renewed. Work that takes longer loses its lease
    /// ([`Attempt::lost`](super::Attempt::lost) completes in it) and is
    /// [cancelled](Self::cancel_at_max_lease_time).
    ///
    /// Neither the caller's [deadline](crate::deadline) nor a client that hangs up ends the work, so this is its only time
    /// limit; until then, work that hangs keeps the [places](crate::admission::carry) of its call in the bulkheads around
    /// it. Set it to the longest time that the work can take.
    pub const fn max_lease_time(mut self, max_lease_time: Duration) -> Self {
        self.settings.max_lease_time = max_lease_time;
        self
    }

    /// Sets whether work is cancelled at [`max_lease_time`](Self::max_lease_time), at whatever await it is; its outcome is
    /// then unknown ([`effect`](Self::effect)). Default: `true`. With `false` it runs on without a lease, beside an attempt
    /// that may take over, and without a time limit.
    pub const fn cancel_at_max_lease_time(mut self, cancel: bool) -> Self {
        self.settings.cancel_at_max_lease_time = cancel;
        self
    }

    /// How long a recorded outcome is replayed, unless its [`Disposition`](super::Disposition) says otherwise. Set it longer than the
    /// longest way that a request can come again (a client's retries, a queue's redelivery, a redrive by hand): work
    /// that is requested later is done again.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.ttl = ttl;
        self
    }

    /// How long the record of unfinished work (crashed, released, of unknown outcome) is kept after its last renewal; at
    /// least `max_lease_time` and a lease. Work that is requested later is done as if there had been no attempt.
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.settings.retention = retention;
        self
    }

    /// Lets up to `callers` callers of this handle wait for the outcome of an attempt in progress, each for at most
    /// `max_wait` and not beyond its [deadline](crate::deadline). Other callers are rejected, with the rest of the lease
    /// as `retry_after`. Default: 1,024 callers, 10 s.
    pub const fn wait(mut self, callers: usize, max_wait: Duration) -> Self {
        self.settings.wait = Some((callers, max_wait));
        self
    }

    /// Rejects callers at once while an attempt is in progress.
    pub const fn without_wait(mut self) -> Self {
        self.settings.wait = None;
        self
    }

    /// What a second run of the work does, and so what happens when it is unknown whether the first one took effect: see the
    /// table of [`Effect`]. Default: [`Effect::AtMostOnce`].
    pub const fn effect(mut self, effect: Effect) -> Self {
        self.settings.effect = effect;
        self
    }

    /// What the caller gets while the outcome of its work is not recorded, because the store does not answer: see the table
    /// of [`OnUnrecorded`]. Default: [`OnUnrecorded::Hold`] with 10 s.
    pub const fn on_unrecorded(mut self, policy: OnUnrecorded) -> Self {
        self.settings.on_unrecorded = policy;
        self
    }

    /// Calls `hook` before work whose earlier attempt crashed or ended in an unknown outcome: a payment service may know the
    /// [child key](super::Attempt::child_key) that it was called with. Such work is then taken over, whatever its
    /// [`effect`](Self::effect). The hook runs under the lease, for one caller at a time; a panic counts as
    /// [`Reconciled::Unknown`].
    pub fn reconcile<F, Fut>(mut self, hook: F) -> Self
    where
        F: Fn(InDoubt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Reconciled> + Send + 'static,
    {
        self.reconcile = Some(Arc::new(move |doubt| Box::pin(hook(doubt))));
        self
    }

    /// Maximum size of a recorded outcome, in bytes as encoded. Work with a larger one counts as done and is not
    /// replayed ([`Recorded::WithoutResult`](super::Recorded::WithoutResult)).
    pub const fn max_outcome(mut self, bytes: usize) -> Self {
        self.settings.max_outcome = bytes;
        self
    }

    /// Maximum size of a checkpoint in bytes.
    pub const fn max_checkpoint(mut self, bytes: usize) -> Self {
        self.settings.max_checkpoint = bytes;
        self
    }

    /// Compression and encryption of outcomes and checkpoints before they are stored.
    pub fn sealing(mut self, sealing: Sealing) -> Self {
        self.settings.sealing = sealing;
        self
    }

    /// Keeps outcomes of up to `bytes` in all in this process as well, so that replays need no round trip. A recorded
    /// outcome does not change until it expires, so cached ones are never stale. Default: 0, no cache.
    pub const fn cache(mut self, bytes: usize) -> Self {
        self.cache = bytes;
        self
    }

    /// Builds the handle.
    ///
    /// # Errors
    /// [`InvalidConfig`] if a value is out of bounds, [`fleet`](Self::fleet) is set without a [`store`](Self::store), or
    /// fenced work is to run without a fence.
    pub fn build(self) -> Result<Idempotency, InvalidConfig> {
        self.settings.check()?;
        if self.fleet.is_some() && self.store.is_none() {
            let rule = "needs a `store`: without one, nothing is shared";
            return Err(InvalidConfig::new("fleet", "set", rule));
        }
        let fleet = self.fleet.unwrap_or_default();
        let fleet = self.settings.resolve_fleet(&fleet)?;
        let takeover = match self.reconcile {
            Some(_) => Takeover::Any,
            None => self.settings.effect.takeover(),
        };
        let client = |store| {
            let (pattern, name) = (Pattern::Idempotency, Arc::clone(&self.name));
            RecordClient::new(store, pattern, name, &fleet)
        };
        let store = self
            .store
            .unwrap_or_else(|| Arc::new(InProcessIdempotency::new()));
        let store_handle = store.handle().cloned().unwrap_or_default();
        let (store, tasks) = (client(store), store_handle.of_handle());
        let local = InProcessIdempotency::new();
        let shared = Arc::new(Shared {
            announcing: Announcing::start(&store, &self.name, &tasks),
            store,
            local_store: client(Arc::new(local.clone())),
            local,
            cache: Cache::new(self.cache),
            reconcile: self.reconcile,
            takeover,
            settings: self.settings,
            totals: Default::default(),
            tasks,
            store_handle,
            name: self.name,
        });
        telemetry::register(&shared);
        Ok(Idempotency { shared })
    }
}

impl fmt::Debug for IdempotencyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyBuilder")
            .field("name", &self.name)
            .field("store", &self.store)
            .field("fleet", &self.fleet)
            .field("cache", &self.cache)
            .field("reconcile", &self.reconcile.is_some())
            .field("settings", &self.settings)
            .finish()
    }
}
