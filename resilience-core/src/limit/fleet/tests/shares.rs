//! A whole fleet that loses its store: what it admits, in any stretch of time.

use futures_util::future::join_all;
use tokio::time::Instant;

use super::*;

const RATE: u64 = 20;
const BURST: u64 = 40;
const INSTANCES: u64 = 6;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn one(server: &Server, options: &FleetOptions) -> FleetRateLimit {
    let quota = per(RATE, SECOND).burst(BURST).unwrap();
    FleetRateLimit::builder("api")
        .store(server.clone())
        .limit("per-second", quota)
        .fleet(options.clone())
        .build()
        .unwrap()
}

/// Instances whose callers want more than there is, and when they admitted a call.
struct Fleet {
    server: Server,
    options: FleetOptions,
    limits: Vec<FleetRateLimit>,
    admitted: Vec<Instant>,
}

impl Fleet {
    fn start(server: &Server, options: &FleetOptions) -> Self {
        Self {
            server: server.clone(),
            options: options.clone(),
            limits: (0..INSTANCES).map(|_| one(server, options)).collect(),
            admitted: Vec::new(),
        }
    }

    /// All instances have heard of all.
    async fn known(&mut self) {
        for _ in 0..50 {
            self.run(ms(100)).await;
            if self
                .limits
                .iter()
                .all(|limit| limit.snapshot().local_parts == Some(INSTANCES))
            {
                return;
            }
        }
        panic!("an instance does not know its share");
    }

    async fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.limits.rotate_left(1);
            let calls = self.limits.iter().map(async |limit| {
                let mut admitted = Vec::new();
                while limit.ask("tenant", 1).await.is_admitted() {
                    admitted.push(Instant::now());
                }
                admitted
            });
            let mut admitted = join_all(calls).await.concat();
            admitted.sort_unstable();
            self.admitted.append(&mut admitted);
            sleep(ms(20)).await;
        }
    }

    /// A process dies, and another one starts in its place.
    fn restart(&mut self) {
        drop(self.limits.remove(0));
        self.limits.push(one(&self.server, &self.options));
    }

    /// By how much more than the limit was admitted, in the worst stretch of time.
    fn percent_over(&self) -> f64 {
        let over = |(first, from): (usize, &Instant)| {
            let calls = self.admitted[first..].iter().zip(1u32..);
            calls
                .map(|(at, count)| {
                    let gained = at.duration_since(*from).as_secs_f64() * RATE as f64;
                    f64::from(count) / (BURST as f64 + gained)
                })
                .fold(0.0, f64::max)
        };
        let worst = self.admitted.iter().enumerate().map(over);
        (worst.fold(0.0, f64::max) * 100.0 - 100.0).max(0.0)
    }

    fn count_since(&self, start: Instant) -> usize {
        self.admitted.iter().filter(|at| **at >= start).count()
    }
}

#[tokio::test(start_paused = true)]
async fn instances_that_start_without_the_store_admit_no_more_than_the_limit() {
    for (options, least) in [
        (FleetOptions::new(), 0),
        (FleetOptions::new().expected_instances(INSTANCES), 150),
    ] {
        let server = Server::default();
        server.down(true);
        let mut fleet = Fleet::start(&server, &options);
        let start = Instant::now();
        fleet.run(10 * SECOND).await;
        let admitted = fleet.count_since(start);
        // The bucket would be full: but an instance cannot know that.
        assert!((least..=200).contains(&admitted), "{admitted}");
        assert_eq!(least == 0, admitted == 0, "{admitted}");
        let reason = fleet.limits[0]
            .check("tenant", 40)
            .await
            .unwrap_err()
            .reason();
        let unknown = options == FleetOptions::new();
        assert_eq!(reason == Reason::StoreUnreachable, unknown, "{reason:?}");
        server.down(false);
        fleet.run(10 * SECOND).await;
        assert!(fleet.percent_over() <= 10.0, "{}", fleet.percent_over());
    }
}

#[tokio::test(start_paused = true)]
async fn restarts_without_the_store_pay_no_further_burst() {
    for options in [
        FleetOptions::new(),
        FleetOptions::new().expected_instances(INSTANCES),
    ] {
        let server = Server::default();
        let mut fleet = Fleet::start(&server, &options);
        fleet.known().await;
        server.down(true);
        for _ in 0..2 * INSTANCES {
            fleet.run(2 * SECOND).await;
            fleet.restart();
        }
        fleet.run(2 * SECOND).await;
        server.down(false);
        fleet.run(10 * SECOND).await;
        assert!(fleet.percent_over() <= 10.0, "{}", fleet.percent_over());
    }
}

#[tokio::test(start_paused = true)]
async fn instances_that_start_before_the_store_returns_pay_for_those_before_them() {
    let server = Server::default();
    let options = FleetOptions::new().expected_instances(INSTANCES);
    let mut fleet = Fleet::start(&server, &options);
    fleet.known().await;
    server.down(true);
    fleet.run(10 * SECOND).await;
    for _ in 0..INSTANCES {
        fleet.restart();
    }
    fleet.run(SECOND / 5).await;
    server.down(false);
    fleet.run(10 * SECOND).await;
    assert!(fleet.percent_over() <= 10.0, "{}", fleet.percent_over());
}

/// It cannot know that the others have used what the store has left, and they hear of the store at their next probe.
#[tokio::test(start_paused = true)]
async fn an_instance_that_starts_as_the_store_returns_costs_a_second_of_the_rate_at_most() {
    let server = Server::default();
    let mut fleet = Fleet::start(&server, &FleetOptions::new());
    fleet.known().await;
    server.down(true);
    fleet.run(10 * SECOND).await;
    fleet.restart();
    server.down(false);
    let back = Instant::now();
    fleet.run(10 * SECOND).await;
    let admitted = fleet.count_since(back);
    let most = BURST + RATE * 11;
    assert!(admitted as u64 <= most, "{admitted}");
}

/// Into the share and back: the burst is paid once, whether or not the store keeps its data.
#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_pays_the_burst_once() {
    for (outage, loses_data) in [(1, false), (5, false), (5, true), (1, true), (30, true)] {
        let server = Server::default();
        let mut fleet = Fleet::start(&server, &FleetOptions::new());
        fleet.known().await;
        let start = Instant::now();
        server.down(true);
        fleet.run(SECOND * outage).await;
        if loses_data {
            server.inner.flush();
        }
        server.down(false);
        fleet.run(10 * SECOND).await;
        let what = format!("{outage} s, data lost: {loses_data}");
        let over = fleet.percent_over();
        assert!(over <= 10.0, "{what}: {over} % over the limit");
        let admitted = fleet.count_since(start) as f64;
        let all = start.elapsed().as_secs_f64() * RATE as f64;
        assert!(admitted >= all * 0.8, "{what}: {admitted} of {all}");
        let by = fleet.limits[0].ask("tenant", 0).await.decided_by();
        assert_eq!(by, DecidedBy::Store, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_flaps_pays_no_further_burst() {
    let server = Server::default();
    let mut fleet = Fleet::start(&server, &FleetOptions::new());
    fleet.known().await;
    for round in 0..10u64 {
        match round % 3 {
            0 => server.down(true),
            1 => server.hang(true),
            _ => {
                server.down(true);
                server.inner.flush();
            }
        }
        fleet.run(ms(150 + 211 * round)).await;
        server.down(false);
        server.hang(false);
        fleet.run(ms(97 + 400 * (round % 4))).await;
    }
    assert!(fleet.percent_over() <= 10.0, "{}", fleet.percent_over());
}

#[tokio::test(start_paused = true)]
async fn a_reservation_of_a_share_is_settled_where_its_tokens_are() {
    let server = Server::default();
    let options = FleetOptions::new().expected_instances(1);
    let limit = ten(&server).fleet(options).build().unwrap();
    limit.check("t", 2).await.unwrap();
    server.down(true);
    let (early, late) = (limit.reserve("t", 3).await, limit.reserve("t", 3).await);
    early.unwrap().settle(1).await.unwrap();
    assert!(limit.check("t", 5).await.is_err(), "four are left");
    server.down(false);
    sleep(10 * SECOND).await;
    let left = async || limit.peek("t").await.unwrap().binding().unwrap().remaining;
    assert_eq!(left().await, 4, "charged: one and three");
    late.unwrap().settle(0).await.unwrap();
    assert_eq!(left().await, 7);
}
