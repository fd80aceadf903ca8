//! From the report that completes the quorum to every instance open.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use resilience_core::{
    breaker::{
        CircuitBreaker, Events, State,
        fleet::{
            BreakerStore, BreakerView, Change, FleetOverride, FleetRules, LeaseAnswer, Report,
        },
    },
    fleet::{FleetOptions, Pushed, StoreFuture, Subscription},
};
use resilience_redis::RedisBreakers;
use tokio::sync::watch;

use crate::{
    fleet::{all, breaker, fail, ms, store},
    redis::RedisServer,
    report::{Target, figure, quantile},
};

const INSTANCES: usize = 20;
const ALERT: Duration = ms(20);
const CALM: Duration = ms(500);

pub(crate) async fn run() {
    let server = RedisServer::start();
    let mut pushed = rounds(&server, "pushed", true, 120).await;
    let target = Target::AtMost(5.0);
    figure(
        "quorum_to_all_20_open_median_ms",
        quantile(&mut pushed, 0.5),
        "ms",
        target,
    );
    let target = Target::AtMost(25.0);
    figure(
        "quorum_to_all_20_open_p99_ms",
        quantile(&mut pushed, 0.99),
        "ms",
        target,
    );
    let mut polled = rounds(&server, "polled", false, 12).await;
    // An interval is drawn up to a fifth longer.
    let interval = CALM.as_secs_f64() * 1.2 * 1e3;
    let worst = quantile(&mut polled, 1.0);
    let name = "quorum_to_all_20_open_without_pushes_max_ms";
    figure(name, worst, "ms", Target::AtMost(interval));
}

/// Milliseconds of each round.
async fn rounds(server: &RedisServer, name: &str, pushes: bool, rounds: usize) -> Vec<f64> {
    let sent = Arc::new(Mutex::new(None));
    let options = FleetOptions::new().heartbeat(CALM);
    let rules = FleetRules::new().alert(ALERT);
    let mut fleet = Vec::new();
    for n in 0..INSTANCES {
        let tapped = Tapped {
            store: store(&server.url()).await,
            sent: (n == 1).then(|| Arc::clone(&sent)),
            silent: (!pushes).then(|| watch::Sender::new(Pushed::None)),
        };
        let built = breaker(name)
            .store(tapped)
            .fleet(options.clone())
            .fleet_rules(rules.clone())
            .build();
        fleet.push(built.expect("a good breaker"));
    }
    let shared = fleet[0].fleet().expect("a shared breaker");
    let mut took = Vec::new();
    for _ in 0..rounds {
        shared
            .reset("figures", "next round")
            .await
            .expect("an answer");
        all(&fleet, State::Closed).await;
        // An instance without the push learns of the reset by its next report.
        let epoch = fleet[0].fleet_view().await.expect("an answer").epoch;
        tokio::time::sleep(if pushes { ms(5) } else { CALM * 2 }).await;
        fail(&fleet[0], 10);
        while fleet[0].fleet_view().await.expect("an answer").failing == 0 {
            tokio::time::sleep(ms(1)).await;
        }
        assert_eq!(fleet[0].fleet_view().await.expect("an answer").epoch, epoch);
        *sent.lock().expect("not poisoned") = None;
        took.push(round(&fleet, &sent).await);
    }
    took
}

async fn round(fleet: &[CircuitBreaker], sent: &Mutex<Option<Instant>>) -> f64 {
    let opened: Vec<_> = fleet
        .iter()
        .map(|breaker| tokio::spawn(opened(breaker.events())))
        .collect();
    fail(&fleet[1], 12);
    let mut last = Instant::now();
    for one in opened {
        last = last.max(one.await.expect("it opened"));
    }
    let sent = sent
        .lock()
        .expect("not poisoned")
        .expect("a report was sent");
    (last - sent).as_secs_f64() * 1e3
}

/// When the breaker opened.
async fn opened(mut events: Events) -> Instant {
    while let Some(event) = events.next().await {
        if event.is_ok_and(|event| event.to == State::Open) {
            return Instant::now();
        }
    }
    panic!("the breaker is gone");
}

/// A store that notes when a report of failures is sent, or keeps its pushes to itself.
#[derive(Debug)]
struct Tapped {
    store: RedisBreakers,
    sent: Option<Arc<Mutex<Option<Instant>>>>,
    silent: Option<watch::Sender<Pushed<Arc<BreakerView>>>>,
}

impl BreakerStore for Tapped {
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView> {
        if let Some(sent) = self.sent.as_ref().filter(|_| report.counts.failure > 0) {
            let mut sent = sent.lock().expect("not poisoned");
            sent.get_or_insert_with(Instant::now);
        }
        self.store.report(name, report)
    }

    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        self.store.change(name, change)
    }

    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        self.store.restore(name, known)
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)> {
        self.store.lease(name, lease, budget, lease_ms)
    }

    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        self.store.settle(name, lease, epoch, success)
    }

    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        self.store.set_override(name, active_override, by)
    }

    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        self.store.reset(name, by, cause)
    }

    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView> {
        self.store.view(name)
    }

    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        match &self.silent {
            Some(silent) => Subscription::new(silent.subscribe()),
            None => self.store.subscribe(name),
        }
    }
}
