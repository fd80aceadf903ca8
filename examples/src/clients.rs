//! The two clients.
//!
//! Both have the same patience: no call takes longer than [`PATIENCE`], body included.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::Url;
use resilience_core::{
    Error as CallError,
    breaker::{CircuitBreaker, Events, HalfOpen, OpenFor, Window},
    bulkhead::Bulkhead,
    keyed::Keyed,
    retry::{Backoff, Retry, RetryBudget},
};
use resilience_http::{
    Client,
    client::{Host, reqwest_builder},
};
use tokio::{sync::watch, time::Instant};
use tower::{BoxError, util::MapErrLayer};

use crate::{
    script::Phase,
    stats::{Failure, Outcome, PerPhase},
};

/// How long a caller waits for one call at most, whichever client it uses. The storm is life in a hurry: its phases
/// last seconds where an incident lasts minutes, and so patience and the breaker's intervals are short as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// What the load generator needs of a client.
pub(crate) trait Caller: Clone + Send + 'static {
    /// Makes call `number` and reads the answer to its end.
    fn call(&self, number: u64) -> impl Future<Output = Outcome> + Send;
}

/// What there is to see of a client from outside.
pub(crate) trait Gauges: Send {
    /// How it is set up, in words.
    fn settings(&self) -> String;
    /// Attempts after the first of a call, so far.
    fn retries(&self) -> u64;
    /// The state of its breaker, in words, if it has one.
    fn breaker(&self) -> Option<String> {
        None
    }
    /// What has happened to its breaker since `epoch`, oldest first.
    fn news(&self, _epoch: Instant) -> Vec<String> {
        Vec::new()
    }
}

/// Where calls go.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A built-in upstream: every call has a path of its own.
    Orders(SocketAddr),
    /// The user's address, as it is.
    Url(Url),
}

impl Target {
    fn url(&self, number: u64) -> String {
        match self {
            Self::Orders(address) => format!("http://{address}/orders/{number}"),
            Self::Url(url) => url.to_string(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orders(address) => write!(f, "http://{address}/orders/"),
            Self::Url(url) => {
                // What is shown ends up in logs.
                let mut url = url.clone();
                if url.password().is_some() {
                    let _ = url.set_password(Some("***"));
                }
                url.fmt(f)
            }
        }
    }
}

/// Counts the connections that an upstream refused, by phase: while nothing listens, this is the only trace of the
/// requests that it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Refusals {
    phase: watch::Receiver<Phase>,
    count: Arc<PerPhase>,
}

impl Refusals {
    pub(crate) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self {
            phase,
            count: Arc::default(),
        }
    }

    /// The count so far.
    pub(crate) const fn count(&self) -> &Arc<PerPhase> {
        &self.count
    }

    /// A reqwest client whose failed connections are counted here. Nothing else about it is changed.
    fn counted(&self, builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        let this = self.clone();
        builder.connector_layer(MapErrLayer::new(move |error: BoxError| {
            this.count.add(*this.phase.borrow());
            error
        }))
    }
}

/// reqwest as most people use it: one shared client, one timeout for the whole call. On request, a loop around the
/// call that tries again at once, as many people write it.
#[derive(Clone)]
pub(crate) struct Plain {
    http: reqwest::Client,
    target: Target,
    retries: u32,
    retried: Arc<AtomicU64>,
}

impl Plain {
    pub(crate) fn new(target: Target, retries: u32, refusals: &Refusals) -> reqwest::Result<Self> {
        let builder = reqwest::Client::builder().timeout(PATIENCE);
        let http = refusals.counted(builder).build()?;
        Ok(Self {
            http,
            target,
            retries,
            retried: Arc::default(),
        })
    }

    async fn once(&self, number: u64) -> Outcome {
        let answer = async {
            let response = self.http.get(self.target.url(number)).send().await?;
            let status = response.status();
            response.bytes().await?;
            Ok(status)
        };
        outcome(answer.await)
    }
}

impl Caller for Plain {
    async fn call(&self, number: u64) -> Outcome {
        let mut outcome = self.once(number).await;
        for _ in 0..self.retries {
            if outcome == Outcome::Ok {
                break;
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            outcome = self.once(number).await;
        }
        outcome
    }
}

impl Gauges for Plain {
    fn settings(&self) -> String {
        let retries = match self.retries {
            0 => "no retries".to_owned(),
            many => format!("up to {many} retries, at once, each with the whole timeout"),
        };
        format!("reqwest, timeout {} s, {retries}", PATIENCE.as_secs())
    }

    fn retries(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.settings())
    }
}

/// What an answer of reqwest means to the statistics.
fn outcome(answer: reqwest::Result<reqwest::StatusCode>) -> Outcome {
    match answer {
        Ok(status) if status.is_success() || status.is_redirection() => Outcome::Ok,
        Ok(status) => Outcome::Failed(Failure::Status(status.as_u16())),
        Err(error) => Outcome::Failed(failure(&error)),
    }
}

fn failure(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        Failure::Timeout
    } else if error.is_connect() {
        Failure::Connect
    } else {
        Failure::Broken
    }
}

/// The settings of the guarded client in the storm: one place, for the code and for what is printed of it.
mod guard {
    use std::time::Duration;

    pub(super) const ATTEMPTS: u32 = 3;
    pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(700);
    pub(super) const BACKOFF: [Duration; 2] =
        [Duration::from_millis(25), Duration::from_millis(250)];
    pub(super) const BUDGET: f64 = 0.2;
    pub(super) const BUDGET_FLOOR: u32 = 10;
    pub(super) const IN_FLIGHT: usize = 20;
    pub(super) const QUEUE: usize = 20;
    pub(super) const QUEUE_WAIT: Duration = Duration::from_millis(100);
    pub(super) const WINDOW: Duration = Duration::from_secs(2);
    pub(super) const IN_A_ROW: u32 = 15;
    pub(super) const OPEN: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(500)];
    pub(super) const PROBES: u32 = 3;

    /// In words.
    pub(super) fn settings() -> String {
        let ms = |duration: Duration| duration.as_millis();
        format!(
            "resilience_http::Client; deadline {} ms, {} ms per attempt; {ATTEMPTS} attempts, waits from {} to {} ms, \
             a budget of {:.0} % and {BUDGET_FLOOR} a second; {IN_FLIGHT} calls in flight, {QUEUE} waiting up to {} \
             ms; breaker at 50 % failures of at least 20 calls in {} s or {IN_A_ROW} in a row, open for {} to {} ms, \
             {PROBES} probes",
            ms(super::PATIENCE),
            ms(ATTEMPT_TIMEOUT),
            ms(BACKOFF[0]),
            ms(BACKOFF[1]),
            BUDGET * 100.0,
            ms(QUEUE_WAIT),
            WINDOW.as_secs(),
            ms(OPEN[0]),
            ms(OPEN[1]),
        )
    }
}

/// `resilience_http::Client` with its own order of layers: deadline, retry, bulkhead, breaker, attempt timeout.
#[derive(Clone)]
pub(crate) struct Guarded {
    client: Client,
    target: Target,
    host: Host,
    settings: String,
    news: News,
}

impl Guarded {
    /// For the storm: everything as short as the storm is. `refusals` counts failed connections, as for the plain
    /// client.
    pub(crate) fn in_a_hurry(
        target: Target,
        seed: u64,
        refusals: &Refusals,
    ) -> Result<Self, Box<dyn Error>> {
        let [shortest, longest] = guard::BACKOFF;
        let budget = RetryBudget::builder()
            .fraction(guard::BUDGET)
            .floor_per_second(guard::BUDGET_FLOOR);
        let retry = Retry::builder(NAME)
            .max_attempts(guard::ATTEMPTS)
            .backoff(Backoff::decorrelated_jitter(shortest, longest).seed(seed))
            .budget(budget.build()?);
        let bulkheads = Bulkhead::builder(NAME)
            .max_concurrent(guard::IN_FLIGHT)
            .queue(guard::QUEUE, guard::QUEUE_WAIT);
        let breakers = CircuitBreaker::builder(NAME)
            .window(Window::time(guard::WINDOW))
            .consecutive_failures(guard::IN_A_ROW)
            .open_for(OpenFor::exponential(guard::OPEN[0], guard::OPEN[1]))
            .half_open(HalfOpen::probes(guard::PROBES))
            .seed(seed);
        let client = Client::builder(NAME)
            .http(refusals.counted(reqwest_builder()))
            .deadline(PATIENCE)
            .retry(retry.build()?)
            .bulkhead(bulkheads.keyed(Keyed::new())?)
            .breaker(breakers.keyed(Keyed::new())?)
            .attempt_timeout(guard::ATTEMPT_TIMEOUT)
            .build()?;
        Self::over(client, target, guard::settings())
    }

    /// For the user's address: as the toolkit comes.
    pub(crate) fn as_it_comes(target: Target) -> Result<Self, Box<dyn Error>> {
        let settings = "resilience_http::Client with its defaults".to_owned();
        Self::over(Client::new(NAME)?, target, settings)
    }

    fn over(client: Client, target: Target, settings: String) -> Result<Self, Box<dyn Error>> {
        let news = News::default();
        if let Some(breakers) = client.breakers() {
            tokio::spawn(take_down(breakers.events(), Arc::clone(&news)));
        }
        let host = Host::of(&Url::parse(&target.url(0))?);
        Ok(Self {
            client,
            target,
            host,
            settings,
            news,
        })
    }
}

/// The name in rejections and events.
const NAME: &str = "upstream";

impl Caller for Guarded {
    async fn call(&self, number: u64) -> Outcome {
        let response = match self.client.get(self.target.url(number)).send().await {
            Ok(response) => response,
            Err(CallError::Rejected(rejected)) => return Outcome::from(&rejected),
            Err(CallError::Service(error)) => return Outcome::Failed(failure(&error)),
        };
        let status = response.status();
        outcome(response.bytes().await.map(|_| status))
    }
}

impl Gauges for Guarded {
    fn settings(&self) -> String {
        self.settings.clone()
    }

    fn retries(&self) -> u64 {
        self.client.retry().map_or(0, Retry::retries)
    }

    fn breaker(&self) -> Option<String> {
        let breakers = self.client.breakers()?;
        Some(
            breakers
                .get(&self.host)
                .state()
                .to_string()
                .replace('_', "-"),
        )
    }

    fn news(&self, epoch: Instant) -> Vec<String> {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(at, text): &(Instant, String)| {
            format!(
                "{:>5.1} s  {text}",
                at.saturating_duration_since(epoch).as_secs_f64()
            )
        };
        news.iter().map(told).collect()
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.settings())
    }
}

/// What has happened to the breaker, and when.
type News = Arc<Mutex<Vec<(Instant, String)>>>;

/// Takes down the breaker's events until it is gone.
async fn take_down(mut events: Events, news: News) {
    while let Some(event) = events.next().await {
        let text = match event {
            Ok(event) => format!(
                "breaker: {} -> {} ({})",
                event.from,
                event.to,
                event.cause.as_str()
            ),
            Err(missed) => missed.to_string(),
        };
        let mut news = news.lock().unwrap_or_else(PoisonError::into_inner);
        news.push((Instant::now(), text.replace('_', " ")));
    }
}
