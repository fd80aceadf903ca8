//! What a breaker reports: its snapshot, its counters and its gauges.

use std::sync::Arc;

use super::{
    levels::Levels,
    shared::Shared,
    snapshot::{BreakerSnapshot, State},
    totals::BreakerTotals,
};
use crate::{
    error::Pattern,
    telemetry::{self, FLEET_DEGRADED, Reading},
};

impl Shared {
    pub(super) fn snapshot(&self) -> BreakerSnapshot {
        let view = self.machine.view(self.clock().now());
        self.announce();
        BreakerSnapshot {
            name: Arc::clone(&self.name),
            state: State::of(view.packed),
            generation: view.packed.generation(),
            counts: view.counts,
            open_for: view.open_for,
            trips: view.trips,
            probes: view.probes,
            stage: view.stage,
            active_override: view.active_override,
            degraded: self.member().is_some_and(|member| member.is_degraded()),
            totals: self.machine.totals(),
        }
    }

    pub(super) fn counted(&self) -> BreakerTotals {
        BreakerTotals {
            calls: self.machine.totals(),
            entered: self.machine.entered(),
        }
    }

    /// Adds the counts to those of the family, if this is the breaker of a key.
    pub(super) fn leave_family(&self) {
        if let Some(family) = &self.family {
            family.bequest.leave(|| self.counted());
        }
    }

    /// Whether the family counts this breaker among those that have left.
    pub(super) fn has_left_family(&self) -> bool {
        let family = self.family.as_ref();
        family.is_some_and(|family| family.bequest.is_left())
    }

    /// Reads the gauge of fleet breakers: 1 while the store is unavailable, else 0.
    pub(super) fn read_degraded(&self, out: &mut dyn FnMut(Reading)) {
        if let Some(member) = self.member() {
            out(Reading {
                metric: &FLEET_DEGRADED,
                attribute: Pattern::CircuitBreaker.as_str(),
                value: u64::from(member.is_degraded()),
            });
        }
    }
}

impl telemetry::Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::CircuitBreaker
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        let mut levels = Levels::default();
        levels.add(&self.snapshot());
        levels.read(out);
        self.read_degraded(out);
        self.counted().read(out);
    }

    fn read_last(&self, out: &mut dyn FnMut(Reading)) {
        self.counted().read(out);
    }
}
