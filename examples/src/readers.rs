//! A crowd of readers at a service that keeps rows of a database.
//!
//! The database follows the script of the storm: slow, partly failing, hanging, down. The service has several instances, and
//! is read in bursts: a crowd asks for one popular row at once, at all instances. Now and then a row is changed, and
//! the instance that changed it drops what was kept of it. The instances keep rows in a plain map with a time to live, in a
//! [`Cache`] each, or in one cache of the fleet.

use std::{
    collections::HashMap,
    error::Error,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::{Cache, cache::InProcessCache};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    clients::{Caller, PATIENCE, Sharing, fresh_prefix, instance_of},
    load,
    script::{Phase, Script},
    stats::{Counts, Failure, Outcome, Recorder},
};

/// Number of rows; the first are asked for most.
const ROWS: usize = 6;
/// How many readers ask for a row at once, and how often a crowd comes.
const CROWD: usize = 24;
const EVERY: Duration = Duration::from_millis(60);
/// How often a row is changed.
const CHANGE: Duration = Duration::from_millis(250);
/// How long a row is fresh.
const TTL: Duration = Duration::from_millis(500);
/// How long beyond that a cache serves it while it is loaded again, and when it cannot be loaded.
const WHILE_REVALIDATE: Duration = Duration::from_millis(500);
const IF_ERROR: Duration = Duration::from_secs(60);
/// After which time a cache serves a stale row although its load goes on.
const SOFT: Duration = Duration::from_millis(150);
/// Connections to the database.
const CONNECTIONS: usize = 16;
/// An answer is out of date if it is older than a change whose invalidation had ended so long before the question. Far longer
/// than the news of it takes; a busy machine needs some of it.
const GRACE: Duration = Duration::from_millis(250);

/// How the readers fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    /// Questions of readers.
    pub(crate) reads: u64,
    /// Rows that the database was asked for.
    pub(crate) loads: u64,
    /// Time within which 99 of 100 readers had an answer or an error.
    pub(crate) p99: Option<Duration>,
    /// Changes of rows that were invalidated.
    pub(crate) changes: u64,
    /// Answers that were older than a change whose invalidation had ended.
    pub(crate) outdated: u64,
    /// Questions while the database was hanging or down, and the answers to them.
    pub(crate) in_outage: u64,
    pub(crate) answered_in_outage: u64,
}

/// What the readers do, in words.
pub(crate) fn settings(instances: usize) -> String {
    format!(
        "Readers: every {} ms {CROWD} of them ask for one of {ROWS} rows, at {instances} {} of a service; the database \
         follows the script above, with {CONNECTIONS} connections for each service; rows are fresh for {} ms. `plain` keeps \
         them in a map per instance, `guarded` in a cache per instance, `shared` in one of the fleet. Both caches serve \
         rows that are out of time for {} ms while they are loaded, and for {} s when they cannot be. Every {} ms one \
         instance changes a row and drops it from what it keeps: of that, only a cache of the fleet tells the others. \
         Out of date: older than a change that was made and dropped {} ms before the question.",
        EVERY.as_millis(),
        if instances == 1 {
            "instance"
        } else {
            "instances"
        },
        TTL.as_millis(),
        WHILE_REVALIDATE.as_millis(),
        IF_ERROR.as_secs(),
        CHANGE.as_millis(),
        GRACE.as_millis(),
    )
}

/// In what the instances of a service keep rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keeps<'a> {
    /// A map with a time to live for each instance.
    Map,
    /// A cache for each instance, or one for all.
    Cache(&'a Sharing),
}

/// The service and its database; clones are the same.
#[derive(Clone)]
pub(crate) struct Scene(Arc<Service>);

struct Service {
    database: Arc<Database>,
    instances: Vec<Rows>,
    seed: u64,
    /// By row, when the invalidation of each version ended. Bounded by the length of the run.
    changes: Mutex<[Vec<(Instant, u64)>; ROWS]>,
    outdated: AtomicU64,
}

impl Scene {
    /// Starts `instances` instances of the service, in front of a database that follows `phase`.
    pub(crate) async fn set(
        instances: usize,
        keeps: Keeps<'_>,
        seed: u64,
        phase: &watch::Receiver<Phase>,
    ) -> Result<Self, Box<dyn Error>> {
        let (prefix, memory) = (fresh_prefix(), InProcessCache::new());
        let mut all = Vec::with_capacity(instances);
        for _ in 0..instances {
            let cache = || {
                Cache::builder("rows")
                    .ttl(TTL)
                    .stale_while_revalidate(WHILE_REVALIDATE)
                    .stale_if_error(IF_ERROR)
                    .load_timeout(SOFT, PATIENCE)
            };
            all.push(match keeps {
                Keeps::Map => Rows::Map(Mutex::default()),
                Keeps::Cache(Sharing::Local) => Rows::Cache(cache().build()?),
                Keeps::Cache(sharing) => Rows::Cache(
                    match sharing.connect(&prefix, instances).await? {
                        Some(redis) => cache().store(redis.cache()),
                        None => cache().store(memory.clone()),
                    }
                    .build()?,
                ),
            });
        }
        Ok(Self(Arc::new(Service {
            database: Arc::new(Database::new(seed, phase)),
            instances: all,
            seed,
            changes: Mutex::default(),
            outdated: AtomicU64::new(0),
        })))
    }

    /// Lets the readers ask for as long as the script takes, or until `stop` turns true.
    pub(crate) async fn play(self, script: Script, stop: watch::Receiver<bool>) -> Served {
        let recorder = Arc::new(Recorder::start(Instant::now(), Some(script)));
        let drive = load::drive(
            self.clone(),
            crowds(script.total()),
            Arc::clone(&recorder),
            stop,
        );
        tokio::select! {
            () = drive => {}
            () = self.0.change_rows() => {}
        }
        let (summary, service) = (recorder.summary(), &self.0);
        let of = |phase: Phase| {
            let phase = summary.phases.get(phase as usize);
            phase.map_or_else(Counts::default, |phase| phase.calls)
        };
        let (hanging, down) = (of(Phase::Hanging), of(Phase::Down));
        let changes = service.lock().iter().map(|row| row.len() as u64).sum();
        Served {
            reads: summary.calls.total(),
            loads: service.database.asked.load(SeqCst),
            p99: summary.all.map(|latency| latency.p99),
            changes,
            outdated: service.outdated.load(SeqCst),
            in_outage: hanging.total() + down.total(),
            answered_in_outage: hanging.ok + down.ok,
        }
    }
}

/// When readers ask: a crowd at a time.
fn crowds(total: Duration) -> Vec<Duration> {
    let starts = std::iter::successors(Some(Duration::ZERO), |&at| Some(at + EVERY));
    let starts = starts.take_while(|&at| at < total);
    starts.flat_map(|at| [at; CROWD]).collect()
}

impl Caller for Scene {
    /// Question `number`: a crowd asks for one row, its readers at the instances in turn.
    async fn call(&self, number: u64) -> Outcome {
        let service = &self.0;
        let row = popular(service.seed ^ (number / CROWD as u64));
        let rows = &service.instances[instance_of(number, service.instances.len())];
        let asked = Instant::now();
        match rows.read(&service.database, row).await {
            Ok(version) => {
                let outdated = service.is_outdated(row, version, asked);
                service.outdated.fetch_add(outdated.into(), SeqCst);
                Outcome::Ok
            }
            Err(outcome) => outcome,
        }
    }
}

/// A row, the first ones more often.
fn popular(seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    random.usize(..ROWS).min(random.usize(..ROWS))
}

impl Service {
    /// Changes one row after the other, at one instance after the other, forever.
    async fn change_rows(&self) {
        let mut ticks = interval(CHANGE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0_usize.. {
            ticks.tick().await;
            let (row, at) = (number % ROWS, number % self.instances.len());
            // A change that the database did not make, or that was not dropped everywhere yet, promises nothing.
            if let Ok(version) = self.database.change(row, number as u64).await
                && self.instances[at].invalidate(row).await
            {
                self.lock()[row].push((Instant::now(), version));
            }
        }
    }

    fn is_outdated(&self, row: usize, version: u64, asked: Instant) -> bool {
        let changes = self.lock();
        let mut changes = changes[row].iter();
        changes.any(|&(ended, newer)| newer > version && ended + GRACE <= asked)
    }

    fn lock(&self) -> MutexGuard<'_, [Vec<(Instant, u64)>; ROWS]> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where one instance keeps rows.
enum Rows {
    /// Versions of rows, and until when they are fresh.
    Map(Mutex<HashMap<usize, (u64, Instant)>>),
    Cache(Cache<usize, u64>),
}

impl Rows {
    /// The version of a row that is kept, or else the database's.
    async fn read(&self, database: &Arc<Database>, row: usize) -> Result<u64, Outcome> {
        let database = Arc::clone(database);
        match self {
            Self::Map(rows) => {
                let kept = lock(rows).get(&row).copied();
                if let Some((version, _)) = kept.filter(|(_, until)| Instant::now() < *until) {
                    return Ok(version);
                }
                let loaded = timeout(PATIENCE, database.query(row)).await;
                let loaded = loaded.map_err(|_| Outcome::Failed(Failure::Timeout))?;
                let version = loaded.map_err(|Gone| Outcome::Failed(Failure::Broken))?;
                lock(rows).insert(row, (version, Instant::now() + TTL));
                Ok(version)
            }
            Self::Cache(rows) => {
                let loaded = rows.get_or_load(&row, move || database.query(row)).await;
                match loaded {
                    Ok(version) => Ok(version.map_or(0, |version| *version)),
                    Err(resilience_core::Error::Rejected(no)) => Err((&no).into()),
                    Err(resilience_core::Error::Service(_)) => {
                        Err(Outcome::Failed(Failure::Broken))
                    }
                }
            }
        }
    }

    /// Drops what is kept of a row; whether that has been done.
    async fn invalidate(&self, row: usize) -> bool {
        match self {
            Self::Map(rows) => {
                lock(rows).remove(&row);
                true
            }
            Self::Cache(rows) => rows.invalidate(&row).await.is_ok(),
        }
    }
}

fn lock(
    rows: &Mutex<HashMap<usize, (u64, Instant)>>,
) -> MutexGuard<'_, HashMap<usize, (u64, Instant)>> {
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The database: what its rows are is no more than a version.
struct Database {
    seed: u64,
    phase: watch::Receiver<Phase>,
    connections: Arc<Semaphore>,
    versions: [AtomicU64; ROWS],
    asked: AtomicU64,
}

/// The database has no answer.
#[derive(Debug)]
struct Gone;

impl Database {
    fn new(seed: u64, phase: &watch::Receiver<Phase>) -> Self {
        Self {
            seed,
            phase: phase.clone(),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            versions: Default::default(),
            asked: AtomicU64::new(0),
        }
    }

    /// Reads a row, as it was when the query began.
    async fn query(self: Arc<Self>, row: usize) -> Result<u64, Gone> {
        let number = self.asked.fetch_add(1, SeqCst);
        let waiting = Arc::clone(&self.connections).acquire_owned();
        let connection = waiting.await.map_err(|_| Gone)?;
        // Detached: a database does not notice that its client has gone.
        let work = tokio::spawn(async move {
            let _connection = connection;
            let version = self.versions[row].load(SeqCst);
            self.work(number).await.map(|()| version)
        });
        work.await.unwrap_or(Err(Gone))
    }

    /// Changes a row, and returns its new version. Writers have connections of their own.
    async fn change(&self, row: usize, number: u64) -> Result<u64, Gone> {
        self.work(number).await?;
        Ok(self.versions[row].fetch_add(1, SeqCst) + 1)
    }

    /// What one statement takes, and what becomes of it, by the script.
    async fn work(&self, number: u64) -> Result<(), Gone> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ number);
        let (phase, mut crash) = (*self.phase.borrow(), self.phase.clone());
        let work = async {
            match phase.service_ms() {
                Some(range) => sleep(Duration::from_millis(random.u64(range))).await,
                None => std::future::pending().await,
            }
            if random.f64() < phase.failing() {
                return Err(Gone);
            }
            Ok(())
        };
        tokio::select! {
            biased;
            Ok(_) = crash.wait_for(|&now| now == Phase::Down) => Err(Gone),
            done = work => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays the whole script on a paused clock.
    async fn play(keeps: Keeps<'_>) -> Served {
        let script = Script::lasting(Duration::from_secs(19));
        let (conductor, phase) = watch::channel(Phase::Healthy);
        let scene = Scene::set(3, keeps, 7, &phase).await.unwrap();
        let (_stop, stopped) = watch::channel(false);
        let epoch = Instant::now();
        let conducting = tokio::spawn(async move {
            for phase in Phase::ALL {
                tokio::time::sleep_until(epoch + script.start(phase)).await;
                conductor.send_replace(phase);
            }
            std::future::pending::<()>().await;
        });
        let served = scene.play(script, stopped).await;
        conducting.abort();
        served
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_loads_less_answers_in_the_outage_and_one_of_the_fleet_is_never_outdated() {
        let plain = play(Keeps::Map).await;
        let alone = play(Keeps::Cache(&Sharing::Local)).await;
        let fleet = play(Keeps::Cache(&Sharing::InProcess)).await;
        let all = format!("{plain:#?}\n{alone:#?}\n{fleet:#?}");
        assert!(
            plain.reads == alone.reads && plain.reads == fleet.reads,
            "{all}"
        );
        assert!(plain.loads > 5 * alone.loads, "{all}");
        assert!(alone.loads > fleet.loads, "{all}");
        assert!(plain.outdated > 0 && alone.outdated > 0, "{all}");
        assert_eq!(fleet.outdated, 0, "{all}");
        assert!(fleet.changes > 20, "{all}");
        assert!(plain.answered_in_outage < plain.in_outage / 4, "{all}");
        assert!(fleet.answered_in_outage > fleet.in_outage / 2, "{all}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_outdated_only_after_the_invalidation_of_a_change_has_ended() {
        let (_conductor, phase) = watch::channel(Phase::Healthy);
        let Scene(service) = Scene::set(1, Keeps::Map, 7, &phase).await.unwrap();
        let now = Instant::now();
        service.lock()[2].push((now, 5));
        assert!(!service.is_outdated(2, 4, now), "within the grace");
        assert!(service.is_outdated(2, 4, now + GRACE));
        assert!(!service.is_outdated(2, 5, now + GRACE), "it is the latest");
        assert!(!service.is_outdated(1, 4, now + GRACE), "another row");
    }
}
