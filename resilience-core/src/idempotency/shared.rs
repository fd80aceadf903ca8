//! State that the clones of a handle share.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    announce::Announcing,
    cache::Cache,
    key::Fingerprint,
    memory::InProcessIdempotency,
    reconcile::Reconcile,
    record::{Claim, Takeover},
    settings::{Settings, ms},
    snapshot::{IdempotencySnapshot, Totals},
    store::{MAX_OUTCOME, RecordClient},
};
use crate::{
    error::{Pattern, Reason, Rejected},
    fleet::{HandleTasks, StoreHandle, instance_id},
    sealing::{Opened, Sealing},
    telemetry::{self, Reading, Scope, Source},
};

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) store: RecordClient,
    /// For [`OnOutage::Local`](crate::fleet::OnOutage::Local).
    pub(super) local: InProcessIdempotency,
    /// `local` as a store.
    pub(super) local_store: RecordClient,
    pub(super) cache: Cache,
    pub(super) reconcile: Option<Reconcile>,
    pub(super) takeover: Takeover,
    pub(super) settings: Settings,
    pub(super) totals: Totals,
    /// Attempts in progress, and claims that are being given back.
    pub(super) tasks: HandleTasks,
    #[expect(dead_code, reason = "ends its task when it is dropped")]
    pub(super) announcing: Announcing,
    /// Kept alive: its last clone closes `tasks`.
    pub(super) store_handle: StoreHandle,
}

impl Shared {
    pub(super) fn claim(&self, print: &Fingerprint) -> Claim {
        Claim {
            owner: fresh_owner(),
            fingerprint: print.bytes().clone(),
            lease_ms: ms(self.settings.lease),
            retention_ms: ms(self.settings.retention),
            takeover: self.takeover,
        }
    }

    /// Runs `task` in the background, where a shutdown waits for it; drops it outside of a runtime.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            self.tasks.spawn(&runtime, task);
        }
    }

    /// The context that sealed bytes are bound to.
    pub(super) fn associated_data(&self, key: &str) -> String {
        format!("{}:{}{key}", self.name.len(), self.name)
    }

    pub(super) fn sealing(&self) -> &Sealing {
        &self.settings.sealing
    }

    pub(super) fn open(&self, sealed: &Bytes, key: &str) -> Result<Opened, Rejected> {
        let associated_data = self.associated_data(key);
        let opened = self.sealing().open(sealed, &associated_data, MAX_OUTCOME);
        opened.map_err(|why| self.unreadable(&why))
    }

    pub(super) fn unreadable(&self, why: &dyn fmt::Display) -> Rejected {
        tracing::error!(
            target: "resilience",
            pattern = Pattern::Idempotency.as_str(),
            name = &*self.name,
            %why,
            "a recorded outcome cannot be read"
        );
        self.reject(Reason::OutcomeUnreadable, None)
    }

    #[cold]
    pub(super) fn reject(&self, reason: Reason, retry_after: Option<Duration>) -> Rejected {
        Scope::new(Pattern::Idempotency, &self.name).reject(reason, retry_after)
    }

    pub(super) fn snapshot(&self) -> IdempotencySnapshot {
        IdempotencySnapshot {
            store_errors: self.store_errors(),
            ..self.totals.snapshot()
        }
    }

    fn store_errors(&self) -> u64 {
        self.store.errors() + self.local_store.errors()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .field("store", &self.store)
            .field("store_handle", &self.store_handle)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// An owner that no other claim has, in this process or another: the process' random name, and a number.
pub(crate) fn fresh_owner() -> Arc<str> {
    static PROCESS: OnceLock<Arc<str>> = OnceLock::new();
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| instance_id(None));
    format!("{process}-{}", NUMBER.fetch_add(1, Relaxed)).into()
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::Idempotency
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
        out(Reading {
            metric: &telemetry::IDEMPOTENCY_STORE_ERRORS,
            attribute: "",
            value: self.store_errors(),
        });
        out(Reading {
            metric: &telemetry::FLEET_DEGRADED,
            attribute: Pattern::Idempotency.as_str(),
            value: u64::from(!self.store.is_available()),
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

/// Raises a number by one until it is dropped.
pub(super) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    pub(super) fn new(number: &'a AtomicU64) -> Self {
        number.fetch_add(1, Relaxed);
        Self(number)
    }

    /// `None` if the number is `limit` or more.
    pub(super) fn below(number: &'a AtomicU64, limit: usize) -> Option<Self> {
        let more = |now: u64| (now < limit as u64).then_some(now + 1);
        number.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Self(number))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
