//! The builder of a fleet rate limit.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    FleetRateLimit,
    limiter::Limiter,
    plan::{Plan, Plans, Source},
    settings::{DEFAULTS, Mode, Settings},
};
use crate::{
    admission::QueueSettings,
    clock::Clock,
    error::InvalidConfig,
    fleet::{FleetOptions, IntoStore, required, runtime},
    limit::{Quota, store::LimitStore},
};

/// Builder of a [`FleetRateLimit`].
///
/// # Default
/// No store and no limits, which is an error: a store and at least one limit, or a source of plans, are required. Otherwise: every decision is the
/// store's, within a budget of 100 ms; a heartbeat every 2 seconds; this instance's share while the store is
/// unavailable; up to 10,000 denials cached, for at most 10 seconds; a limit is near when a fifth of it is left.
#[must_use]
pub struct FleetRateLimitBuilder {
    name: Arc<str>,
    store: Option<Arc<dyn LimitStore>>,
    plan: Result<Plan, InvalidConfig>,
    plans: Option<Source>,
    mode: Mode,
    fleet: FleetOptions,
    denials: (usize, Duration),
    queue: Option<(usize, Duration)>,
    near: f64,
    shadow: bool,
    clock: Option<Clock>,
}

impl FleetRateLimitBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            store: None,
            plan: Ok(Plan::new()),
            plans: None,
            mode: Mode::default(),
            fleet: FleetOptions::new(),
            denials: (10_000, Duration::from_secs(10)),
            queue: None,
            near: 0.8,
            shadow: false,
            clock: None,
        }
    }

    /// Sets the store of the tokens. Handles of one name and store share them, in whatever process. Required.
    pub fn store(mut self, store: impl IntoStore<dyn LimitStore>) -> Self {
        self.store = Some(store.into_store());
        self
    }

    /// Adds a limit to the handle's own plan: see [`Plan::limit`]. A call has to pass all of them.
    pub fn limit(mut self, name: impl Into<Arc<str>>, quota: Quota) -> Self {
        self.plan = self.plan.and_then(|plan| plan.limit(name, quota));
        self
    }

    /// Sets the handle's own plan, in place of the limits added so far: for subjects without another plan.
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = Ok(plan);
        self
    }

    /// Looks the plan of a subject up in `plans`, for every decision; a subject that is not in it has the handle's own.
    /// Replaces [`plan_of`](Self::plan_of).
    pub fn plans(mut self, plans: Plans) -> Self {
        self.plans = Some(Source::Table(plans));
        self
    }

    /// Calls `plan_of` for the plan of a subject, for every decision; `None` is the handle's own. It runs on the hot
    /// path: it should look something up (in a map behind a `watch` channel, say), not compute something. Replaces
    /// [`plans`](Self::plans).
    pub fn plan_of(
        mut self,
        plan_of: impl Fn(&str) -> Option<Plan> + Send + Sync + 'static,
    ) -> Self {
        self.plans = Some(Source::By(Box::new(plan_of)));
        self
    }

    /// Sets where calls are decided. Default: [`Mode::Exact`].
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets how this instance takes part in the fleet. Defaults: a budget of 100 ms, a heartbeat every 2 seconds,
    /// [`OnOutage::Local`](crate::fleet::OnOutage::Local). See [the module](super#when-the-store-is-unavailable) for
    /// what the policies mean.
    ///
    /// A handle has one policy. Two routes that differ in it have a handle each, on the same name and store: they
    /// share the tokens.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Caches denials of up to `subjects` subjects: until the wait that came with one is over, but for at most
    /// `longest`, calls that cost at least as much are rejected without a round trip. A subject that is given tokens
    /// elsewhere meanwhile (a refund, a reset by another instance) may be rejected for that long all the same. Zero
    /// subjects: no cache. Default: 10,000, for 10 seconds.
    pub const fn remember_refusals(mut self, subjects: usize, longest: Duration) -> Self {
        self.denials = (subjects, longest);
        self
    }

    /// Lets up to `length` calls of a subject wait for their tokens, in order of arrival and for at most `max_wait`:
    /// [`FleetRateLimit::acquire`] and the [layer](FleetRateLimit::layer) then do. Calls of one instance do not
    /// overtake each other; between instances, the first to ask after the tokens are there gets them. Default: calls
    /// do not wait.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// Sets the used share from which on a limit is near: the metric `resilience.rate_limit.near` counts calls that
    /// were admitted and left a limit near. Between 0 and 1. Default: 0.8.
    pub const fn near(mut self, share: f64) -> Self {
        self.near = share;
        self
    }

    /// Starts in shadow mode: decides and counts as usual, and admits everything. Default: no. See
    /// [`FleetRateLimit::set_shadow`].
    pub const fn shadow(mut self, shadow: bool) -> Self {
        self.shadow = shadow;
        self
    }

    /// Sets the clock that waits are measured by. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the handle, and starts its background task. Makes no round trip itself.
    ///
    /// # Errors
    /// When a value is out of bounds: names it and the rule. Without a store, and outside of a tokio runtime.
    pub fn build(self) -> Result<FleetRateLimit, InvalidConfig> {
        let plan = self.plan?;
        if plan.is_unlimited() && self.plans.is_none() {
            let rule = "must be at least one, unless plans come from elsewhere";
            return Err(InvalidConfig::new("limit", plan, rule));
        }
        let fleet = self.fleet.resolve(&DEFAULTS)?;
        if !(0.0..=1.0).contains(&self.near) {
            return Err(InvalidConfig::new(
                "near",
                self.near,
                "must be between 0 and 1",
            ));
        }
        let queue = QueueSettings::check(self.queue)?;
        if let Mode::Leased(rules) = &self.mode {
            rules.check()?;
        }
        let store = required(self.store)?;
        let runtime = runtime()?;
        let settings = Settings {
            name: self.name,
            plan,
            plans: self.plans,
            mode: self.mode,
            runtime,
            fleet,
            denials: self.denials,
            queue,
            left_when_near: ((1.0 - self.near) * 1e6) as u64,
            shadow: self.shadow,
            clock: self.clock.unwrap_or_default(),
        };
        let handle = store.handle().cloned().unwrap_or_default();
        let limiter = Limiter::new(settings, store, handle.clone());
        Ok(FleetRateLimit::start(limiter, &handle))
    }
}

impl fmt::Debug for FleetRateLimitBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetRateLimitBuilder")
            .field("name", &self.name)
            .field("store", &self.store)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}
