//! A run: clients, upstreams, load and view put together.

use std::{error::Error, io, sync::Arc, time::Duration};

use resilience_http::IdempotentRequests;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    clients::{
        Caller, Gauges, Instances, News, Plain, Plan, Refusals, Sharing, Target, instance_of,
    },
    events,
    flags::Flags,
    load,
    payments::{self, Payer, Payments},
    readers::{self, Keeps},
    report::{self, Report, Run},
    script::{self, Phase, Script},
    stats::Recorder,
    tenants,
    timeline::all_at_once,
    upstream::{Arrival, Upstream},
    view::{self, Scene, View},
};

/// All clients, an upstream for each, one script.
pub(crate) async fn storm(flags: &Flags) -> Result<Report, Box<dyn Error>> {
    let script = Script::lasting(flags.duration());
    let (conductor, phase) = watch::channel(Phase::Healthy);
    let workers = script::workers(flags.rate());
    let sharing = flags.redis.clone();
    let sharing = sharing.map_or(Sharing::InProcess, Sharing::Redis);
    let stage = |once| Stage::set(flags.seed, workers, &phase, once);
    let stages = (
        stage(None).await?,
        stage(Some(payments::once(&Sharing::Local).await?)).await?,
        stage(Some(payments::once(&sharing).await?)).await?,
    );
    let news = News::default();
    let fleet = |name, sharing| Plan {
        name,
        instances: flags.instances(),
        rate: flags.rate(),
        seed: flags.seed,
        sharing,
        news: news.clone(),
    };
    let (local, shared) = (
        fleet("guarded", Sharing::Local),
        fleet("shared", sharing.clone()),
    );
    let (to_plain, to_local, to_shared) = &stages;
    let plain = Plain::new(to_plain.target(), flags.plain_retries, &to_plain.refusals)?;
    let local = Instances::in_a_hurry(local, &to_local.target(), &to_local.refusals).await?;
    let shared = Instances::in_a_hurry(shared, &to_shared.target(), &to_shared.refusals).await?;

    let doors = [
        tenants::Scene::set(flags.instances(), &Sharing::Local).await?,
        tenants::Scene::set(flags.instances(), &sharing).await?,
    ];
    let readers = [
        readers(Keeps::Map, flags, &phase).await?,
        readers(Keeps::Cache(&Sharing::Local), flags, &phase).await?,
        readers(Keeps::Cache(&sharing), flags, &phase).await?,
    ];

    let epoch = Instant::now();
    let due = load::arrivals(flags.seed, flags.rate(), script.total());
    let (stop, stopped) = watch::channel(false);
    let tenants = doors.map(|door| tokio::spawn(door.play(script.total(), stopped.clone())));
    let readers = readers.map(|scene| tokio::spawn(scene.play(script, stopped.clone())));
    // Not at the start, where every client is to do well: it takes some of the machine.
    let (begin, seed, until) = (script.start(Phase::Slow), flags.seed, stopped.clone());
    let events = tokio::spawn(async move {
        sleep_until(epoch + begin).await;
        events::play(seed, script.total() - begin, until).await
    });
    let load = Load {
        due,
        payments: (flags.seed, flags.rate()),
        script,
        epoch,
        stopped,
    };
    let (to_plain, to_local, to_shared) = stages;
    let (plain, plain_drive) = load.put_on("plain", plain, to_plain);
    let (guarded, guarded_drive) = load.put_on("guarded", local, to_local);
    let (shared, shared_drive) = load.put_on("shared", shared, to_shared);

    let conducting = tokio::spawn(conduct(script, epoch, conductor));
    let show = Show {
        script: Some(script),
        contenders: &[&plain, &guarded, &shared],
        news,
    };
    let drives = [plain_drive, guarded_drive, shared_drive];
    let interrupted = show.look_on(flags, drives, stop).await;
    let [with_own_limits, with_one_limit] = tenants;
    let [with_maps, with_own_caches, with_one_cache] = readers;
    let readers = (
        with_maps.await?,
        with_own_caches.await?,
        with_one_cache.await?,
    );
    let (by_hand, with_record) = events.await?;
    conducting.abort();
    let recorders = [&plain, &guarded, &shared].map(|one| one.calls.lateness());
    let lateness = recorders.into_iter().max().unwrap_or_default();
    Ok(Report {
        run: Run::Storm {
            script,
            rate: flags.rate(),
            seed: flags.seed,
            workers,
            instances: flags.instances(),
            lateness,
        },
        interrupted,
        plain: Some(report::Side {
            readers: Some(readers.0),
            events: by_hand,
            ..plain.result(script).await
        }),
        guarded: report::Side {
            tenants: Some(with_own_limits.await?),
            readers: Some(readers.1),
            ..guarded.result(script).await
        },
        shared: Some(report::Side {
            tenants: Some(with_one_limit.await?),
            readers: Some(readers.2),
            events: with_record,
            ..shared.result(script).await
        }),
    })
}

async fn readers(
    keeps: Keeps<'_>,
    flags: &Flags,
    phase: &watch::Receiver<Phase>,
) -> Result<readers::Scene, Box<dyn Error>> {
    readers::Scene::set(flags.instances(), keeps, flags.seed, phase).await
}

/// The guarded client alone, against the user's address.
pub(crate) async fn call_url(flags: &Flags, target: Target) -> Result<Report, Box<dyn Error>> {
    let url = target.to_string();
    let news = News::default();
    let guarded = Instances::as_it_comes(target, news.clone())?;
    let due = load::metronome(flags.requests, flags.rate());
    let (stop, stopped) = watch::channel(false);
    let calls = Arc::new(Recorder::start(Instant::now(), None));
    let drives = [tokio::spawn(load::drive(
        guarded.clone(),
        due,
        Arc::clone(&calls),
        stopped,
    ))];
    let guarded = Contender::new("guarded", guarded, calls, None);
    let show = Show {
        script: None,
        contenders: &[&guarded],
        news,
    };
    let interrupted = show.look_on(flags, drives, stop).await;
    Ok(Report {
        run: Run::Url {
            url,
            rate: flags.rate(),
        },
        interrupted,
        plain: None,
        guarded: guarded.side(),
        shared: None,
    })
}

/// The calls that every client is given.
struct Load {
    due: Vec<Duration>,
    /// Where chance starts, and how many calls a second there are beside them.
    payments: (u64, u32),
    script: Script,
    epoch: Instant,
    stopped: watch::Receiver<bool>,
}

impl Load {
    /// Puts `client` under the load, against the upstream of `stage`.
    fn put_on<C: Caller + Payer + Gauges>(
        &self,
        name: &'static str,
        client: C,
        stage: Stage,
    ) -> (Contender, JoinHandle<()>) {
        let calls = Arc::new(Recorder::start(self.epoch, Some(self.script)));
        let (due, stopped) = (self.due.clone(), self.stopped.clone());
        let payments = Payments::start(
            client.clone(),
            self.epoch,
            self.payments,
            self.script,
            stopped.clone(),
        );
        let drive = load::drive(client.clone(), due, Arc::clone(&calls), stopped);
        let contender = Contender {
            payments: Some(payments),
            ..Contender::new(name, client, calls, Some(stage))
        };
        (contender, tokio::spawn(drive))
    }
}

/// An upstream, and what could not reach it.
struct Stage {
    upstream: Upstream,
    refusals: Refusals,
}

impl Stage {
    async fn set(
        seed: u64,
        workers: usize,
        phase: &watch::Receiver<Phase>,
        once: Option<IdempotentRequests>,
    ) -> io::Result<Self> {
        Ok(Self {
            upstream: Upstream::start(seed, workers, phase.clone(), once).await?,
            refusals: Refusals::new(phase.clone()),
        })
    }

    fn target(&self) -> Target {
        Target::Orders(self.upstream.address())
    }

    /// What the upstream had to serve or refuse, by phase.
    fn served(&self) -> [u64; Phase::ALL.len()] {
        Phase::ALL.map(|phase| self.upstream.served().get(phase) + self.refusals.count().get(phase))
    }
}

/// A client under load, to look at.
struct Contender {
    name: &'static str,
    client: Box<dyn Gauges>,
    calls: Arc<Recorder>,
    stage: Option<Stage>,
    payments: Option<Payments>,
}

impl Contender {
    fn new(
        name: &'static str,
        client: impl Gauges + 'static,
        calls: Arc<Recorder>,
        stage: Option<Stage>,
    ) -> Self {
        Self {
            name,
            client: Box::new(client),
            calls,
            stage,
            payments: None,
        }
    }

    fn live(&self) -> view::Side {
        view::Side {
            name: self.name,
            live: self.calls.live(),
            retries: self.client.retries(),
            upstream: self.stage.as_ref().map(|stage| stage.served().iter().sum()),
            breakers: self.client.states(),
        }
    }

    fn side(&self) -> report::Side {
        report::Side {
            settings: self.client.settings(),
            summary: self.calls.summary(),
            retries: self.client.retries(),
            upstream: self.stage.as_ref().map(Stage::served),
            fleet: None,
            tenants: None,
            readers: None,
            events: Vec::new(),
            paid: None,
            store: self.client.store(),
        }
    }

    async fn result(mut self, script: Script) -> report::Side {
        let (payments, stage) = (self.payments.take(), self.stage.as_ref());
        let paid = match payments.zip(stage) {
            Some((payments, stage)) => Some(payments.end(stage.upstream.till()).await),
            None => None,
        };
        report::Side {
            fleet: self.fleet(script),
            paid,
            ..self.side()
        }
    }

    /// How the breakers went through the outage and out of it.
    fn fleet(&self, script: Script) -> Option<report::Fleet> {
        let (breakers, stage) = (self.client.timelines(), self.stage.as_ref()?);
        if breakers.is_empty() {
            return None;
        }
        let at = |offset| self.calls.epoch() + offset;
        let (outage, back) = (
            at(script.start(Phase::Hanging)),
            at(script.start(Phase::Back)),
        );
        let open = all_at_once(&breakers, false, outage, back);
        let closed = all_at_once(&breakers, true, back, at(script.total()));
        let closed_by = closed.unwrap_or_else(|| at(script.total()));
        let is_probe = |arrival: &&Arrival| {
            let instance = instance_of(arrival.call, breakers.len());
            arrival.at < closed_by && !breakers[instance].is_closed(arrival.at)
        };
        Some(report::Fleet {
            all_open: open.map(|moment| moment - outage),
            all_closed: closed.map(|moment| moment - back),
            probes: stage.upstream.arrivals().iter().filter(is_probe).count(),
        })
    }
}

/// Tells all upstreams what phase it is.
async fn conduct(script: Script, epoch: Instant, conductor: watch::Sender<Phase>) {
    for phase in Phase::ALL {
        sleep_until(epoch + script.start(phase)).await;
        conductor.send_replace(phase);
    }
    // The upstreams take a conductor who leaves for the end of the world.
    std::future::pending().await
}

/// What there is to look at while it runs.
struct Show<'a> {
    script: Option<Script>,
    contenders: &'a [&'a Contender],
    news: News,
}

impl Show<'_> {
    /// Shows what happens until all drives have ended; whether ctrl-c ended them early.
    async fn look_on<const N: usize>(
        &self,
        flags: &Flags,
        drives: [JoinHandle<()>; N],
        stop: watch::Sender<bool>,
    ) -> bool {
        let mut view = View::choose(flags.plain, flags.json);
        let mut ticks = interval(view.pace());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut done = std::pin::pin!(async {
            for drive in drives {
                // A panic in the load generator is a bug of this program, and not to be papered over with figures.
                drive.await.expect("the load generator panicked");
            }
        });
        let mut interrupted = false;
        loop {
            tokio::select! {
                () = &mut done => break,
                _ = ticks.tick() => view.show(&self.scene()),
                () = interrupt(), if !interrupted => {
                    interrupted = true;
                    stop.send_replace(true);
                }
            }
        }
        view.show(&self.scene());
        interrupted
    }

    fn scene(&self) -> Scene {
        let epoch = self.contenders[0].calls.epoch();
        Scene {
            now: epoch.elapsed(),
            script: self.script,
            sides: self.contenders.iter().map(|one| one.live()).collect(),
            news: self.news.since(epoch),
        }
    }
}

/// Waits for ctrl-c, or on Unix for the termination that a supervisor asks for.
async fn interrupt() {
    let ctrl_c = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! { _ = ctrl_c => {}, _ = terminate.recv() => {} }
            return;
        }
    }
    let _ = ctrl_c.await;
}
