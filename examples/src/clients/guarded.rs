//! One instance of the guarded client, and how it is set up.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::Url;
use resilience_core::{
    Bulkhead, CircuitBreaker, Error as CallError, FleetOptions, Keyed, Retry, RetryBudget,
    breaker::{
        Cause, CircuitBreakerBuilder, Event, Events, HalfOpen, OpenFor, State, Window,
        fleet::FleetRules,
    },
    retry::Backoff,
};
use resilience_http::{
    Client, IdempotencyKeys,
    client::{Host, reqwest_builder},
};
use tokio::time::Instant;

use super::{Caller, PATIENCE, Refusals, Target, failure, outcome};
use crate::{
    payments::Payer,
    script,
    stats::Outcome,
    timeline::{Diary, Timeline},
};

/// The name in rejections and events.
const NAME: &str = "upstream";

/// The settings of a guarded client in the storm: one place, for the code and for what is printed of it.
///
/// A breaker that is set up as it comes looks back 10 s, and its fleet reports every 2 s; the storm is five times as
/// fast as that.
mod guard {
    use std::time::Duration;

    pub(super) const ATTEMPTS: u32 = 3;
    pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(700);
    pub(super) const BACKOFF: [Duration; 2] =
        [Duration::from_millis(25), Duration::from_millis(250)];
    pub(super) const BUDGET: f64 = 0.2;
    pub(super) const BUDGET_FLOOR: u32 = 10;
    pub(super) const QUEUE_WAIT: Duration = Duration::from_millis(100);
    pub(super) const WINDOW: Duration = Duration::from_secs(2);
    pub(super) const MINIMUM: u32 = 20;
    pub(super) const IN_A_ROW: u32 = 15;
    pub(super) const OPEN: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(500)];
    pub(super) const PROBES: u32 = 3;
    pub(super) const CALM: Duration = Duration::from_millis(400);
    pub(super) const ALERT: Duration = Duration::from_millis(50);
    pub(super) const PROBE_LEASE: Duration = Duration::from_secs(2);
    pub(super) const QUORUM: (u32, f64) = (2, 0.1);
}

/// What one instance gets of what all instances together may take: an upstream bears the same load, however many
/// send it. What its breaker needs to know is not divided: an instance can only go by what it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    instances: usize,
    in_flight: usize,
    budget_floor: u32,
}

impl Share {
    /// Settings of one of `instances` instances, under `rate` calls a second in total.
    pub(super) fn of(instances: usize, rate: u32) -> Self {
        let all = script::workers(rate) * 3 / 2;
        let floor = usize::try_from(guard::BUDGET_FLOOR).unwrap_or(usize::MAX) / instances;
        Self {
            instances,
            in_flight: (all / instances).max(1),
            budget_floor: u32::try_from(floor).unwrap_or(u32::MAX).max(1),
        }
    }

    /// The settings, in words.
    pub(super) fn settings(self) -> String {
        let ms = |duration: Duration| duration.as_millis();
        let each = match self.instances {
            1 => "one resilience_http::Client".to_owned(),
            many => format!("{many} instances of resilience_http::Client, each with"),
        };
        format!(
            "{each}: deadline {} ms, {} ms per attempt; {} attempts, waits from {} to {} ms, a budget of {:.0} % and \
             {} a second; {} calls in flight, as many waiting up to {} ms; breaker at 50 % failures of at least {} \
             calls in {} s or {} in a row, open for {} to {} ms, {} probes; an idempotency key for each payment",
            ms(PATIENCE),
            ms(guard::ATTEMPT_TIMEOUT),
            guard::ATTEMPTS,
            ms(guard::BACKOFF[0]),
            ms(guard::BACKOFF[1]),
            guard::BUDGET * 100.0,
            self.budget_floor,
            self.in_flight,
            ms(guard::QUEUE_WAIT),
            guard::MINIMUM,
            guard::WINDOW.as_secs(),
            guard::IN_A_ROW,
            ms(guard::OPEN[0]),
            ms(guard::OPEN[1]),
            guard::PROBES,
        )
    }
}

/// How an instance takes part in its fleet.
pub(super) fn fleet_options() -> FleetOptions {
    FleetOptions::new().heartbeat(guard::CALM)
}

/// How the instances of a fleet share what they know.
pub(super) fn fleet_rules() -> FleetRules {
    FleetRules::new()
        .min_instances(guard::QUORUM.0)
        .quorum(guard::QUORUM.1)
        .alert(guard::ALERT)
        .probe_lease(guard::PROBE_LEASE)
}

/// The settings in words.
pub(super) fn fleet_settings() -> String {
    format!(
        "a report every {} ms, every {} ms while something fails; the fleet opens when the same rate holds for all \
         its calls and at least {} instances and {:.0} % of them find the upstream failing; {} probes for all, each \
         leased for {} s",
        guard::CALM.as_millis(),
        guard::ALERT.as_millis(),
        guard::QUORUM.0,
        guard::QUORUM.1 * 100.0,
        guard::PROBES,
        guard::PROBE_LEASE.as_secs(),
    )
}

/// `resilience_http::Client` with its own order of layers: deadline, retry, bulkhead, breaker, attempt timeout.
#[derive(Clone)]
pub(super) struct Guarded {
    client: Client,
    target: Target,
    host: Host,
    diary: Diary,
}

impl Guarded {
    /// For the storm: everything as short as the storm is. `refusals` counts failed connections, as for the plain
    /// client; `share` may change the breaker that an instance has for itself.
    pub(super) fn in_a_hurry(
        target: Target,
        seed: u64,
        share: Share,
        refusals: &Refusals,
        sharing: impl FnOnce(CircuitBreakerBuilder) -> CircuitBreakerBuilder,
        told: Told,
    ) -> Result<Self, Box<dyn Error>> {
        let [shortest, longest] = guard::BACKOFF;
        let budget = RetryBudget::builder()
            .fraction(guard::BUDGET)
            .floor_per_second(share.budget_floor);
        let retry = Retry::builder(NAME)
            .max_attempts(guard::ATTEMPTS)
            .backoff(Backoff::decorrelated_jitter(shortest, longest).seed(seed))
            .budget(budget.build()?);
        let bulkheads = Bulkhead::builder(NAME)
            .max_concurrent(share.in_flight)
            .queue(share.in_flight, guard::QUEUE_WAIT);
        let breakers = CircuitBreaker::builder(NAME)
            .window(Window::time(guard::WINDOW))
            .minimum_calls(guard::MINIMUM)
            .consecutive_failures(guard::IN_A_ROW)
            .open_for(OpenFor::exponential(guard::OPEN[0], guard::OPEN[1]))
            .half_open(HalfOpen::probes(guard::PROBES))
            .seed(seed);
        let client = Client::builder(NAME)
            .http(refusals.counted(reqwest_builder()))
            .deadline(PATIENCE)
            .retry(retry.build()?)
            .bulkhead(bulkheads.keyed(Keyed::new())?)
            .breaker(sharing(breakers).keyed(Keyed::new())?)
            .attempt_timeout(guard::ATTEMPT_TIMEOUT)
            .idempotency_keys(IdempotencyKeys::new())
            .build()?;
        Self::over(client, target, told)
    }

    /// For the user's address: as the toolkit comes.
    pub(super) fn as_it_comes(target: Target, news: News) -> Result<Self, Box<dyn Error>> {
        let told = Told {
            news,
            as_who: String::new(),
            probing_too: true,
        };
        Self::over(Client::new(NAME)?, target, told)
    }

    fn over(client: Client, target: Target, told: Told) -> Result<Self, Box<dyn Error>> {
        let diary = Diary::default();
        if let Some(breakers) = client.breakers() {
            tokio::spawn(take_down(breakers.events(), diary.clone(), told));
        }
        let host = Host::of(&Url::parse(&target.url(0))?);
        Ok(Self {
            client,
            target,
            host,
            diary,
        })
    }

    pub(super) fn retries(&self) -> u64 {
        self.client
            .retry()
            .map_or(0, |retry| retry.snapshot().retries)
    }

    pub(super) fn state(&self) -> Option<State> {
        self.breaker().map(|breaker| breaker.state())
    }

    pub(super) fn timeline(&self) -> Timeline {
        self.diary.read()
    }

    /// Whether it goes by its own window because its store gave no answer.
    pub(super) fn is_degraded(&self) -> bool {
        let breaker = self.breaker();
        breaker.is_some_and(|breaker| breaker.snapshot().degraded)
    }

    fn breaker(&self) -> Option<CircuitBreaker> {
        let breakers = self.client.breakers()?;
        Some(breakers.get(&self.host))
    }
}

impl Caller for Guarded {
    async fn call(&self, number: u64) -> Outcome {
        let call = self.client.get(self.target.url(number));
        read(call.send().await).await
    }
}

impl Payer for Guarded {
    async fn pay(&self, number: u64) -> Outcome {
        let call = self.client.post(self.target.payment_url(number));
        read(call.body(number.to_string()).send().await).await
    }
}

async fn read(answer: Result<reqwest::Response, CallError<reqwest::Error>>) -> Outcome {
    let response = match answer {
        Ok(response) => response,
        Err(CallError::Rejected(rejected)) => return Outcome::from(&rejected),
        Err(CallError::Service(error)) => return Outcome::Failed(failure(&error)),
    };
    let status = response.status();
    outcome(response.bytes().await.map(|_| status))
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// What has happened to the breakers of all clients, and when: told while the storm runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct News(Arc<Mutex<Vec<(Instant, String)>>>);

impl News {
    /// All of it in words, oldest first, as offsets from `epoch`.
    pub(crate) fn since(&self, epoch: Instant) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(at, text): &(Instant, String)| {
            let at = at.saturating_duration_since(epoch).as_secs_f64();
            format!("{at:>5.1} s  {text}")
        };
        all.iter().map(told).collect()
    }

    fn add(&self, at: Instant, text: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((at, text));
    }
}

/// Where and under what name an instance's news are told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) news: News,
    /// What to call the instance; empty where there is but one.
    pub(super) as_who: String,
    /// Also the ups and downs of an open breaker. Of several instances, they would be all that is to be read.
    pub(super) probing_too: bool,
}

impl Told {
    fn worth_telling(&self, event: &Event) -> bool {
        self.probing_too || event.from == State::Closed || event.to == State::Closed
    }

    fn tell(&self, at: Instant, text: &str) {
        let who = match self.as_who.as_str() {
            "" => "breaker",
            who => who,
        };
        self.news.add(at, format!("{who}: {text}"));
    }
}

/// Takes down the breaker's events until it is gone.
async fn take_down(mut events: Events, diary: Diary, told: Told) {
    while let Some(event) = events.next().await {
        let now = Instant::now();
        match event {
            Ok(event) => {
                diary.note(now, event.to);
                if told.worth_telling(&event) {
                    told.tell(now, &in_words(&event));
                }
            }
            Err(missed) => told.tell(now, &missed.to_string()),
        }
    }
}

fn in_words(event: &Event) -> String {
    let state = |state: State| state.as_str().replace('_', "-");
    let cause = match &event.cause {
        Cause::Fleet { why, .. } => format!("fleet: {why}"),
        cause => cause.as_str().replace('_', " "),
    };
    format!("{} -> {} ({cause})", state(event.from), state(event.to))
}

#[cfg(test)]
mod tests {
    use resilience_core::breaker::fleet::InProcessBreakers;

    use super::*;

    #[test]
    fn instances_divide_what_the_upstream_bears_and_none_goes_without() {
        let one = Share::of(1, 36);
        let third = Share::of(3, 36);
        assert_eq!(one.in_flight / 3, third.in_flight);
        assert_eq!(third.budget_floor, 3);
        let crowded = Share::of(20, 1);
        assert_eq!((crowded.in_flight, crowded.budget_floor), (1, 1));
        assert!(one.settings().contains("15 in a row"), "{}", one.settings());
        assert!(third.settings().starts_with("3 instances"));
    }

    #[tokio::test]
    async fn the_fleet_s_rules_are_ones_that_a_breaker_takes() {
        let breaker = CircuitBreaker::builder("test").store(InProcessBreakers::new());
        let breaker = breaker.fleet(fleet_options()).fleet_rules(fleet_rules());
        breaker.build().unwrap();
        assert!(fleet_settings().contains("every 50 ms while something fails"));
    }
}
