//! Half-open: a few probes, counted one by one, never by a window of time.

use super::rules::HalfOpenRules;
use crate::clock::Moment;

/// The probes of one half-open generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProbeRound {
    pub(super) out: u32,
    pub(super) judged: u32,
    pub(super) failed: u32,
    pub(super) slow: u32,
    /// When the first probe went out since there was none, out or judged. Which of several is given back cannot be told
    /// apart, so the others do not get a longer wait: with one that hangs, calls that come and go would put off its end
    /// forever.
    since: Option<Moment>,
}

impl ProbeRound {
    /// Sends one more probe, if there is one left.
    pub(super) fn send(&mut self, rules: &HalfOpenRules, now: Moment) -> bool {
        let left = self.has_probe_left(rules);
        if left {
            self.out += 1;
            self.since.get_or_insert(now);
        }
        left
    }

    pub(super) const fn has_probe_left(&self, rules: &HalfOpenRules) -> bool {
        // Cannot overflow: the sum never goes above the number of probes.
        self.out + self.judged < rules.probes
    }

    /// The probe said nothing: another call may be sent in its place.
    pub(super) const fn give_back(&mut self) {
        self.out -= 1;
        if self.out + self.judged == 0 {
            self.since = None;
        }
    }

    pub(super) fn judge(&mut self, failed: bool, slow: bool) {
        self.out -= 1;
        self.judged += 1;
        self.failed += u32::from(failed);
        self.slow += u32::from(slow);
    }

    /// Whether the dependency is back, as soon as the probes still to come cannot change it.
    pub(super) fn verdict(&self, rules: &HalfOpenRules) -> Option<bool> {
        let (all, unknown) = (rules.probes.into(), u64::from(rules.probes - self.judged));
        if rules.failed(self.failed.into(), self.slow.into(), all) {
            Some(false)
        } else if rules.failed(
            u64::from(self.failed) + unknown,
            u64::from(self.slow) + unknown,
            all,
        ) {
            None
        } else {
            Some(true)
        }
    }

    /// The moment at which the verdict falls at the latest.
    pub(super) fn ends(&self, rules: &HalfOpenRules) -> Option<Moment> {
        Some(self.since? + rules.max_wait?)
    }

    /// The verdict at the end of the wait: what is still out has failed, what was never sent does not count.
    pub(super) fn last_verdict(&self, rules: &HalfOpenRules) -> bool {
        let (out, sent) = (u64::from(self.out), u64::from(self.out + self.judged));
        !rules.failed(
            u64::from(self.failed) + out,
            u64::from(self.slow) + out,
            sent,
        )
    }
}

impl HalfOpenRules {
    fn failed(&self, failed: u64, slow: u64, of: u64) -> bool {
        self.failure.reached(failed, of) || self.slow.is_some_and(|rate| rate.reached(slow, of))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::breaker::rules::Rate;

    fn rules(probes: u32, rate: f64) -> HalfOpenRules {
        HalfOpenRules {
            probes,
            failure: Rate::new("test", rate).unwrap(),
            slow: None,
            max_wait: Some(Duration::from_secs(30)),
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn one_failed_probe_of_many_does_not_reopen() {
        let rules = rules(5, 0.5);
        let mut probe_round = ProbeRound::default();
        for failed in [true, false, false] {
            assert_eq!(probe_round.verdict(&rules), None);
            assert!(probe_round.send(&rules, at(0)));
            probe_round.judge(failed, false);
        }
        assert!(probe_round.send(&rules, at(0)));
        probe_round.judge(false, false);
        assert_eq!(
            probe_round.verdict(&rules),
            Some(true),
            "the last one cannot change it"
        );
    }

    #[test]
    fn the_verdict_falls_as_soon_as_the_rest_cannot_change_it() {
        for probes in 1..12 {
            for tenths in 1..=10u32 {
                let rules = rules(probes, f64::from(tenths) / 10.0);
                // Every order of results, as bits.
                for bits in 0u32..1 << probes {
                    let mut probe_round = ProbeRound::default();
                    let early = (0..probes).find_map(|probe| {
                        assert!(probe_round.send(&rules, at(0)));
                        probe_round.judge(bits >> probe & 1 == 1, false);
                        probe_round.verdict(&rules)
                    });
                    let all = u64::from(bits.count_ones()) * 10 >= u64::from(tenths * probes);
                    assert_eq!(early, Some(!all), "{bits:b} of {probes} at {tenths}/10");
                }
            }
        }
    }

    #[test]
    fn probes_given_back_stop_the_clock_when_nothing_is_known() {
        let rules = rules(2, 0.5);
        let mut probe_round = ProbeRound::default();
        assert_eq!(probe_round.ends(&rules), None, "nothing was ever sent");
        probe_round.send(&rules, at(5));
        assert_eq!(probe_round.ends(&rules), Some(at(35)));
        probe_round.give_back();
        assert_eq!(probe_round.ends(&rules), None);
        probe_round.send(&rules, at(40));
        probe_round.send(&rules, at(45));
        probe_round.give_back();
        assert_eq!(
            probe_round.ends(&rules),
            Some(at(70)),
            "one is out: the clock runs from the first"
        );
        probe_round.give_back();
        probe_round.send(&rules, at(50));
        probe_round.judge(false, false);
        probe_round.send(&rules, at(60));
        probe_round.give_back();
        assert_eq!(
            probe_round.ends(&rules),
            Some(at(80)),
            "one is known: the clock runs from the first"
        );
        assert!(probe_round.last_verdict(&rules));
    }
}
