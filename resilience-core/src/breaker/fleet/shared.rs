//! Between the fleet and the machine of one breaker.

use std::{sync::Arc, time::Duration};

use super::{
    agent,
    local::LocalPhase,
    member::{AgentReceiver, FleetMember},
    policy::Policy,
    record::{BreakerView, Counts, FleetOverride, FleetState, OverrideKind},
    rules::{FleetConfig, FleetRules},
};
use crate::{
    breaker::{
        events::Cause,
        overrides::Override,
        rules::{Rules, WindowRules},
        shared::Shared,
        snapshot::State,
    },
    clock::Clock,
    fleet::millis,
};

/// Length of the fleet's window for breakers with a count window, which has no length.
const WINDOW: Duration = Duration::from_secs(10);

/// This instance's side of the fleet.
pub(in crate::breaker) fn enter(
    fleet: FleetConfig,
    rules: &Rules,
    name: Arc<str>,
    clock: Clock,
) -> (Arc<FleetMember>, AgentReceiver) {
    let policy = policy(&fleet.rules, rules);
    FleetMember::new(fleet, policy, name, clock)
}

/// The breaker's own configuration, read for the fleet as a whole.
fn policy(fleet: &FleetRules, rules: &Rules) -> Policy {
    let ppm = |rate: crate::breaker::rules::Rate| u64::from(rate.millionths());
    let ramp_up = rules.ramp_up.as_ref();
    Policy {
        failure_ppm: rules.failure.map(ppm),
        slow_ppm: rules.slow.map(ppm),
        minimum_calls: rules.minimum,
        min_instances: fleet.min_instances.into(),
        quorum_ppm: (fleet.quorum * 1e6) as u64,
        probes: rules.half_open.probes,
        probe_failure_ppm: ppm(rules.half_open.failure),
        max_half_open: rules.half_open.max_wait.unwrap_or(Duration::MAX),
        stages: ramp_up.map_or(0, |ramp_up| {
            u8::try_from(ramp_up.shares.len()).unwrap_or(u8::MAX)
        }),
        stage: ramp_up.map_or(Duration::ZERO, |ramp_up| ramp_up.stage),
        stable_after: rules.open.reset_after,
    }
}

/// Starts the background task of a fleet breaker.
pub(in crate::breaker) fn spawn_agent(breaker: &Arc<Shared>, receiver: AgentReceiver) {
    if let Some(member) = breaker.member() {
        agent::start(breaker, member, receiver);
    }
}

impl Shared {
    /// All calls that were judged since the breaker was built.
    pub(super) fn fleet_counts(&self) -> Counts {
        let totals = self.machine().totals();
        Counts {
            success: totals.successes + totals.slow_successes,
            failure: totals.failures + totals.slow_failures,
            slow: totals.slow_successes + totals.slow_failures,
        }
    }

    /// Whether this instance by itself finds the dependency failing: it has opened alone, or the rates of its window are
    /// too high, whatever the number of calls.
    pub(super) fn finds_failing(&self) -> bool {
        match self.state() {
            State::Open | State::HalfOpen => true,
            _ => self.machine().finds_failing(self.clock().now()),
        }
    }

    pub(super) fn window_length(&self) -> Duration {
        match self.machine().rules.window {
            WindowRules::Time(length) => length,
            WindowRules::Count(_) => WINDOW,
        }
    }

    pub(super) fn open_interval(&self, trips: u32) -> Duration {
        self.machine().open_interval(trips)
    }

    /// Milliseconds that the fleet's verdict has left here.
    pub(super) fn fleet_time_left(&self) -> u64 {
        millis(self.machine().time_left(self.clock().now()))
    }

    /// The state of this breaker beside the fleet's verdict.
    pub(super) fn local_state(&self) -> LocalPhase {
        let state = self.machine().local_state(self.clock().now());
        self.announce();
        state
    }

    /// Returns to a known verdict that the breaker has left without evidence against it. An open time of
    /// its own is not shortened: it backs off from probes that failed.
    pub(super) fn follow(&self, view: &BreakerView, local: LocalPhase) {
        let left = Duration::from_millis(view.remaining_ms);
        match (view.state, local) {
            (FleetState::Open | FleetState::HalfOpen, LocalPhase::Open) => {
                let longer = left.max(self.machine().time_left(self.clock().now()));
                self.impose(FleetState::Open, longer, cause(view));
            }
            (state, _) => self.impose(state, left, cause(view)),
        }
    }

    /// Applies a new verdict of the fleet.
    pub(super) fn apply(&self, previous: &BreakerView, view: &BreakerView) {
        let same_override = same_override(
            previous.active_override.as_ref(),
            view.active_override.as_ref(),
        );
        if !same_override {
            match &view.active_override {
                Some(active_override) => self.set_override(local(active_override)),
                None => {
                    self.clear_override("lifted for the fleet".into());
                }
            }
        }
        let entered_again = view.age_ms < previous.age_ms;
        let left = Duration::from_millis(view.remaining_ms);
        if view.state == FleetState::Closed && previous.state == FleetState::Closed {
            // It was entered again, or no override was set or cleared: the fleet was reset.
            if entered_again || (same_override && previous.epoch != 0) {
                self.reset(view.cause.as_str().into());
            }
            return;
        }
        self.impose(view.state, left, cause(view));
    }
}

fn cause(view: &BreakerView) -> Cause {
    Cause::Fleet {
        by: view.by.as_str().into(),
        why: view.cause.as_str().into(),
    }
}

/// Whether both are one override, apart from the time that is left.
fn same_override(one: Option<&FleetOverride>, other: Option<&FleetOverride>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            (one.kind, &one.reason, &one.by, one.expires_ms.is_some())
                == (
                    other.kind,
                    &other.reason,
                    &other.by,
                    other.expires_ms.is_some(),
                )
        }
        _ => false,
    }
}

fn local(active_override: &FleetOverride) -> Override {
    let reason = active_override.reason.as_str();
    let local = match active_override.kind {
        OverrideKind::ForceOpen => Override::force_open(reason),
        OverrideKind::ForceClosed => Override::force_closed(reason),
        OverrideKind::Disable => Override::disable(reason),
        OverrideKind::MetricsOnly => Override::metrics_only(reason),
    };
    let local = local.by(active_override.by.as_str());
    match active_override.expires_ms {
        Some(left) => local.expires_after(Duration::from_millis(left)),
        None => local,
    }
}
