//! A fleet on a real Redis: every instance a process of its own, killed and stopped at will.

use std::{ops::Deref, time::Duration};

use futures_util::future::join_all;
use resilience_tests::{process_control, redis::RedisServer, redis_scene::SOON, until::eventually};
use rustix::process::Signal;
use tokio::time::Instant;

struct Process(process_control::Process);

impl Deref for Process {
    type Target = process_control::Process;

    fn deref(&self) -> &process_control::Process {
        &self.0
    }
}

impl Process {
    async fn start(server: &RedisServer, open_ms: u64, lease_ms: u64) -> Self {
        let (open_ms, lease_ms) = (open_ms.to_string(), lease_ms.to_string());
        let args = [&*server.url(), "payments", &*open_ms, &*lease_ms];
        Self(process_control::Process::start(env!("CARGO_BIN_EXE_instance"), &args).await)
    }

    async fn view(&self) -> View {
        let answer = self.ask("view").await;
        let numbers: Vec<u64> = answer
            .split(' ')
            .map(|word| word.parse().unwrap_or(0))
            .collect();
        match numbers[..] {
            [epoch, live, _, counted, leased] => View {
                epoch,
                live,
                counted,
                leased,
            },
            _ => View::default(),
        }
    }
}

#[derive(Debug, Default)]
struct View {
    epoch: u64,
    live: u64,
    counted: u64,
    leased: u64,
}

async fn fleet(server: &RedisServer, size: usize, open_ms: u64, lease_ms: u64) -> Vec<Process> {
    let all = (0..size).map(|_| Process::start(server, open_ms, lease_ms));
    let all = join_all(all).await;
    eventually("the whole fleet is live", SOON, || async {
        all[0].view().await.live >= size as u64
    })
    .await;
    all
}

async fn all_are(fleet: &[Process], state: &str) {
    eventually(&format!("all are {state}"), SOON, || async {
        let states = join_all(fleet.iter().map(|one| one.ask("state"))).await;
        states.iter().all(|each| each == state)
    })
    .await;
}

async fn open(fleet: &[Process]) {
    for one in fleet {
        one.ask("settle 9 bad").await;
    }
    all_are(fleet, "open").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_of_processes_opens_all_and_a_new_process_inherits_the_verdict() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 4, 600_000, 10_000).await;
    fleet[0].ask("settle 9 bad").await;
    fleet[1].ask("settle 9 bad").await;
    all_are(&fleet, "open").await;
    let late = Process::start(&server, 600_000, 10_000).await;
    all_are(&[late], "open").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_processes_in_half_open_send_exactly_the_probes_of_the_fleet() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 20, 2_000, 10_000).await;
    open(&fleet[..3]).await;
    all_are(&fleet, "half_open").await;
    let mut held = 0;
    for _ in 0..3 {
        let answers = join_all(fleet.iter().map(|one| one.ask("hold"))).await;
        held += answers.iter().filter(|answer| *answer == "held").count();
    }
    assert_eq!(held, 3, "of 60 calls in 20 processes");
    assert_eq!(fleet[19].view().await.leased, 3);
}

/// The known Redis breaker holds a lock meanwhile: one call after the other, and one of eight counted.
#[tokio::test(flavor = "multi_thread")]
async fn calls_in_eight_processes_do_not_wait_for_each_other_and_all_are_counted() {
    let server = RedisServer::start();
    let fleet = fleet(&server, 8, 600_000, 10_000).await;
    let start = Instant::now();
    let passed = join_all(fleet.iter().map(|one| one.number("burst 1"))).await;
    let took = start.elapsed();
    assert_eq!(passed.iter().sum::<u64>(), 8);
    assert!(
        took < Duration::from_millis(400),
        "8 calls of 100 ms took {took:?}"
    );
    eventually("8 of 8 are counted", SOON, || async {
        fleet[0].view().await.counted == 8
    })
    .await;
    println!("8 processes x one 100 ms call: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_a_probe_holder_frees_its_lease_within_its_expiry() {
    let server = RedisServer::start();
    let lease = Duration::from_millis(1_500);
    let mut fleet = fleet(&server, 3, 300, 1_500).await;
    open(&fleet).await;
    all_are(&fleet, "half_open").await;
    for _ in 0..3 {
        assert_eq!(fleet[0].ask("hold").await, "held");
    }
    let taken = Instant::now();
    assert_eq!(fleet[1].ask("hold").await, "rejected");
    assert_eq!(fleet[1].view().await.leased, 3);
    let holder = fleet.remove(0);
    holder.signal(Signal::KILL);
    eventually("the leases are free again", SOON, || async {
        fleet[0].ask("hold").await == "held"
    })
    .await;
    let took = taken.elapsed();
    assert!(
        took < lease + Duration::from_millis(500),
        "free after {took:?}, a lease lasts {lease:?}"
    );
    println!("free {took:?} after the lease of {lease:?} was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_keeps_nobody_from_recovering_and_says_nothing_of_value_when_it_goes_on()
{
    let server = RedisServer::start();
    let fleet = fleet(&server, 3, 500, 1_000).await;
    open(&fleet).await;
    all_are(&fleet, "half_open").await;
    assert_eq!(fleet[0].ask("hold").await, "held");
    fleet[0].signal(Signal::STOP);
    eventually("the others recover", SOON, || async {
        fleet[1].ask("settle 1 ok").await;
        fleet[2].ask("settle 1 ok").await;
        fleet[1].ask("state").await == "closed" && fleet[2].ask("state").await == "closed"
    })
    .await;
    let epoch = fleet[1].view().await.epoch;
    fleet[0].signal(Signal::CONT);
    all_are(&fleet[..1], "closed").await;
    assert_eq!(
        fleet[1].view().await.epoch,
        epoch,
        "the late probe changed nothing"
    );
    all_are(&fleet, "closed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_killed_while_the_fleet_is_open_comes_back_empty_and_the_epoch_goes_on() {
    let mut server = RedisServer::start();
    let fleet = fleet(&server, 3, 3_000, 1_000).await;
    open(&fleet).await;
    let epoch = fleet[0].view().await.epoch;
    server.kill();
    all_are(&fleet, "open").await;
    server.restart();
    eventually("an instance brings the verdict back", SOON, || async {
        fleet[0].view().await.epoch >= epoch
    })
    .await;
    eventually("they recover", SOON, || async {
        for one in &fleet {
            one.ask("settle 1 ok").await;
        }
        let states = join_all(fleet.iter().map(|one| one.ask("state"))).await;
        states.iter().all(|state| state == "closed")
    })
    .await;
    assert!(fleet[2].view().await.epoch > epoch);
}
