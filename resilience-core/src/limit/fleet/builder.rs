//! The builder of a shared rate limit: what is wrong is said when it is built.

use std::{fmt, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    FleetRateLimit,
    lease_size::LeaseRules,
    limiter::Limiter,
    plan::{Plan, Plans, Source},
};
use crate::{
    clock::Clock,
    error::InvalidConfig,
    limit::{Quota, store::LimitStore},
};

/// Who decides about a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// The store decides about every call: a round trip each, and exact. The default.
    #[default]
    Exact,
    /// This instance takes tokens of the store in advance and pays calls out of them, without a round trip.
    ///
    /// Nothing is spent that was not taken from the bucket before, so a fleet never admits more than the burst and
    /// what was gained, counted from when the bucket was full. Counted from any moment, the tokens that are leased at
    /// that moment come on top, while the bucket gains on: at most what the fleet uses in a quarter of a lease time.
    /// It may admit less: of an instance that dies its leases are lost, and what others hold and do not use can be
    /// used by nobody else, for a lease time at most; together no more than the live instances times the largest
    /// lease. A refusal may be told a wait that is up to 10 ms longer than in exact mode, and may come while the
    /// bucket holds as little as comes in during that time.
    Leased(LeaseRules),
    /// This instance decides alone, each by the whole limit, and asks no store.
    Local,
}

/// What becomes of calls while the store cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreachable {
    /// They go on, without limit: the limit is a courtesy.
    Open,
    /// They are rejected ([`Reason::StoreUnreachable`](crate::Reason::StoreUnreachable)): the limit is a promise.
    Closed,
    /// This instance goes by its share: the limit divided by the instances that were live when the store last
    /// answered. The default.
    ///
    /// The shares of a fleet add up to the limit in rate; in burst too, unless there are more instances than tokens
    /// in it. They begin full: each outage is good for one more burst.
    #[default]
    LocalShare,
}

impl Unreachable {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::LocalShare => "local_share",
        }
    }
}

/// Settings of a [`FleetRateLimit`].
///
/// # Default
/// No limits, which is refused: give it at least one, or a source of plans. Otherwise: every decision is the store's,
/// which has 100 ms for it; a local share while it cannot be reached; up to 10,000 refusals remembered, for 10
/// seconds at most; a limit is near when a fifth is left of it.
#[must_use]
pub struct FleetRateLimitBuilder {
    name: Arc<str>,
    store: Arc<dyn LimitStore>,
    plan: Result<Plan, InvalidConfig>,
    plans: Option<Source>,
    mode: Mode,
    unreachable: Unreachable,
    budget: Duration,
    heartbeat: Duration,
    memory: (usize, Duration),
    queue: Option<(usize, Duration)>,
    near: f64,
    shadow: bool,
    instance: Option<Arc<str>>,
    clock: Option<Clock>,
}

impl FleetRateLimitBuilder {
    pub(super) fn new(name: Arc<str>, store: Arc<dyn LimitStore>) -> Self {
        Self {
            name,
            store,
            plan: Ok(Plan::new()),
            plans: None,
            mode: Mode::default(),
            unreachable: Unreachable::default(),
            budget: Duration::from_millis(100),
            heartbeat: Duration::from_secs(2),
            memory: (10_000, Duration::from_secs(10)),
            queue: None,
            near: 0.8,
            shadow: false,
            instance: None,
            clock: None,
        }
    }

    /// Adds a limit to the handle's own plan: see [`Plan::limit`]. A call has to pass all of them.
    pub fn limit(mut self, name: impl Into<Arc<str>>, quota: Quota) -> Self {
        self.plan = self.plan.and_then(|plan| plan.limit(name, quota));
        self
    }

    /// The handle's own plan, in place of the limits added so far: for subjects that no other plan is known for.
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = Ok(plan);
        self
    }

    /// Looks the plan of a subject up in `plans`, for every decision; who is not there has the handle's own.
    /// Takes the place of [`plan_of`](Self::plan_of).
    pub fn plans(mut self, plans: Plans) -> Self {
        self.plans = Some(Source::Table(plans));
        self
    }

    /// Asks `plan_of` for the plan of a subject, for every decision; `None` is the handle's own. It runs on the hot
    /// path: it should look something up (in a map behind a `watch` channel, say), not work something out. Takes the
    /// place of [`plans`](Self::plans).
    pub fn plan_of(
        mut self,
        plan_of: impl Fn(&str) -> Option<Plan> + Send + Sync + 'static,
    ) -> Self {
        self.plans = Some(Source::By(Box::new(plan_of)));
        self
    }

    /// Who decides about a call. Default: [`Mode::Exact`].
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// What becomes of calls while the store cannot be reached. Default: [`Unreachable::LocalShare`].
    ///
    /// A handle has one policy. Two routes that differ in it have a handle each, on the same name and store: they
    /// share the tokens.
    pub const fn unreachable(mut self, policy: Unreachable) -> Self {
        self.unreachable = policy;
        self
    }

    /// How long the store may take over an answer: a call waits no longer for it, and goes on by the
    /// [policy](Self::unreachable). Default: 100 ms.
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// How often this instance tells the store that it is there. One that was not heard of for three times as long is
    /// not counted. Default: 2 seconds.
    pub const fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = interval;
        self
    }

    /// Remembers up to `subjects` that the store has refused: until the wait that was told is over, but for
    /// `longest` at most, calls that cost as much are refused without asking. A subject that is given tokens
    /// elsewhere meanwhile (a refund, a reset by another instance) may be refused for so long all the same. Zero
    /// subjects: nothing is remembered. Default: 10,000, for 10 seconds.
    pub const fn remember_refusals(mut self, subjects: usize, longest: Duration) -> Self {
        self.memory = (subjects, longest);
        self
    }

    /// Lets up to `length` calls of a subject wait for their tokens, in order of arrival and for at most `max_wait`:
    /// [`FleetRateLimit::acquire`] and the [layer](FleetRateLimit::layer) then do. Calls of one instance do not
    /// overtake each other; between instances, whoever asks first after the tokens are there has them. The default is
    /// not to let calls wait.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// A limit is near when more than this share of it is used: the metric `resilience.rate_limit.near` counts calls
    /// that were admitted and left a limit so. Default: 0.8.
    pub const fn near(mut self, share: f64) -> Self {
        self.near = share;
        self
    }

    /// Begins in shadow mode: decides and counts as ever, and admits everything. Default: no. See
    /// [`FleetRateLimit::set_shadow`].
    pub const fn shadow(mut self, shadow: bool) -> Self {
        self.shadow = shadow;
        self
    }

    /// What this instance calls itself before the random part of its name, for people who look at the store.
    pub fn instance(mut self, name: impl Into<Arc<str>>) -> Self {
        self.instance = Some(name.into());
        self
    }

    /// The clock that waits are measured by. The default is [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the handle, and starts the task that speaks for this instance. Asks the store nothing yet.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule. Outside of a tokio runtime.
    pub fn build(self) -> Result<FleetRateLimit, InvalidConfig> {
        let plan = self.plan?;
        if plan.is_unlimited() && self.plans.is_none() {
            let rule = "must be one at least, unless plans come from elsewhere";
            return Err(InvalidConfig::new("limit", plan, rule));
        }
        at_least("budget", self.budget, Duration::from_millis(1))?;
        at_least("heartbeat", self.heartbeat, Duration::from_millis(10))?;
        if !(0.0..=1.0).contains(&self.near) {
            return Err(InvalidConfig::new(
                "near",
                self.near,
                "must be between 0 and 1",
            ));
        }
        if let Some((length, max_wait)) = self.queue {
            if !(1..1 << 20).contains(&length) {
                let rule = "its length must be between 1 and 1,048,575; leave `queue` out for none";
                return Err(InvalidConfig::new("queue", length, rule));
            }
            if max_wait.is_zero() {
                let rule = "its maximum wait must be above zero";
                return Err(InvalidConfig::new("queue", max_wait, rule));
            }
        }
        if let Mode::Leased(rules) = &self.mode {
            rules.check()?;
        }
        let Ok(runtime) = Handle::try_current() else {
            let rule = "must be built within a tokio runtime";
            return Err(InvalidConfig::new("store", self.store, rule));
        };
        let settings = Settings {
            name: self.name,
            plan,
            plans: self.plans,
            mode: self.mode,
            runtime,
            unreachable: self.unreachable,
            budget: self.budget,
            heartbeat: self.heartbeat,
            memory: self.memory,
            queue: self.queue,
            left_when_near: ((1.0 - self.near) * 1e6) as u64,
            shadow: self.shadow,
            instance: instance_id(self.instance.as_deref()),
            clock: self.clock.unwrap_or_default(),
        };
        Ok(FleetRateLimit::start(Limiter::new(settings, self.store)))
    }
}

fn at_least(field: &'static str, value: Duration, least: Duration) -> Result<(), InvalidConfig> {
    if value < least {
        let rule = match field {
            "budget" => "must be at least 1 millisecond",
            _ => "must be at least 10 milliseconds",
        };
        return Err(InvalidConfig::new(field, value, rule));
    }
    Ok(())
}

/// A name that no other start of a process has.
fn instance_id(name: Option<&str>) -> Arc<str> {
    let random = fastrand::u64(..);
    match name {
        Some(name) => format!("{name}-{random:016x}").into(),
        None => format!("{random:016x}").into(),
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

/// Settings that are valid.
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) plan: Plan,
    pub(super) plans: Option<Source>,
    pub(super) mode: Mode,
    /// Calls may come from outside of it.
    pub(super) runtime: Handle,
    pub(super) unreachable: Unreachable,
    pub(super) budget: Duration,
    pub(super) heartbeat: Duration,
    pub(super) memory: (usize, Duration),
    /// How many calls of a subject may wait, and for how long.
    pub(super) queue: Option<(usize, Duration)>,
    /// In millionths of the capacity.
    pub(super) left_when_near: u64,
    pub(super) shadow: bool,
    pub(super) instance: Arc<str>,
    pub(super) clock: Clock,
}
