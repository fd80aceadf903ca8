//! The parts of a breaker's configuration: window, open interval, half-open, ramp-up, dropped calls.

use std::time::Duration;

use super::{
    rules::{HalfOpenRules, OpenRules, RampUpRules, Rate, WindowRules},
    window::MAX_CALLS,
};
use crate::error::InvalidConfig;

/// Which calls the rates are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Window(pub(super) WindowRules);

impl Window {
    /// The calls of the last `length`, between 10 milliseconds and 24 hours. It slides in tenths of its length, and
    /// costs the same whatever the number of calls. Recording a call touches only memory of the thread's own.
    pub const fn time(length: Duration) -> Self {
        Self(WindowRules::Time(length))
    }

    /// The last `calls` calls, exactly; at most 1,000,000, and four bytes of memory each. All threads share its
    /// head: under heavy load on many cores the time window is the cheaper one.
    pub const fn count(calls: usize) -> Self {
        Self(WindowRules::Count(calls))
    }

    pub(super) fn check(self) -> Result<WindowRules, InvalidConfig> {
        let shortest = Duration::from_millis(10);
        let longest = Duration::from_secs(24 * 3600);
        match self.0 {
            WindowRules::Time(length) if length < shortest || length > longest => {
                Err(InvalidConfig::new(
                    "window",
                    length,
                    "must be between 10 milliseconds and 24 hours",
                ))
            }
            WindowRules::Count(calls) if calls == 0 || calls > MAX_CALLS => Err(
                InvalidConfig::new("window", calls, "must hold between 1 and 1,000,000 calls"),
            ),
            good => Ok(good),
        }
    }
}

/// How long a breaker stays open.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct OpenFor {
    first: Duration,
    cap: Duration,
    jitter: f64,
    reset_after: Option<Duration>,
    retry_after: Option<Duration>,
}

impl OpenFor {
    /// `first` at the first trip, doubled with each further trip of a series up to `cap`. A series ends when the
    /// breaker has stayed closed for a while ([`reset_after`](Self::reset_after)). Jitter is 0.1.
    pub const fn exponential(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            jitter: 0.1,
            reset_after: None,
            retry_after: None,
        }
    }

    /// Always the same time, without jitter.
    pub const fn fixed(time: Duration) -> Self {
        Self::exponential(time, time).jitter(0.0)
    }

    /// Shortens each interval at random by up to this share of it (0 to 1), so that a fleet that tripped together
    /// does not probe together.
    pub const fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// How long the breaker must have stayed closed for the next trip to start over with the first interval.
    /// Default: the cap.
    pub const fn reset_after(mut self, time: Duration) -> Self {
        self.reset_after = Some(time);
        self
    }

    /// Stays open for longer, up to `max`, if the failure that trips the breaker asked for it
    /// ([`Verdict::Transient`](crate::Verdict::Transient)'s `retry_after`). Never for less long. Default: not heeded.
    /// Of a shared breaker, the whole fleet then stays away for as long: the dependency's own word needs no quorum.
    pub const fn honour_retry_after(mut self, max: Duration) -> Self {
        self.retry_after = Some(max);
        self
    }

    pub(super) fn check(self) -> Result<OpenRules, InvalidConfig> {
        if self.first < Duration::from_millis(1) {
            let rule = "must be at least 1 millisecond";
            return Err(InvalidConfig::new("open_for", self.first, rule));
        }
        if self.cap < self.first {
            let rule = "the cap must not be below the first interval";
            return Err(InvalidConfig::new("open_for", self.cap, rule));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(InvalidConfig::new(
                "jitter",
                self.jitter,
                "must be between 0 and 1",
            ));
        }
        Ok(OpenRules {
            first: self.first,
            cap: self.cap,
            jitter: self.jitter,
            reset_after: self.reset_after.unwrap_or(self.cap),
            retry_after: self.retry_after,
        })
    }
}

/// How a breaker that was open finds out whether the dependency is back: a few calls are let through as probes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct HalfOpen {
    probes: u32,
    failure_rate: Option<f64>,
    max_wait: Option<Duration>,
}

impl HalfOpen {
    /// This many calls are let through, no more, and judged by their rate of failures (and of slow calls, where the
    /// breaker watches them) as soon as the outstanding ones cannot change the verdict. An ignored result gives its
    /// probe to another call.
    pub const fn probes(probes: u32) -> Self {
        Self {
            probes,
            failure_rate: None,
            max_wait: Some(Duration::from_secs(30)),
        }
    }

    /// The breaker opens again when this share of the probes has failed. Default: the breaker's own failure rate,
    /// or 0.5 if it has none.
    pub const fn failure_rate(mut self, rate: f64) -> Self {
        self.failure_rate = Some(rate);
        self
    }

    /// How long after the first probe the verdict falls at the latest: probes that are still out then count as
    /// failures, probes never sent do not count. Once all probes have come back with results that are ignored, the next
    /// one counts as the first. Default: 30 seconds.
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = Some(wait);
        self
    }

    /// Waits for the probes for as long as they take. One call that hangs forever then keeps the breaker half-open
    /// forever: set this only where every call has a timeout.
    pub const fn no_max_wait(mut self) -> Self {
        self.max_wait = None;
        self
    }

    pub(super) fn check(
        self,
        failure: Option<Rate>,
        slow: Option<Rate>,
    ) -> Result<HalfOpenRules, InvalidConfig> {
        if self.probes == 0 {
            return Err(InvalidConfig::new(
                "half_open",
                0,
                "must have at least 1 probe",
            ));
        }
        if self
            .max_wait
            .is_some_and(|wait| wait < Duration::from_millis(1))
        {
            let rule = "must be at least 1 millisecond";
            return Err(InvalidConfig::new("max_wait", self.max_wait, rule));
        }
        let own = self
            .failure_rate
            .map(|rate| Rate::new("half_open", rate))
            .transpose()?;
        Ok(HalfOpenRules {
            probes: self.probes,
            failure: own.or(failure).unwrap_or(Rate::HALF),
            slow,
            max_wait: self.max_wait,
        })
    }
}

/// How the load comes back after good probes: each stage lets a share of the calls through for a while.
///
/// Each stage is judged by the breaker's own thresholds over its own calls; a stage that fails opens the breaker
/// again, and the open intervals go on growing. A stage ends at the first look at the breaker (a call, a snapshot)
/// after its time.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct RampUp {
    shares: Vec<f64>,
    stage: Duration,
    minimum_calls: Option<u32>,
}

impl RampUp {
    /// One stage for each of `shares` (above 0, at most 1), of length `stage` each.
    pub fn stages(shares: impl IntoIterator<Item = f64>, stage: Duration) -> Self {
        Self {
            shares: shares.into_iter().collect(),
            stage,
            minimum_calls: None,
        }
    }

    /// How many calls a stage must hold before a rate can fail it. Default: the breaker's minimum.
    pub const fn minimum_calls(mut self, calls: u32) -> Self {
        self.minimum_calls = Some(calls);
        self
    }

    pub(super) fn check(self, minimum: u32) -> Result<RampUpRules, InvalidConfig> {
        if self.shares.is_empty() || self.shares.len() > 100 {
            let rule = "must have between 1 and 100 stages";
            return Err(InvalidConfig::new("ramp_up", self.shares.len(), rule));
        }
        if let Some(share) = self
            .shares
            .iter()
            .find(|&&share| !(share > 0.0 && share <= 1.0))
        {
            return Err(InvalidConfig::new(
                "ramp_up",
                share,
                "a share must be above 0, at most 1",
            ));
        }
        if self.stage < Duration::from_millis(1) {
            let rule = "a stage must last at least 1 millisecond";
            return Err(InvalidConfig::new("ramp_up", self.stage, rule));
        }
        if self.minimum_calls == Some(0) {
            return Err(InvalidConfig::new(
                "ramp_up",
                0,
                "minimum_calls must be at least 1",
            ));
        }
        let whole = (1u64 << 32) as f64;
        Ok(RampUpRules {
            shares: self
                .shares
                .iter()
                .map(|share| ((share * whole) as u64).max(1))
                .collect(),
            stage: self.stage,
            minimum: self.minimum_calls.unwrap_or(minimum).into(),
        })
    }
}

/// What a call says that was dropped before it ended: its caller timed out, lost interest, or went away.
///
/// Whatever is set here, a call dropped after the current [deadline](crate::deadline) has passed, or by a panic,
/// counts as a failure; and what the call held (its probe) is given back.
///
/// The age is measured from when the response was first waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dropped {
    /// Nothing.
    Ignored,
    /// A slow success, if it was at least this old; younger, nothing. Needs [`CircuitBreakerBuilder::slow_calls`](super::CircuitBreakerBuilder::slow_calls).
    SlowAfter(Duration),
    /// A failure, if it was at least this old; younger, nothing.
    FailedAfter(Duration),
}

impl Dropped {
    pub(super) fn check(self, slow: Option<Duration>) -> Result<Self, InvalidConfig> {
        match self {
            Self::SlowAfter(_) if slow.is_none() => Err(InvalidConfig::new(
                "dropped",
                self,
                "slow_calls must be set for a dropped call to count as slow",
            )),
            good => Ok(good),
        }
    }
}
