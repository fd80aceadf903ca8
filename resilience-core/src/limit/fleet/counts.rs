//! Counters of the decisions: by limit and by reason, never by subject.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    decision::{DecidedBy, Decision},
    plan::Plan,
    snapshot::FleetRateLimitSnapshot,
};
use crate::{
    error::Reason,
    stripe::Counter,
    telemetry::{self, Metric, Reading},
};

pub(super) struct Counts {
    /// In the order of [`DecidedBy::ALL`].
    admitted: [Counter; DecidedBy::ALL.len()],
    limited: AtomicU64,
    too_costly: AtomicU64,
    unreachable: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) unanswered: AtomicU64,
    /// The limits of the handle's own plan, and last one entry for all others, whose names may come from requests.
    limits: Box<[OfLimit]>,
}

struct OfLimit {
    name: Arc<str>,
    exhausted: AtomicU64,
    shadowed: AtomicU64,
    near: AtomicU64,
}

impl OfLimit {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            exhausted: AtomicU64::new(0),
            shadowed: AtomicU64::new(0),
            near: AtomicU64::new(0),
        }
    }
}

impl Counts {
    pub(super) fn new(own: &Plan) -> Self {
        let names = own.as_slice().iter().map(|limit| Arc::clone(&limit.name));
        Self {
            admitted: std::array::from_fn(|_| Counter::new()),
            limited: AtomicU64::new(0),
            too_costly: AtomicU64::new(0),
            unreachable: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            limits: names.chain(["other".into()]).map(OfLimit::new).collect(),
        }
    }

    #[inline]
    pub(super) fn admitted(&self, by: DecidedBy) {
        self.admitted[by as usize].increment();
    }

    pub(super) fn near(&self, limit: &str) {
        self.of(limit).near.fetch_add(1, Relaxed);
    }

    #[cold]
    pub(super) fn refused(&self, decision: &Decision) {
        if let Some(position) = decision.binding_position() {
            let limit = self.of(&decision.plan.as_slice()[position].name);
            limit.exhausted.fetch_add(1, Relaxed);
            if decision.shadowed {
                limit.shadowed.fetch_add(1, Relaxed);
            }
        }
        if decision.shadowed {
            self.admitted(decision.by);
            return;
        }
        let counter = match decision.reason() {
            Some(Reason::TooCostly) => &self.too_costly,
            Some(Reason::StoreUnreachable) => &self.unreachable,
            _ => &self.limited,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn of(&self, limit: &str) -> &OfLimit {
        &self.limits[self.line(limit)]
    }

    /// The index of the limit's own entry, or of that for all others.
    pub(super) fn line(&self, limit: &str) -> usize {
        let last = self.limits.len() - 1;
        let mut own = self.limits[..last].iter();
        own.position(|own| *own.name == *limit).unwrap_or(last)
    }

    pub(super) fn lines(&self) -> usize {
        self.limits.len()
    }

    pub(super) fn name_of(&self, line: usize) -> &str {
        &self.limits[line].name
    }

    /// Adds the counts to `snapshot`.
    pub(super) fn snapshot(&self, snapshot: &mut FleetRateLimitSnapshot) {
        let shadowed = self.limits.iter().map(|limit| limit.shadowed.load(Relaxed));
        snapshot.admitted = self.admitted.iter().map(Counter::sum).sum();
        snapshot.rejected_limited = self.limited.load(Relaxed);
        snapshot.rejected_too_costly = self.too_costly.load(Relaxed);
        snapshot.rejected_store_unreachable = self.unreachable.load(Relaxed);
        snapshot.shadowed = shadowed.sum();
        snapshot.store_calls = self.answered.load(Relaxed) + self.unanswered.load(Relaxed);
    }

    pub(super) fn read(&self, out: &mut dyn FnMut(Reading)) {
        for by in DecidedBy::ALL {
            out(Reading {
                metric: &telemetry::LIMIT_ADMISSIONS,
                attribute: by.as_str(),
                value: self.admitted[*by as usize].sum(),
            });
        }
        for (metric, attribute, counter) in [
            (
                &telemetry::LIMIT_REJECTIONS,
                Reason::RateLimited.as_str(),
                &self.limited,
            ),
            (
                &telemetry::LIMIT_REJECTIONS,
                Reason::TooCostly.as_str(),
                &self.too_costly,
            ),
            (
                &telemetry::LIMIT_REJECTIONS,
                Reason::StoreUnreachable.as_str(),
                &self.unreachable,
            ),
            (&telemetry::LIMIT_STORE_CALLS, "answered", &self.answered),
            (
                &telemetry::LIMIT_STORE_CALLS,
                "unanswered",
                &self.unanswered,
            ),
        ] {
            out(Reading {
                metric,
                attribute,
                value: counter.load(Relaxed),
            });
        }
    }

    pub(super) fn read_named(&self, out: &mut dyn FnMut(&'static Metric, &str, u64)) {
        for limit in &self.limits {
            for (metric, counter) in [
                (&telemetry::LIMIT_EXHAUSTIONS, &limit.exhausted),
                (&telemetry::LIMIT_SHADOW_EXHAUSTIONS, &limit.shadowed),
                (&telemetry::LIMIT_NEAR, &limit.near),
            ] {
                out(metric, &limit.name, counter.load(Relaxed));
            }
        }
    }
}
