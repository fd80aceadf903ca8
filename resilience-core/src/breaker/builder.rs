//! What a breaker can be told when it is built. Everything is checked in [`CircuitBreakerBuilder::build`], nothing at run time.

use std::{sync::Arc, time::Duration};

use super::{
    CircuitBreaker,
    fleet::{BreakerStore, DEFAULTS, FleetConfig, FleetRules},
    rules::{Rate, Rules, WindowRules},
    settings::{Dropped, HalfOpen, OpenFor, RampUp, Window},
};
use crate::{
    clock::Clock,
    error::InvalidConfig,
    fleet::{FleetOptions, IntoStore, runtime},
    stripe,
};

/// Builder of a [`CircuitBreaker`]. From [`CircuitBreaker::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct CircuitBreakerBuilder {
    name: Arc<str>,
    window: Window,
    minimum_calls: Option<u32>,
    failure_rate: Option<f64>,
    slow_calls: Option<(Duration, f64)>,
    consecutive_failures: Option<u32>,
    open_for: OpenFor,
    half_open: HalfOpen,
    ramp_up: Option<RampUp>,
    dropped: Dropped,
    clock: Option<Clock>,
    seed: Option<u64>,
    event_capacity: usize,
    store: Option<Arc<dyn BreakerStore>>,
    fleet: Option<FleetOptions>,
    fleet_rules: Option<FleetRules>,
}

impl CircuitBreakerBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            window: Window::time(Duration::from_secs(10)),
            minimum_calls: None,
            failure_rate: Some(0.5),
            slow_calls: None,
            consecutive_failures: None,
            open_for: OpenFor::exponential(Duration::from_secs(5), Duration::from_secs(60)),
            half_open: HalfOpen::probes(3),
            ramp_up: None,
            dropped: Dropped::FailedAfter(Duration::from_secs(1)),
            clock: None,
            seed: None,
            event_capacity: 256,
            store: None,
            fleet: None,
            fleet_rules: None,
        }
    }

    /// Shares the breaker with all instances that use the same store and name. See [`fleet`](super::fleet).
    ///
    /// Must then be built within a tokio runtime: a task speaks to the store. Of a keyed breaker, each key is shared
    /// by itself.
    pub fn store(mut self, store: impl IntoStore<dyn BreakerStore>) -> Self {
        self.store = Some(store.into_store());
        self
    }

    /// How this instance takes part in the fleet: its name, the time budget of a step of the store (default: 250
    /// milliseconds), the interval of its reports while all is well (the heartbeat; default: 2 seconds). The outage policy
    /// is [`OnOutage::Local`](crate::fleet::OnOutage::Local), and others are refused. Needs a [store](Self::store).
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = Some(options);
        self
    }

    /// When the fleet opens, and how fast it acts. Default: [`FleetRules::new`]. Needs a [store](Self::store).
    pub fn fleet_rules(mut self, rules: FleetRules) -> Self {
        self.fleet_rules = Some(rules);
        self
    }

    /// Which calls the rates are taken over. Default: those of the last 10 seconds.
    pub const fn window(mut self, window: Window) -> Self {
        self.window = window;
        self
    }

    /// How many calls the window must hold before a rate can trip the breaker; with a count window at most its
    /// length. Default: 20, or the length of a shorter count window.
    pub const fn minimum_calls(mut self, calls: u32) -> Self {
        self.minimum_calls = Some(calls);
        self
    }

    /// Trips when this share of the calls in the window has failed: above 0, at most 1. Default: 0.5.
    pub const fn failure_rate(mut self, rate: f64) -> Self {
        self.failure_rate = Some(rate);
        self
    }

    /// The share of failures does not matter; slow calls or consecutive failures must then be set.
    pub const fn no_failure_rate(mut self) -> Self {
        self.failure_rate = None;
        self
    }

    /// Trips when this share of the calls in the window took `threshold` or longer, failed or not. Default: off.
    ///
    /// It costs one more reading of the clock per call.
    pub const fn slow_calls(mut self, threshold: Duration, rate: f64) -> Self {
        self.slow_calls = Some((threshold, rate));
        self
    }

    /// Trips at this many failures in a row, whatever the rates and the minimum say. Default: off.
    pub const fn consecutive_failures(mut self, failures: u32) -> Self {
        self.consecutive_failures = Some(failures);
        self
    }

    /// How long the breaker stays open. Default: 5 seconds, doubled with each trip in a series up to 60 seconds,
    /// each shortened at random by up to a tenth.
    pub const fn open_for(mut self, open_for: OpenFor) -> Self {
        self.open_for = open_for;
        self
    }

    /// How the breaker finds out that the dependency is back. Default: 3 probes, judged after 30 seconds at the
    /// latest.
    pub const fn half_open(mut self, half_open: HalfOpen) -> Self {
        self.half_open = half_open;
        self
    }

    /// After good probes, lets the load come back in stages. Default: off, all at once.
    pub fn ramp_up(mut self, ramp_up: RampUp) -> Self {
        self.ramp_up = Some(ramp_up);
        self
    }

    /// What a call says that was dropped before it ended. Default: a failure, if it was dropped after 1 second or
    /// later.
    pub const fn dropped(mut self, dropped: Dropped) -> Self {
        self.dropped = dropped;
        self
    }

    /// Where the time is read. Default: [`Clock::auto`], when the breaker is built.
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Makes the jitter and the choices of a ramp-up repeatable, for tests. The choices then take a lock.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How many events a slow subscriber may fall behind before it misses some. Default: 256.
    pub const fn event_capacity(mut self, events: usize) -> Self {
        self.event_capacity = events;
        self
    }

    /// Checks all values and makes the breaker.
    ///
    /// # Errors
    ///
    /// Names the first value that cannot work, and the rule that it breaks.
    pub fn build(self) -> Result<CircuitBreaker, InvalidConfig> {
        self.check().map(CircuitBreaker::new)
    }

    pub(super) fn check(self) -> Result<Config, InvalidConfig> {
        if self.name.is_empty() {
            return Err(InvalidConfig::new("name", &*self.name, "must not be empty"));
        }
        let failure = self
            .failure_rate
            .map(|rate| Rate::new("failure_rate", rate))
            .transpose()?;
        let slow = self
            .slow_calls
            .map(|(_, rate)| Rate::new("slow_calls", rate))
            .transpose()?;
        let slow_after = self.slow_calls.map(|(threshold, _)| threshold);
        if slow_after.is_some_and(|after| after.is_zero()) {
            return Err(InvalidConfig::new(
                "slow_calls",
                slow_after,
                "the threshold must be above zero",
            ));
        }
        if self.consecutive_failures == Some(0) {
            return Err(InvalidConfig::new(
                "consecutive_failures",
                0,
                "must be at least 1",
            ));
        }
        if failure.is_none() && slow.is_none() && self.consecutive_failures.is_none() {
            return Err(InvalidConfig::new(
                "no_failure_rate",
                "set",
                "then slow_calls or consecutive_failures must be set",
            ));
        }
        if self.event_capacity == 0 || self.event_capacity > 1 << 20 {
            let rule = "must be between 1 and 1,048,576";
            return Err(InvalidConfig::new(
                "event_capacity",
                self.event_capacity,
                rule,
            ));
        }
        let minimum = self.checked_minimum()?;
        let fleet = self.checked_fleet()?;
        Ok(Config {
            rules: Rules {
                window: self.window.check()?,
                stripes: stripe::count(),
                failure,
                slow,
                streak: self.consecutive_failures,
                minimum: minimum.into(),
                open: self.open_for.check()?,
                half_open: self.half_open.check(failure, slow)?,
                ramp_up: self
                    .ramp_up
                    .map(|ramp_up| ramp_up.check(minimum))
                    .transpose()?,
            },
            dropped: self.dropped.check(slow_after)?,
            slow_after,
            clock: self.clock.unwrap_or_default(),
            seed: self.seed,
            event_capacity: self.event_capacity,
            name: self.name,
            fleet,
        })
    }

    fn checked_fleet(&self) -> Result<Option<FleetConfig>, InvalidConfig> {
        let Some(store) = &self.store else {
            let set = [
                ("fleet", self.fleet.is_some()),
                ("fleet_rules", self.fleet_rules.is_some()),
            ];
            return match set.into_iter().find(|(_, is_set)| *is_set) {
                Some((field, _)) => Err(InvalidConfig::new(field, "set", "needs a store")),
                None => Ok(None),
            };
        };
        let settings = self.fleet.clone().unwrap_or_default();
        let settings = settings.resolve(&DEFAULTS)?;
        let rules = self.fleet_rules.clone().unwrap_or_default();
        rules.check(settings.heartbeat)?;
        Ok(Some(FleetConfig {
            store: Arc::clone(store),
            rules,
            settings,
            runtime: runtime()?,
        }))
    }

    fn checked_minimum(&self) -> Result<u32, InvalidConfig> {
        let most = match self.window {
            Window(WindowRules::Count(calls)) => u32::try_from(calls).unwrap_or(u32::MAX),
            Window(WindowRules::Time(_)) => u32::MAX,
        };
        let minimum = self.minimum_calls.unwrap_or_else(|| most.min(20));
        match minimum {
            // A count window of zero is refused by its own name.
            0 if most > 0 => Err(InvalidConfig::new("minimum_calls", 0, "must be at least 1")),
            _ if minimum > most => Err(InvalidConfig::new(
                "minimum_calls",
                minimum,
                "must not be above the number of calls that the window holds",
            )),
            _ => Ok(minimum),
        }
    }
}

/// What [`CircuitBreakerBuilder::build`] has found good.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) name: Arc<str>,
    pub(super) rules: Rules,
    pub(super) slow_after: Option<Duration>,
    pub(super) dropped: Dropped,
    pub(super) clock: Clock,
    pub(super) seed: Option<u64>,
    pub(super) event_capacity: usize,
    pub(super) fleet: Option<FleetConfig>,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn base() -> CircuitBreakerBuilder {
        CircuitBreaker::builder("test")
    }

    fn field(builder: CircuitBreakerBuilder) -> &'static str {
        builder
            .build()
            .expect_err("a value that cannot work")
            .field()
    }

    #[test]
    fn a_minimum_that_the_window_can_never_hold_is_refused() {
        let small = base().window(Window::count(10));
        assert_eq!(field(small.clone().minimum_calls(11)), "minimum_calls");
        assert!(small.clone().minimum_calls(10).build().is_ok());
        assert!(small.build().is_ok(), "the default adapts");
    }

    #[test]
    fn every_value_that_cannot_work_is_refused_by_name() {
        for rate in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(field(base().failure_rate(rate)), "failure_rate");
            assert_eq!(field(base().slow_calls(SECOND, rate)), "slow_calls");
            assert_eq!(
                field(base().half_open(HalfOpen::probes(1).failure_rate(rate))),
                "half_open"
            );
            assert_eq!(
                field(base().ramp_up(RampUp::stages([0.5, rate], SECOND))),
                "ramp_up"
            );
        }
        for jitter in [-0.1, 1.1, f64::NAN] {
            let open_for = OpenFor::fixed(SECOND).jitter(jitter);
            assert_eq!(field(base().open_for(open_for)), "jitter");
        }
        assert_eq!(field(CircuitBreaker::builder("")), "name");
        assert_eq!(field(base().minimum_calls(0)), "minimum_calls");
        assert_eq!(field(base().slow_calls(Duration::ZERO, 0.5)), "slow_calls");
        assert_eq!(
            field(base().consecutive_failures(0)),
            "consecutive_failures"
        );
        assert_eq!(field(base().no_failure_rate()), "no_failure_rate");
        assert_eq!(field(base().window(Window::count(0))), "window");
        assert_eq!(field(base().window(Window::count(1_000_001))), "window");
        assert_eq!(
            field(base().window(Window::time(Duration::from_millis(9)))),
            "window"
        );
        assert_eq!(field(base().window(Window::time(Duration::MAX))), "window");
        assert_eq!(
            field(base().open_for(OpenFor::fixed(Duration::ZERO))),
            "open_for"
        );
        assert_eq!(
            field(base().open_for(OpenFor::exponential(2 * SECOND, SECOND))),
            "open_for"
        );
        assert_eq!(field(base().half_open(HalfOpen::probes(0))), "half_open");
        assert_eq!(
            field(base().half_open(HalfOpen::probes(1).max_wait(Duration::ZERO))),
            "max_wait"
        );
        assert_eq!(field(base().ramp_up(RampUp::stages([], SECOND))), "ramp_up");
        assert_eq!(
            field(base().ramp_up(RampUp::stages([0.5], Duration::ZERO))),
            "ramp_up"
        );
        assert_eq!(
            field(base().ramp_up(RampUp::stages([0.5], SECOND).minimum_calls(0))),
            "ramp_up"
        );
        assert_eq!(field(base().dropped(Dropped::SlowAfter(SECOND))), "dropped");
        assert_eq!(field(base().event_capacity(0)), "event_capacity");
        assert_eq!(field(base().event_capacity(usize::MAX)), "event_capacity");
    }

    #[test]
    fn the_widest_values_are_accepted() {
        let extreme = base()
            .window(Window::count(1_000_000))
            .minimum_calls(1_000_000)
            .failure_rate(1.0)
            .slow_calls(Duration::MAX, 1e-6)
            .consecutive_failures(u32::MAX)
            .open_for(OpenFor::exponential(Duration::MAX, Duration::MAX).jitter(1.0))
            .half_open(HalfOpen::probes(u32::MAX).max_wait(Duration::MAX))
            .ramp_up(RampUp::stages([1e-9, 1.0], Duration::MAX))
            .dropped(Dropped::SlowAfter(Duration::MAX));
        assert!(extreme.build().is_ok());
    }
}
