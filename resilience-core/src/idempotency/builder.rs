//! The builder of a handle: what is wrong is said when it is built.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;

use super::{
    Idempotency,
    cache::Cache,
    memory::InProcessIdempotency,
    outcome::{CodecError, Disposition, to_json},
    record::{Previous, Takeover},
    shared::{Settings, Shared},
    store::{IdempotencyStore, MAX_CHECKPOINT, MAX_OUTCOME, validate::MAX_MS},
};
use crate::{
    error::InvalidConfig,
    sealing::{OVERHEAD, Sealing},
    telemetry,
};

/// What happens to calls while the store gives no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreachable {
    /// They are refused ([`Reason::StoreUnreachable`](crate::Reason::StoreUnreachable)). For what must not happen
    /// twice. The default.
    #[default]
    Closed,
    /// The work is done without protection, which is counted and logged. Its outcome is recorded afterwards, if the
    /// store is back by then. For what had better happen twice than not at all.
    Open,
    /// This instance alone sees to it that nothing is done twice here, in a store of its own that it keeps until what
    /// is in it has expired; what other instances do it cannot know. Outcomes are passed on to the store when it is back.
    Local,
}

/// What the [reconcile hook](IdempotencyBuilder::reconcile) is asked about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InDoubt {
    /// The key, as it is kept in the store.
    pub key: Arc<str>,
    /// How the attempt before ended: [`Previous::Ended`] or [`Previous::Unknown`].
    pub previous: Previous,
    /// The number of the attempt that asks.
    pub attempt: u32,
    /// The fence under which it does.
    pub fence: u64,
    /// What an attempt before has left.
    pub checkpoint: Option<Bytes>,
}

/// What the reconcile hook has found out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reconciled {
    /// The work was done, and this is its result, as the codec would have encoded it.
    Done(Bytes),
    /// It was not done: do it.
    NotDone,
    /// It cannot be told. The outcome is unknown, still.
    Unknown,
}

impl Reconciled {
    /// The work was done, and this is its result, for [`Json`](super::Json).
    ///
    /// # Errors
    /// If it has no form in JSON.
    pub fn done(result: &impl Serialize) -> Result<Self, CodecError> {
        to_json(result).map(Self::Done)
    }
}

pub(super) type Reconcile =
    Arc<dyn Fn(InDoubt) -> Pin<Box<dyn Future<Output = Reconciled> + Send>> + Send + Sync>;

/// Settings of an [`Idempotency`].
///
/// # Default
/// | setting | value |
/// |---|---|
/// | [`store`](Self::store) | one in this process |
/// | [`lease`](Self::lease), [`max_lease_time`](Self::max_lease_time) | 30 s, 10 min |
/// | [`ttl`](Self::ttl), [`retention`](Self::retention) | 24 h, 24 h |
/// | [`budget`](Self::budget) | 1 s |
/// | [`wait`](Self::wait) | nobody waits |
/// | [`takeover`](Self::takeover), [`on_panic`](Self::on_panic) | when the lease has ended; unknown |
/// | [`unreachable`](Self::unreachable) | closed |
/// | [`max_outcome`](Self::max_outcome), [`max_checkpoint`](Self::max_checkpoint) | 1 MiB, 64 KiB |
#[derive(Clone)]
#[must_use]
pub struct IdempotencyBuilder {
    name: Arc<str>,
    store: Option<Arc<dyn IdempotencyStore>>,
    cache: usize,
    reconcile: Option<Reconcile>,
    settings: Settings,
}

impl IdempotencyBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            store: None,
            cache: 0,
            reconcile: None,
            settings: Settings {
                lease: Duration::from_secs(30),
                max_lease_time: Duration::from_secs(600),
                cancel_at_max_lease_time: false,
                ttl: Duration::from_secs(86_400),
                retention: Duration::from_secs(86_400),
                budget: Duration::from_secs(1),
                wait: None,
                takeover: Takeover::Ended,
                on_panic: Disposition::Unknown,
                unreachable: Unreachable::Closed,
                max_outcome: 1 << 20,
                max_checkpoint: 64 << 10,
                sealing: Sealing::new(),
            },
        }
    }

    /// Where the records are kept. Handles of the same name and store share them, in whatever process they are.
    pub fn store(self, store: impl IdempotencyStore) -> Self {
        self.store_arc(Arc::new(store))
    }

    /// The same, for a store that is shared already.
    pub fn store_arc(mut self, store: Arc<dyn IdempotencyStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// For how long a crash keeps others out: a claim holds so long without a sign of life, which is given three times
    /// in a lease while the work runs.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// For how long signs of life are given. Work that takes longer loses its lease, and is told
    /// ([`Attempt::lost`](super::Attempt::lost)).
    pub const fn max_lease_time(mut self, max_lease_time: Duration) -> Self {
        self.settings.max_lease_time = max_lease_time;
        self
    }

    /// Whether work is cancelled at the ceiling, wherever it stands; what becomes of its record is
    /// [`on_panic`](Self::on_panic)'s to say. By default it runs on.
    pub const fn cancel_at_max_lease_time(mut self, cancel: bool) -> Self {
        self.settings.cancel_at_max_lease_time = cancel;
        self
    }

    /// For how long a recorded outcome is replayed, unless its [`Disposition`] says otherwise. Make it longer than the
    /// longest way that a request may come again on (a client's retries, a queue's redelivery, a redrive by hand):
    /// what comes later is done again.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.ttl = ttl;
        self
    }

    /// For how long the record of unfinished work (crashed, released, of unknown outcome) is kept after its last sign
    /// of life. At least the ceiling and a lease. What comes later is done as if nothing had been.
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.settings.retention = retention;
        self
    }

    /// How long the store may take for one step. A claim is tried three times.
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.settings.budget = budget;
        self
    }

    /// Lets up to `callers` callers of this handle wait for the outcome of work that somebody else is doing, each for at
    /// most `max_wait` and not beyond its [deadline](crate::deadline). The others are refused, with the time that is
    /// left of the lease.
    pub const fn wait(mut self, callers: usize, max_wait: Duration) -> Self {
        self.settings.wait = Some((callers, max_wait));
        self
    }

    /// What to take over from an earlier attempt whose end is not known.
    pub const fn takeover(mut self, takeover: Takeover) -> Self {
        self.settings.takeover = takeover;
        self
    }

    /// Asks `hook` before work is done whose earlier attempt crashed or ended in an unknown outcome: a payment service
    /// may know the [child key](super::Attempt::child_key) that it was called with. Such work is then taken over
    /// whatever [`takeover`](Self::takeover) says. The hook is asked under the lease, by one caller at a time; one that
    /// panics does not know.
    pub fn reconcile<F, Fut>(mut self, hook: F) -> Self
    where
        F: Fn(InDoubt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Reconciled> + Send + 'static,
    {
        self.reconcile = Some(Arc::new(move |doubt| Box::pin(hook(doubt))));
        self
    }

    /// What the record says of work that has panicked, or was cancelled at the ceiling: [`Disposition::Unknown`] or
    /// [`Disposition::Release`].
    pub const fn on_panic(mut self, disposition: Disposition) -> Self {
        self.settings.on_panic = disposition;
        self
    }

    /// What happens while the store gives no answer.
    pub const fn unreachable(mut self, unreachable: Unreachable) -> Self {
        self.settings.unreachable = unreachable;
        self
    }

    /// The largest outcome that is recorded, in bytes as encoded. Work with a larger one counts as done and is not
    /// replayed ([`Recorded::WithoutResult`](super::Recorded::WithoutResult)).
    pub const fn max_outcome(mut self, bytes: usize) -> Self {
        self.settings.max_outcome = bytes;
        self
    }

    /// The largest checkpoint, in bytes.
    pub const fn max_checkpoint(mut self, bytes: usize) -> Self {
        self.settings.max_checkpoint = bytes;
        self
    }

    /// What is done to outcomes and checkpoints before they are stored.
    pub fn sealing(mut self, sealing: Sealing) -> Self {
        self.settings.sealing = sealing;
        self
    }

    /// Keeps outcomes of up to `bytes` in all in this process too, so that a replay needs no answer of the store. A
    /// recorded outcome does not change until its time is over, so they are never stale. The default is not to.
    pub const fn cache(mut self, bytes: usize) -> Self {
        self.cache = bytes;
        self
    }

    /// Builds the handle.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule.
    pub fn build(mut self) -> Result<Idempotency, InvalidConfig> {
        self.settings.check()?;
        if self.reconcile.is_some() {
            self.settings.takeover = Takeover::Any;
        }
        let store = self
            .store
            .unwrap_or_else(|| Arc::new(InProcessIdempotency::new()));
        let shared = Arc::new(Shared {
            name: self.name,
            store,
            local: InProcessIdempotency::new(),
            cache: Cache::new(self.cache),
            reconcile: self.reconcile,
            settings: self.settings,
            totals: Default::default(),
            silent: Default::default(),
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
            .field("cache", &self.cache)
            .field("reconcile", &self.reconcile.is_some())
            .field("settings", &self.settings)
            .finish()
    }
}

const LEAST: Duration = Duration::from_millis(10);
const MOST: Duration = Duration::from_millis(MAX_MS);

impl Settings {
    fn check(&self) -> Result<(), InvalidConfig> {
        let no = |field, value: &dyn fmt::Debug, rule| Err(InvalidConfig::new(field, value, rule));
        if self.lease < LEAST {
            return no("lease", &self.lease, "must be at least 10 ms");
        }
        if self.max_lease_time < self.lease {
            return no(
                "max_lease_time",
                &self.max_lease_time,
                "must not be below the lease",
            );
        }
        if self.retention < self.max_lease_time.saturating_add(self.lease) {
            let rule = "must be at least the ceiling and a lease";
            return no("retention", &self.retention, rule);
        }
        for (field, time) in [("retention", self.retention), ("ttl", self.ttl)] {
            if time > MOST {
                return no(field, &time, "must not be above 30 years");
            }
        }
        if self.ttl < Duration::from_millis(1) {
            return no("ttl", &self.ttl, "must be at least 1 ms");
        }
        if self.budget.is_zero() || self.budget > self.lease {
            return no(
                "budget",
                &self.budget,
                "must be above zero, and not above the lease",
            );
        }
        if let Some((callers, max_wait)) = self.wait {
            if !(1..1 << 20).contains(&callers) {
                let rule = "its callers must be between 1 and 1,048,575; leave `wait` out for none";
                return no("wait", &callers, rule);
            }
            if max_wait.is_zero() {
                return no("wait", &max_wait, "its maximum wait must be above zero");
            }
        }
        if !matches!(self.on_panic, Disposition::Unknown | Disposition::Release) {
            let rule = "there is no result to record: must be `Unknown` or `Release`";
            return no("on_panic", &self.on_panic, rule);
        }
        if self.max_outcome > MAX_OUTCOME - OVERHEAD {
            return no(
                "max_outcome",
                &self.max_outcome,
                "must leave 1 KiB below 16 MiB",
            );
        }
        if self.max_checkpoint > MAX_CHECKPOINT - OVERHEAD {
            return no(
                "max_checkpoint",
                &self.max_checkpoint,
                "must leave 1 KiB below 1 MiB",
            );
        }
        Ok(())
    }
}
