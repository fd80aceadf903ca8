//! The model: slow, plain and obviously right.

use super::*;

/// A share as a fraction of whole numbers.
pub(super) type Share = (u64, u64);

#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    Millis(u64),
    Calls(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) length: Length,
    pub(super) minimum: u64,
    pub(super) failure: Option<Share>,
    pub(super) slow: Option<Share>,
    pub(super) streak: Option<u32>,
    pub(super) open: (u64, u64),
    pub(super) reset_after: u64,
    pub(super) honour: Option<u64>,
    pub(super) probes: u32,
    pub(super) probe_rate: Share,
    pub(super) max_wait: Option<u64>,
    pub(super) stages: Vec<Share>,
    pub(super) stage: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Wait(u64),
    Admit {
        dice: u32,
    },
    /// Ends one of the calls that are out.
    End {
        which: usize,
        how: How,
    },
    /// Admits a call and ends it at once: what most calls do.
    Call {
        dice: u32,
        how: How,
    },
    Override {
        kind: u8,
        expires: Option<u64>,
    },
    Clear,
    Reset,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Ignored,
    Counts {
        failed: bool,
        slow: bool,
        asked: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ForceOpen,
    ForceClosed,
    Disabled,
    MetricsOnly,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Closed,
    Open { until: u64 },
    HalfOpen,
    RampUp { stage: usize, until: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) generation: u64,
    pub(super) tick: u64,
    pub(super) failed: bool,
    pub(super) slow: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) generation: u64,
    pub(super) judged: Option<(bool, bool)>,
}

pub(super) struct Model<'a> {
    pub(super) setup: &'a Setup,
    /// Which bucket a moment lies in: the one thing taken from the real window.
    pub(super) tick: &'a dyn Fn(u64) -> u64,
    pub(super) now: u64,
    pub(super) phase: Phase,
    pub(super) generation: u64,
    pub(super) active_override: Option<(Kind, Option<u64>)>,
    pub(super) calls: Vec<Done>,
    pub(super) probes: Vec<Probe>,
    /// When the first probe went out since there was none.
    pub(super) probing_since: Option<u64>,
    pub(super) trips: u32,
    pub(super) closed_at: u64,
}

/// What the model remembers of a call that is out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) generation: u64,
    pub(super) judged: bool,
    pub(super) probe: bool,
}

impl Model<'_> {
    pub(super) fn advance(&mut self) {
        while self.step() {}
    }

    pub(super) fn step(&mut self) -> bool {
        if let Some((_, Some(until))) = self.active_override
            && until <= self.now
        {
            self.active_override = None;
            self.enter(self.phase);
            return true;
        }
        if !matches!(self.active_override, None | Some((Kind::MetricsOnly, _))) {
            return false;
        }
        match self.phase {
            Phase::Open { until } if until <= self.now => self.enter(Phase::HalfOpen),
            Phase::HalfOpen if self.wait_ends().is_some_and(|end| end <= self.now) => {
                let all = self.live_probes();
                let failed = all
                    .iter()
                    .filter(|p| p.judged.is_none_or(|(failed, _)| failed))
                    .count();
                let slow = all
                    .iter()
                    .filter(|p| p.judged.is_none_or(|(_, slow)| slow))
                    .count();
                if self.bad_probes(failed, slow, all.len()) {
                    self.trip(None);
                } else {
                    self.enter_stage(0);
                }
            }
            Phase::RampUp { stage, until } if until <= self.now => self.enter_stage(stage + 1),
            _ => return false,
        }
        true
    }

    pub(super) fn live_probes(&self) -> Vec<Probe> {
        self.probes
            .iter()
            .filter(|p| p.generation == self.generation)
            .copied()
            .collect()
    }

    pub(super) fn wait_ends(&self) -> Option<u64> {
        Some(self.probing_since? + self.setup.max_wait?)
    }

    pub(super) fn bad_probes(&self, failed: usize, slow: usize, of: usize) -> bool {
        at_least(self.setup.probe_rate, failed, of)
            || self.setup.slow.is_some_and(|rate| at_least(rate, slow, of))
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        if phase == Phase::Closed && self.phase != Phase::Closed {
            self.closed_at = self.now;
        }
        self.phase = phase;
        self.generation += 1;
        self.probing_since = None;
    }

    pub(super) fn enter_stage(&mut self, stage: usize) {
        if stage < self.setup.stages.len() {
            let until = self.now + self.setup.stage;
            self.enter(Phase::RampUp { stage, until });
        } else {
            self.enter(Phase::Closed);
        }
    }

    pub(super) fn trip(&mut self, asked: Option<u64>) {
        if self.phase == Phase::Closed && self.now - self.closed_at >= self.setup.reset_after {
            self.trips = 0;
        }
        let (first, cap) = self.setup.open;
        let mut interval = first;
        for _ in 0..self.trips {
            interval = (interval * 2).min(cap);
        }
        if let (Some(max), Some(asked)) = (self.setup.honour, asked) {
            interval = interval.max(asked.min(max));
        }
        self.trips += 1;
        self.enter(Phase::Open {
            until: self.now + interval,
        });
    }

    pub(super) fn admit(&mut self, dice: u32) -> Result<Ticket, Reason> {
        self.advance();
        let ticket = |judged, probe| Ticket {
            generation: self.generation,
            judged,
            probe,
        };
        let decision = match (self.active_override.map(|(kind, _)| kind), self.phase) {
            (Some(Kind::ForceOpen), _) => return Err(Reason::ForcedOpen),
            (Some(Kind::Disabled), _) => return Ok(ticket(false, false)),
            (Some(Kind::ForceClosed), _) | (_, Phase::Closed) => Ok(ticket(true, false)),
            (_, Phase::Open { .. }) => Err(Reason::Open),
            (_, Phase::RampUp { stage, .. }) => {
                let (part, whole) = self.setup.stages[stage];
                let admitted = u128::from(dice) * u128::from(whole) < u128::from(part) << 32;
                if admitted {
                    Ok(ticket(true, false))
                } else {
                    Err(Reason::RampingUp)
                }
            }
            (_, Phase::HalfOpen) => {
                let free = self.live_probes().len() < self.setup.probes as usize;
                if free {
                    Ok(ticket(true, true))
                } else {
                    Err(Reason::NoProbeLeft)
                }
            }
        };
        match decision {
            Ok(ticket) => {
                if ticket.probe {
                    self.probing_since.get_or_insert(self.now);
                    self.probes.push(Probe {
                        generation: self.generation,
                        judged: None,
                    });
                }
                Ok(ticket)
            }
            Err(_) if matches!(self.active_override, Some((Kind::MetricsOnly, _))) => {
                Ok(ticket(false, false))
            }
            refused => refused,
        }
    }

    pub(super) fn end(&mut self, ticket: Ticket, how: How) {
        if !ticket.judged || ticket.generation != self.generation {
            return;
        }
        if ticket.probe {
            // The wait for probes may be over without a call that noticed.
            self.advance();
            if ticket.generation == self.generation {
                self.end_probe(how);
            }
            return;
        }
        let How::Counts {
            failed,
            slow,
            asked,
        } = how
        else {
            return;
        };
        let tick = (self.tick)(self.now);
        self.calls.push(Done {
            generation: self.generation,
            tick,
            failed,
            slow,
        });
        if self
            .active_override
            .is_some_and(|(kind, _)| kind == Kind::ForceClosed)
        {
            return;
        }
        if self.must_trip() {
            self.trip(asked);
        }
    }

    pub(super) fn end_probe(&mut self, how: How) {
        let generation = self.generation;
        let mine = |p: &Probe| p.generation == generation && p.judged.is_none();
        let at = self
            .probes
            .iter()
            .position(mine)
            .expect("a probe that is out");
        let How::Counts {
            failed,
            slow,
            asked,
        } = how
        else {
            self.probes.remove(at);
            if self.live_probes().is_empty() {
                self.probing_since = None;
            }
            return;
        };
        self.probes[at].judged = Some((failed, slow));
        let judged: Vec<_> = self.live_probes().iter().filter_map(|p| p.judged).collect();
        let unknown = self.setup.probes as usize - judged.len();
        let failed = judged.iter().filter(|(failed, _)| *failed).count();
        let slow = judged.iter().filter(|(_, slow)| *slow).count();
        let all = self.setup.probes as usize;
        if self.bad_probes(failed, slow, all) {
            self.trip(asked);
        } else if !self.bad_probes(failed + unknown, slow + unknown, all) {
            self.enter_stage(0);
        }
    }

    pub(super) fn window(&self) -> Vec<Done> {
        let tick = (self.tick)(self.now);
        let mine = self
            .calls
            .iter()
            .filter(|call| call.generation == self.generation);
        match self.setup.length {
            Length::Millis(_) => mine.filter(|call| call.tick + 10 > tick).copied().collect(),
            Length::Calls(n) => {
                let all: Vec<_> = mine.copied().collect();
                all[all.len().saturating_sub(n)..].to_vec()
            }
        }
    }

    pub(super) fn counts(&self) -> (usize, usize, usize) {
        if self.phase == Phase::HalfOpen {
            let judged: Vec<_> = self.live_probes().iter().filter_map(|p| p.judged).collect();
            let failed = judged.iter().filter(|(failed, _)| *failed).count();
            return (
                judged.len(),
                failed,
                judged.iter().filter(|(_, slow)| *slow).count(),
            );
        }
        let window = self.window();
        let failed = window.iter().filter(|call| call.failed).count();
        (
            window.len(),
            failed,
            window.iter().filter(|call| call.slow).count(),
        )
    }

    pub(super) fn must_trip(&self) -> bool {
        let mine = self
            .calls
            .iter()
            .rev()
            .take_while(|call| call.generation == self.generation);
        let row = mine.take_while(|call| call.failed).count();
        if self.setup.streak.is_some_and(|most| row >= most as usize) {
            return true;
        }
        let (calls, failed, slow) = self.counts();
        calls as u64 >= self.setup.minimum
            && (self
                .setup
                .failure
                .is_some_and(|rate| at_least(rate, failed, calls))
                || self
                    .setup
                    .slow
                    .is_some_and(|rate| at_least(rate, slow, calls)))
    }

    pub(super) fn state(&self) -> State {
        match (self.active_override.map(|(kind, _)| kind), self.phase) {
            (Some(Kind::ForceOpen), _) => State::ForcedOpen,
            (Some(Kind::ForceClosed), _) => State::ForcedClosed,
            (Some(Kind::Disabled), _) => State::Disabled,
            (_, Phase::Closed) => State::Closed,
            (_, Phase::Open { .. }) => State::Open,
            (_, Phase::HalfOpen) => State::HalfOpen,
            (_, Phase::RampUp { .. }) => State::RampingUp,
        }
    }

    pub(super) fn set_override(&mut self, kind: Kind, expires: Option<u64>) {
        self.advance();
        self.active_override = Some((kind, expires.map(|time| self.now + time)));
        let phase = if kind == Kind::ForceClosed {
            Phase::Closed
        } else {
            self.phase
        };
        self.enter(phase);
    }
}

pub(super) fn at_least((part, whole): Share, some: usize, all: usize) -> bool {
    all > 0 && some as u64 * whole >= all as u64 * part
}

impl Model<'_> {
    /// Whether there is a reason to refuse a call now, lots aside.
    pub(super) fn phase_rejects(&mut self) -> bool {
        self.advance();
        match (self.active_override.map(|(kind, _)| kind), self.phase) {
            (Some(Kind::ForceOpen), _) => true,
            (None, Phase::Open { .. }) => true,
            (None, Phase::HalfOpen) => self.live_probes().len() >= self.setup.probes as usize,
            _ => false,
        }
    }
}
