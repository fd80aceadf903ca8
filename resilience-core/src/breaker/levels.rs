//! Gauges over one breaker or a family.

use super::snapshot::{BreakerSnapshot, State};
use crate::telemetry::{BREAKER_OVERRIDE, BREAKER_PROBES, BREAKER_STATE, Reading};

/// Breakers by state and by override, and their probes in progress.
#[derive(Default)]
pub(super) struct Levels {
    states: [u64; State::ALL.len()],
    overrides: [u64; OVERRIDES.len()],
    probes: u64,
}

const OVERRIDES: [&str; 4] = ["force_open", "force_closed", "disable", "metrics_only"];

impl Levels {
    pub(super) fn add(&mut self, breaker: &BreakerSnapshot) {
        self.states[breaker.state as usize] += 1;
        let active_override = breaker
            .active_override
            .as_ref()
            .map(|active_override| active_override.kind);
        if let Some(active_override) = OVERRIDES
            .iter()
            .position(|kind| Some(*kind) == active_override)
        {
            self.overrides[active_override] += 1;
        }
        self.probes += breaker.probes.map_or(0, |probes| probes.out.into());
    }

    pub(super) fn read(&self, out: &mut dyn FnMut(Reading)) {
        let states = State::ALL.iter().map(|state| state.as_str());
        let states = states.zip(self.states);
        let states = states.map(|(state, count)| (&BREAKER_STATE, state, count));
        let overrides = OVERRIDES.iter().zip(self.overrides);
        let overrides =
            overrides.map(|(active_override, count)| (&BREAKER_OVERRIDE, *active_override, count));
        let probes = [(&BREAKER_PROBES, "", self.probes)];
        for (metric, attribute, value) in states.chain(overrides).chain(probes) {
            out(Reading {
                metric,
                attribute,
                value,
            });
        }
    }
}
