//! The script: which phase follows which, how long each lasts, and what the upstream does in it.
//!
//! Pure data and arithmetic; [`upstream`](crate::upstream) acts it out, the statistics are cut along it.

use std::{ops::RangeInclusive, time::Duration};

/// How the upstream behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Quick and right.
    Healthy,
    /// Every answer takes thirty times as long: the upstream can serve three fifths of what it is sent.
    Slow,
    /// Quick, but a part of the answers is a 503.
    Failing,
    /// Takes requests, answers none.
    Hanging,
    /// The listening socket is closed and every connection is reset.
    Down,
    /// Healthy again, freshly started: whatever was queued before `Down` is gone.
    Back,
}

impl Phase {
    /// All phases, in the order of the script.
    pub(crate) const ALL: [Self; 6] = [
        Self::Healthy,
        Self::Slow,
        Self::Failing,
        Self::Hanging,
        Self::Down,
        Self::Back,
    ];

    /// The name, as the table and the JSON have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Failing => "failing",
            Self::Hanging => "hanging",
            Self::Down => "down",
            Self::Back => "back",
        }
    }

    /// What the upstream does, in words.
    pub(crate) const fn story(self) -> &'static str {
        match self {
            Self::Healthy => "answers in 8 to 16 ms",
            Self::Slow => "takes 300 to 400 ms for an answer",
            Self::Failing => "answers 503 to 30 % of the requests",
            Self::Hanging => "takes requests and answers none",
            Self::Down => "is gone: connections are reset, then refused",
            Self::Back => "is restarted, answers in 8 to 16 ms",
        }
    }

    /// How long one request keeps a worker of the upstream busy, in milliseconds; `None`: until the phase ends.
    pub(crate) const fn service_ms(self) -> Option<RangeInclusive<u64>> {
        match self {
            Self::Healthy | Self::Failing | Self::Back => Some(8..=16),
            Self::Slow => Some(300..=400),
            Self::Hanging | Self::Down => None,
        }
    }

    /// The share of the answers that are a 503.
    pub(crate) const fn failing(self) -> f64 {
        match self {
            Self::Failing => 0.3,
            _ => 0.0,
        }
    }

    /// The share of the script that this phase takes, in parts of [`PARTS`].
    const fn parts(self) -> u32 {
        match self {
            Self::Healthy => 4,
            Self::Slow => 9,
            Self::Failing | Self::Hanging | Self::Down => 6,
            Self::Back => 7,
        }
    }
}

/// How many requests an upstream works on at a time that is to bear `rate` calls a second: enough by far for a healthy
/// one, and for three fifths of the calls when each of them takes 350 ms.
pub(crate) fn workers(rate: u32) -> usize {
    let per_mille = 350 * 3 / 5;
    usize::try_from((rate * per_mille).div_ceil(1000)).unwrap_or(usize::MAX)
}

/// The sum of all [`Phase::parts`].
const PARTS: u32 = 38;

/// The phases with their times, for one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    total: Duration,
}

impl Script {
    /// The six phases in `total`; the shares stay the same.
    pub(crate) const fn lasting(total: Duration) -> Self {
        Self { total }
    }

    /// How long the script takes.
    pub(crate) const fn total(self) -> Duration {
        self.total
    }

    /// When `phase` starts.
    pub(crate) fn start(self, phase: Phase) -> Duration {
        let before: u32 = Phase::ALL
            .iter()
            .take_while(|&&other| other != phase)
            .map(|other| other.parts())
            .sum();
        self.total * before / PARTS
    }

    /// How long `phase` lasts.
    pub(crate) fn length(self, phase: Phase) -> Duration {
        self.total * phase.parts() / PARTS
    }

    /// The phase at `offset` from the start; the last one from then on.
    pub(crate) fn at(self, offset: Duration) -> Phase {
        Phase::ALL
            .into_iter()
            .rev()
            .find(|&phase| self.start(phase) <= offset)
            .unwrap_or(Phase::Healthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_phases_fill_the_script_without_gap_or_overlap() {
        let script = Script::lasting(19 * SECOND);
        let mut end = Duration::ZERO;
        for phase in Phase::ALL {
            assert_eq!(script.start(phase), end, "{phase:?}");
            end += script.length(phase);
        }
        assert_eq!(end, script.total());
    }

    #[test]
    fn a_slow_upstream_can_serve_three_fifths_of_any_load() {
        for rate in [10, 36, 150, 300] {
            let served = workers(rate) as f64 / 0.35;
            let share = served / f64::from(rate);
            assert!((0.59..0.89).contains(&share), "{rate}: {share}");
        }
        assert_eq!(workers(1), 1);
    }

    #[test]
    fn the_phase_of_a_moment_is_the_one_that_has_started_last() {
        let script = Script::lasting(38 * SECOND);
        assert_eq!(script.at(Duration::ZERO), Phase::Healthy);
        assert_eq!(
            script.at(4 * SECOND - Duration::from_nanos(1)),
            Phase::Healthy
        );
        assert_eq!(script.at(4 * SECOND), Phase::Slow);
        assert_eq!(script.at(31 * SECOND), Phase::Back);
        assert_eq!(script.at(99 * SECOND), Phase::Back);
    }
}
