//! The state of the machine that changes rarely, and the record of one change.

use std::{collections::VecDeque, time::Duration};

use super::{
    counters::Counts,
    events::Cause,
    half_open::ProbeRound,
    overrides::{ActiveOverride, OverrideInfo},
    snapshot::State,
};
use crate::clock::Moment;

/// Behind the machine's lock.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) probe_round: ProbeRound,
    pub(super) stage: usize,
    /// Trips in the current series.
    pub(super) trips: u32,
    /// Since when the breaker has been closed, if it is.
    pub(super) closed_at: Moment,
    pub(super) active_override: Option<ActiveOverride>,
    /// Probes of this instance have passed, and nothing has contradicted them since.
    pub(super) recovered: bool,
    pub(super) random: fastrand::Rng,
    pub(super) news: VecDeque<Transition>,
    /// How often each state was entered.
    pub(super) entered: [u64; State::ALL.len()],
    pub(super) tripped: u64,
}

/// One change of state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transition {
    pub(super) generation: u64,
    pub(super) from: State,
    pub(super) to: State,
    pub(super) cause: Cause,
    pub(super) counts: Counts,
    pub(super) active_override: Option<OverrideInfo>,
    /// How long calls are rejected from now on, if it opened.
    pub(super) open_for: Option<Duration>,
    /// The pause that the dependency asked for, if that opened the breaker and is heeded.
    pub(super) asked: Option<Duration>,
}

impl Control {
    pub(super) fn new(seed: Option<u64>, now: Moment) -> Self {
        Self {
            probe_round: ProbeRound::default(),
            stage: 0,
            trips: 0,
            closed_at: now,
            active_override: None,
            recovered: false,
            random: seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            news: VecDeque::new(),
            entered: [0; State::ALL.len()],
            tripped: 0,
        }
    }
}
