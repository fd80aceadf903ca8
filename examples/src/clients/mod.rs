//! The clients that are compared.
//!
//! All have the same patience: no call takes longer than [`PATIENCE`], body included.

mod guarded;
mod instances;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::Url;
use resilience_core::breaker::State;
use tokio::sync::watch;
use tower::{BoxError, util::MapErrLayer};

pub(crate) use self::{
    guarded::News,
    instances::{Instances, Plan, Sharing, fresh_prefix, instance_of},
};
use crate::{
    payments::Payer,
    script::Phase,
    stats::{Failure, Outcome, PerPhase},
    timeline::Timeline,
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
    /// The breakers' states, one for each instance; none without breakers.
    fn states(&self) -> Vec<State> {
        Vec::new()
    }
    /// What the breakers' states were so far, one for each instance; none without breakers.
    fn timelines(&self) -> Vec<Timeline> {
        Vec::new()
    }
    /// How it fares with its store, if its breakers are shared.
    fn store(&self) -> Option<StoreHealth> {
        None
    }
}

/// How shared breakers fared with their store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreHealth {
    /// Which store, in words.
    pub(crate) name: String,
    /// How long at least one instance has been without it.
    pub(crate) away: Duration,
    /// Why, the last time.
    pub(crate) reason: Option<String>,
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
    /// Where payment `number` is made, at a built-in upstream.
    fn payment_url(&self, number: u64) -> String {
        match self {
            Self::Orders(address) => format!("http://{address}/payments/{number}"),
            Self::Url(url) => url.to_string(),
        }
    }

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

/// How often the plain client tries to make a payment, at once and whatever went wrong but a plain no.
const PAYMENT_TRIES: u32 = 3;

impl Payer for Plain {
    async fn pay(&self, number: u64) -> Outcome {
        let pay = async || {
            let call = self.http.post(self.target.payment_url(number));
            let response = call.body(number.to_string()).send().await?;
            let status = response.status();
            response.bytes().await?;
            Ok(status)
        };
        let mut outcome = outcome(pay().await);
        for _ in 1..PAYMENT_TRIES {
            if matches!(
                outcome,
                Outcome::Ok | Outcome::Failed(Failure::Status(400..500))
            ) {
                break;
            }
            outcome = self::outcome(pay().await);
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
        format!(
            "reqwest, timeout {} s, {retries}; a payment is tried up to {PAYMENT_TRIES} times",
            PATIENCE.as_secs()
        )
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
