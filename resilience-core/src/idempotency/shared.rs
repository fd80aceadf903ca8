//! What the clones of a handle share: its settings and its counts.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    builder::{Reconcile, Unreachable},
    cache::Cache,
    key::Fingerprint,
    memory::InProcessIdempotency,
    outcome::Disposition,
    record::{Claim, Takeover},
    store::{IdempotencyStore, MAX_OUTCOME, StoreError},
};
use crate::{
    error::{Pattern, Reason, Rejected},
    sealing::{Opened, Sealing},
    telemetry::{self, Reading, Scope, Source, counters},
};

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) store: Arc<dyn IdempotencyStore>,
    /// For [`Unreachable::Local`].
    pub(super) local: InProcessIdempotency,
    pub(super) cache: Cache,
    pub(super) reconcile: Option<Reconcile>,
    pub(super) settings: Settings,
    pub(super) totals: Totals,
    /// Steps in a row that the store gave no answer to.
    pub(super) silent: AtomicU64,
}

/// So many, that it is not one packet that was lost: as often as a claim is tried.
const SILENT: u64 = 3;

/// Settings that are valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) lease: Duration,
    pub(super) max_lease_time: Duration,
    pub(super) cancel_at_max_lease_time: bool,
    pub(super) ttl: Duration,
    pub(super) retention: Duration,
    pub(super) budget: Duration,
    pub(super) wait: Option<(usize, Duration)>,
    pub(super) takeover: Takeover,
    pub(super) on_panic: Disposition,
    pub(super) unreachable: Unreachable,
    pub(super) max_outcome: usize,
    pub(super) max_checkpoint: usize,
    pub(super) sealing: Sealing,
}

/// Whole milliseconds, one at least.
pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl Shared {
    pub(super) fn claim(&self, print: &Fingerprint) -> Claim {
        Claim {
            owner: fresh_owner(),
            fingerprint: print.bytes().clone(),
            lease_ms: ms(self.settings.lease),
            retention_ms: ms(self.settings.retention),
            takeover: self.settings.takeover,
        }
    }

    /// One step of `store`, within the budget; a failure is counted.
    pub(super) async fn within_budget<T>(
        &self,
        store: &Arc<dyn IdempotencyStore>,
        step: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let answer = timeout(self.settings.budget, step).await;
        let answer =
            answer.unwrap_or_else(|_| Err(StoreError::new("no answer within the budget", true)));
        if answer.is_err() {
            self.totals.store_errors.fetch_add(1, Relaxed);
        }
        if Arc::ptr_eq(store, &self.store) {
            self.heard(answer.as_ref().err());
        }
        answer
    }

    /// Says when the handle's own store falls silent, and when it is back.
    fn heard(&self, failure: Option<&StoreError>) {
        if let Some(failure) = failure {
            if self.silent.fetch_add(1, Relaxed) + 1 == SILENT {
                tracing::warn!(
                    target: "resilience",
                    pattern = Pattern::Idempotency.as_str(),
                    name = &*self.name,
                    %failure,
                    "the store gives no answer"
                );
            }
        } else if self.silent.load(Relaxed) > 0 && self.silent.swap(0, Relaxed) >= SILENT {
            tracing::info!(
                target: "resilience",
                pattern = Pattern::Idempotency.as_str(),
                name = &*self.name,
                "the store answers again"
            );
        }
    }

    /// What sealed bytes are bound to.
    pub(super) fn associated_data(&self, key: &str) -> String {
        format!("{}:{}{key}", self.name.len(), self.name)
    }

    pub(super) fn open(&self, sealed: &Bytes, key: &str) -> Result<Opened, Rejected> {
        let associated_data = self.associated_data(key);
        let opened = self
            .settings
            .sealing
            .open(sealed, &associated_data, MAX_OUTCOME);
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
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .field("store", &self.store)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A name that nobody has used, here or in another process: 128 bits that the system has drawn, and a number.
fn fresh_owner() -> Arc<str> {
    static PROCESS: OnceLock<String> = OnceLock::new();
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| {
        let half = |half: u8| RandomState::new().hash_one(half);
        format!("{:016x}{:016x}", half(0), half(1))
    });
    format!("{process}-{}", NUMBER.fetch_add(1, Relaxed)).into()
}

counters! {
    /// Counters of an idempotency handle.
    pub(super) struct Totals;
    /// What an [`Idempotency`](super::Idempotency) has counted so far; see
    /// [`snapshot`](super::Idempotency::snapshot).
    pub struct IdempotencySnapshot;
    granted = IDEMPOTENCY_CLAIMS "granted", "Claims that were granted.";
    replayed = IDEMPOTENCY_CLAIMS "replayed", "Claims that the store answered with a recorded outcome.";
    replayed_here = IDEMPOTENCY_CLAIMS "replayed_here",
        "Claims that a recorded outcome was in the local cache for.";
    in_flight = IDEMPOTENCY_CLAIMS "in_flight", "Claims that found somebody at work.";
    mismatched = IDEMPOTENCY_CLAIMS "mismatched", "Claims on a key that belongs to other work.";
    unknown = IDEMPOTENCY_CLAIMS "unknown", "Claims that found an outcome that nobody knows.";
    recorded = IDEMPOTENCY_ENDINGS "recorded", "Attempts whose outcome was recorded.";
    released = IDEMPOTENCY_ENDINGS "released", "Attempts that gave the key back.";
    left_unknown = IDEMPOTENCY_ENDINGS "unknown", "Attempts that left an unknown outcome.";
    lost = IDEMPOTENCY_ENDINGS "lost", "Attempts whose end was refused, because somebody else holds the key.";
    not_stored = IDEMPOTENCY_ENDINGS "not_stored", "Attempts whose end the store never heard of.";
    unguarded = IDEMPOTENCY_ENDINGS "unguarded", "Attempts without a record, because the store could not be reached.";
    renewed = IDEMPOTENCY_LEASES "renewed", "Leases that were renewed.";
    leases_lost = IDEMPOTENCY_LEASES "lost", "Leases that ended or were lost while the work was going on.";
    store_errors = IDEMPOTENCY_STORE_ERRORS, "Steps that the store gave no answer to.";
    record_bytes = IDEMPOTENCY_OUTCOME_SIZE, "Bytes of outcomes that were recorded.";
    running = IDEMPOTENCY_RUNNING, "Attempts that are going on.";
    waiting = IDEMPOTENCY_WAITING, "Callers that wait for somebody else's outcome.";
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
            metric: &telemetry::FLEET_DEGRADED,
            attribute: Pattern::Idempotency.as_str(),
            value: u64::from(self.silent.load(Relaxed) >= SILENT),
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

/// One more, until it is dropped.
pub(super) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    pub(super) fn new(number: &'a AtomicU64) -> Self {
        number.fetch_add(1, Relaxed);
        Self(number)
    }

    /// If there are fewer than `most`.
    pub(super) fn below(number: &'a AtomicU64, most: usize) -> Option<Self> {
        let more = |now: u64| (now < most as u64).then_some(now + 1);
        number.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Self(number))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
