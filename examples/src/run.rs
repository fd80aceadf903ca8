//! A run: clients, upstreams, load and view put together.

use std::{error::Error, io, sync::Arc};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    clients::{Gauges, Guarded, Plain, Refusals, Target},
    flags::Flags,
    load,
    report::{self, Report, Run},
    script::{Phase, Script},
    stats::Recorder,
    upstream::{self, Upstream},
    view::{self, Scene, View},
};

/// Both clients, an upstream for each, one script.
pub(crate) async fn storm(flags: &Flags) -> Result<Report, Box<dyn Error>> {
    let script = Script::lasting(flags.duration());
    let (conductor, phase) = watch::channel(Phase::Healthy);
    let (ours, theirs) = (
        Stage::set(flags.seed, &phase).await?,
        Stage::set(flags.seed, &phase).await?,
    );
    let plain = Plain::new(theirs.target(), flags.plain_retries, &theirs.refusals)?;
    let guarded = Guarded::in_a_hurry(ours.target(), flags.seed, &ours.refusals)?;

    let epoch = Instant::now();
    let due = load::arrivals(flags.seed, flags.rate(), script.total());
    let (stop, stopped) = watch::channel(false);
    let calls = || Arc::new(Recorder::start(epoch, Some(script)));
    let (plain_calls, guarded_calls) = (calls(), calls());
    let drives = [
        tokio::spawn(load::drive(
            plain.clone(),
            due.clone(),
            Arc::clone(&plain_calls),
            stopped.clone(),
        )),
        tokio::spawn(load::drive(
            guarded.clone(),
            due,
            Arc::clone(&guarded_calls),
            stopped,
        )),
    ];
    let plain = Contender::new("plain", plain, plain_calls, Some(theirs));
    let guarded = Contender::new("guarded", guarded, guarded_calls, Some(ours));
    let conducting = tokio::spawn(conduct(script, epoch, conductor));
    let interrupted = look_on(flags, Some(script), &[&plain, &guarded], drives, stop).await;
    conducting.abort();
    Ok(Report {
        run: Run::Storm {
            script,
            rate: flags.rate(),
            seed: flags.seed,
            workers: upstream::WORKERS,
        },
        interrupted,
        plain: Some(plain.result()),
        guarded: guarded.result(),
    })
}

/// The guarded client alone, against the user's address.
pub(crate) async fn call_url(flags: &Flags, target: Target) -> Result<Report, Box<dyn Error>> {
    let url = target.to_string();
    let guarded = Guarded::as_it_comes(target)?;
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
    let interrupted = look_on(flags, None, &[&guarded], drives, stop).await;
    Ok(Report {
        run: Run::Url {
            url,
            rate: flags.rate(),
        },
        interrupted,
        plain: None,
        guarded: guarded.result(),
    })
}

/// An upstream, and what could not reach it.
struct Stage {
    upstream: Upstream,
    refusals: Refusals,
}

impl Stage {
    async fn set(seed: u64, phase: &watch::Receiver<Phase>) -> io::Result<Self> {
        Ok(Self {
            upstream: Upstream::start(seed, phase.clone()).await?,
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
        }
    }

    fn live(&self) -> view::Side {
        view::Side {
            name: self.name,
            live: self.calls.live(),
            retries: self.client.retries(),
            upstream: self.stage.as_ref().map(|stage| stage.served().iter().sum()),
        }
    }

    fn result(&self) -> report::Side {
        report::Side {
            settings: self.client.settings(),
            summary: self.calls.summary(),
            retries: self.client.retries(),
            upstream: self.stage.as_ref().map(Stage::served),
        }
    }
}

/// Tells both upstreams what phase it is.
async fn conduct(script: Script, epoch: Instant, conductor: watch::Sender<Phase>) {
    for phase in Phase::ALL {
        sleep_until(epoch + script.start(phase)).await;
        conductor.send_replace(phase);
    }
    // The upstreams take a conductor who leaves for the end of the world.
    std::future::pending().await
}

/// Shows what happens until all drives have ended; whether ctrl-c ended them early.
async fn look_on<const N: usize>(
    flags: &Flags,
    script: Option<Script>,
    contenders: &[&Contender],
    drives: [tokio::task::JoinHandle<()>; N],
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
            _ = ticks.tick() => view.show(&scene(script, contenders)),
            () = interrupt(), if !interrupted => {
                interrupted = true;
                stop.send_replace(true);
            }
        }
    }
    view.show(&scene(script, contenders));
    interrupted
}

fn scene(script: Option<Script>, contenders: &[&Contender]) -> Scene {
    let epoch = contenders[0].calls.epoch();
    Scene {
        now: epoch.elapsed(),
        script,
        sides: contenders
            .iter()
            .map(|contender| contender.live())
            .collect(),
        breaker: contenders
            .iter()
            .find_map(|one| one.client.breaker())
            .unwrap_or_default(),
        news: contenders
            .iter()
            .flat_map(|one| one.client.news(epoch))
            .collect(),
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
