//! Several instances of the guarded client, as several processes of one service would be: each has a client, pools,
//! budgets and breakers of its own, and a share of the calls. Their breakers may be shared.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use resilience_core::breaker::{CircuitBreakerBuilder, State, fleet::InProcessBreakers};
use resilience_redis::{Redis, Status};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Caller, Gauges, Refusals, StoreHealth, Target,
    guarded::{Guarded, News, Share, Told, fleet_options, fleet_rules, fleet_settings},
};
use crate::{payments::Payer, stats::Outcome, timeline::Timeline};

/// How often the store's health is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long to wait for Redis before the storm starts without it.
const PATIENCE_WITH_REDIS: Duration = Duration::from_millis(750);

/// Through what the instances share what they share.
#[derive(Clone, Debug)]
pub(crate) enum Sharing {
    /// Through nothing: each has its own.
    Local,
    /// Through a store in this process.
    InProcess,
    /// Through Redis at this URL, each instance over a connection of its own.
    Redis(String),
}

/// The instances; clones are the same.
#[derive(Clone)]
pub(crate) struct Instances {
    all: Arc<[Guarded]>,
    settings: String,
    store: Option<Arc<Store>>,
}

/// What is known of the store.
struct Store {
    name: String,
    redis: Vec<Redis>,
    away_ms: AtomicU64,
    reason: Mutex<Option<String>>,
}

/// A fleet in the storm.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) name: &'a str,
    pub(crate) instances: usize,
    /// Calls a second for all instances together.
    pub(crate) rate: u32,
    pub(crate) seed: u64,
    pub(crate) sharing: Sharing,
    pub(crate) news: News,
}

impl Instances {
    /// For the storm. Waits a little for Redis, if there is one; goes on without if it does not come.
    pub(crate) async fn in_a_hurry(
        plan: Plan<'_>,
        target: &Target,
        refusals: &Refusals,
    ) -> Result<Self, Box<dyn Error>> {
        let share = Share::of(plan.instances, plan.rate);
        let prefix = fresh_prefix();
        let (memory, mut redis) = (InProcessBreakers::new(), Vec::new());
        let mut all = Vec::with_capacity(plan.instances);
        for number in 1..=plan.instances {
            let told = Told {
                news: plan.news.clone(),
                as_who: match plan.instances {
                    1 => plan.name.to_owned(),
                    _ => format!("{} {number}", plan.name),
                },
                probing_too: plan.instances == 1,
            };
            let connection = plan.sharing.connect(&prefix, plan.instances).await?;
            let sharing = |builder: CircuitBreakerBuilder| match (&plan.sharing, &connection) {
                (Sharing::Local, _) => builder,
                (_, Some(redis)) => builder
                    .store(redis.breakers())
                    .fleet(fleet_options())
                    .fleet_rules(fleet_rules()),
                (_, None) => builder
                    .store(memory.clone())
                    .fleet(fleet_options())
                    .fleet_rules(fleet_rules()),
            };
            let seed = plan.seed.wrapping_add(number as u64);
            let target = target.clone();
            all.push(Guarded::in_a_hurry(
                target, seed, share, refusals, sharing, told,
            )?);
            redis.extend(connection);
        }
        let name = plan.sharing.name();
        let settings = match &name {
            None => share.settings(),
            Some(name) => format!(
                "as guarded, but the breakers are shared through {name}: {}",
                fleet_settings()
            ),
        };
        let store = name.map(|name| Store {
            name,
            redis,
            away_ms: AtomicU64::new(0),
            reason: Mutex::default(),
        });
        Ok(Self::new(all, settings, store))
    }

    /// One, for the user's address: as the toolkit comes.
    pub(crate) fn as_it_comes(target: Target, news: News) -> Result<Self, Box<dyn Error>> {
        let settings = "resilience_http::Client with its defaults".to_owned();
        let one = Guarded::as_it_comes(target, news)?;
        Ok(Self::new(vec![one], settings, None))
    }

    fn new(all: Vec<Guarded>, settings: String, store: Option<Store>) -> Self {
        let this = Self {
            all: all.into(),
            settings,
            store: store.map(Arc::new),
        };
        if let Some(store) = &this.store {
            tokio::spawn(look_after(Arc::clone(store), Arc::clone(&this.all)));
        }
        this
    }
}

/// What keys start with: runs that follow each other have nothing to tell each other.
pub(crate) fn fresh_prefix() -> String {
    format!("storm-{:08x}", fastrand::u32(..))
}

/// Keeps count of the time without the store.
async fn look_after(store: Arc<Store>, instances: Arc<[Guarded]>) {
    let mut ticks = interval(LOOK);
    // A look that comes late stands for the time since the last one.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        if !instances.iter().any(Guarded::is_degraded) {
            continue;
        }
        let look = u64::try_from(LOOK.as_millis()).unwrap_or(u64::MAX);
        store.away_ms.fetch_add(look, Ordering::Relaxed);
        let why = store.redis.iter().find_map(|redis| match redis.status() {
            Status::Down(why) => Some(why),
            _ => None,
        });
        if why.is_some() {
            *store.reason.lock().unwrap_or_else(PoisonError::into_inner) = why;
        }
    }
}

impl Sharing {
    /// A connection for one of several instances, if they share through Redis. Waits a little for it; what is not up by
    /// then may be up later.
    pub(crate) async fn connect(
        &self,
        prefix: &str,
        instances: usize,
    ) -> Result<Option<Redis>, Box<dyn Error>> {
        let Self::Redis(url) = self else {
            return Ok(None);
        };
        let redis = Redis::builder(url).prefix(prefix).connect();
        let redis = redis.map_err(|error| error.to_string())?;
        let _ = redis
            .ready(PATIENCE_WITH_REDIS / u32::try_from(instances)?)
            .await;
        Ok(Some(redis))
    }

    /// In words, without secrets; none if nothing is shared.
    fn name(&self) -> Option<String> {
        match self {
            Self::Local => None,
            Self::InProcess => Some("a store in this process".to_owned()),
            Self::Redis(url) => Some(format!("Redis at {}", without_secrets(url))),
        }
    }
}

/// What may be shown of a Redis URL: neither user and password nor parameters, which may hold them as well.
fn without_secrets(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let hosts = rest.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{hosts}")
}

impl Caller for Instances {
    async fn call(&self, number: u64) -> Outcome {
        self.all[instance_of(number, self.all.len())]
            .call(number)
            .await
    }
}

impl Payer for Instances {
    async fn pay(&self, number: u64) -> Outcome {
        self.all[instance_of(number, self.all.len())]
            .pay(number)
            .await
    }
}

/// Which of `instances` makes call `number`: in turn, as a load balancer deals them out.
pub(crate) fn instance_of(number: u64, instances: usize) -> usize {
    usize::try_from(number % instances.max(1) as u64).unwrap_or_default()
}

impl Gauges for Instances {
    fn settings(&self) -> String {
        self.settings.clone()
    }

    fn retries(&self) -> u64 {
        self.all.iter().map(Guarded::retries).sum()
    }

    fn states(&self) -> Vec<State> {
        self.all.iter().filter_map(Guarded::state).collect()
    }

    fn timelines(&self) -> Vec<Timeline> {
        self.all.iter().map(Guarded::timeline).collect()
    }

    fn store(&self) -> Option<StoreHealth> {
        let store = self.store.as_ref()?;
        let reason = store.reason.lock().unwrap_or_else(PoisonError::into_inner);
        Some(StoreHealth {
            name: store.name.clone(),
            away: Duration::from_millis(store.away_ms.load(Ordering::Relaxed)),
            reason: reason.clone(),
        })
    }
}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_redis_url_has_no_secrets() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/2", "redis://127.0.0.1:6379/2"),
            ("redis://me:se/cret@host", "redis://host"),
            ("redis://me:s%40cret@host:1", "redis://host:1"),
            ("redis://me:s@cret@host:1/0", "redis://host:1/0"),
            ("unix:///run/redis?pass=secret", "unix:///run/redis"),
            ("redis-cluster://u:p@a:1,b:2", "redis-cluster://a:1,b:2"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }

    #[test]
    fn calls_are_dealt_out_in_turn() {
        let dealt: Vec<_> = (0..6).map(|number| instance_of(number, 3)).collect();
        assert_eq!(dealt, [0, 1, 2, 0, 1, 2]);
    }
}
