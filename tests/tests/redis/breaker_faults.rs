//! Redis in every kind of trouble, with calls going on: they go on, by the local window; one event says so and one
//! says that it is over; and every call has been counted once in the end.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    time::Duration,
};

use resilience_core::{Verdict, breaker::State};
use resilience_redis::CommandError;
use resilience_tests::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
    redis_cluster::RedisCluster,
    redis_scene::{BUDGET, Instance, SOON, Traffic, all_are, builder, connect, told},
    redis_sentinel::RedisSentinels,
    until::eventually,
};
use tokio::{runtime::Handle, time::Instant};

/// What the store still has at the end of what it had before the fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Kept,
    Lost,
}

/// Whether the instance must notice the fault, or it may be over before anybody asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noticed {
    Always,
    Perhaps,
}

/// No call may take longer, whatever happens to Redis: a question for a probe costs one budget, two if the scripts
/// were forgotten; the rest is for a busy machine.
const BOUND: Duration = BUDGET.saturating_mul(4);

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Calls go on through the fault and after it.
async fn calls_go_on<A, B>(
    name: &str,
    url: &str,
    expected: (Noticed, Memory),
    strike: impl FnOnce() -> A,
    heal: impl FnOnce() -> B,
) where
    A: Future<Output = ()>,
    B: Future<Output = ()>,
{
    let (noticed, memory) = expected;
    assert_eq!(told(name), (0, 0), "the name is this test's alone");
    let instance = Instance::start(url, builder(name, Duration::from_millis(300))).await;
    let traffic = Traffic::through(&instance.breaker);
    traffic.goes_on(20).await;
    eventually("the first reports arrive", SOON, || async {
        let view = instance.view().await;
        view.is_some_and(|view| view.window.total() > 0)
    })
    .await;
    assert!(!instance.is_degraded());
    let before = tasks();

    strike().await;
    if noticed == Noticed::Always {
        eventually("the loss is noticed", SOON, || async {
            instance.is_degraded()
        })
        .await;
    }
    traffic.goes_on(50).await;
    traffic.set_sick(true);
    eventually("the local window opens it", SOON, || async {
        instance.breaker.state() == State::Open
    })
    .await;
    traffic.set_sick(false);
    eventually("probes of its own close it", SOON, || async {
        instance.breaker.state() == State::Closed
    })
    .await;
    traffic.goes_on(50).await;
    assert!(tasks() <= before + 20, "{} tasks, {before} before", tasks());

    heal().await;
    eventually("the store is found again", SOON, || async {
        !instance.is_degraded() && instance.view().await.is_some()
    })
    .await;
    traffic.goes_on(50).await;
    let seen = traffic.stop().await;
    let totals = instance.breaker.snapshot().totals;
    let judged = totals.successes + totals.failures;
    assert_eq!(judged, seen.succeeded + seen.failed);
    assert!(seen.slowest < BOUND, "a call took {:?}", seen.slowest);
    let counted = || async { instance.view().await.map(|view| view.window.total()) };
    eventually("reports resume", SOON, || async {
        counted().await.is_some_and(|counted| match memory {
            Memory::Kept => counted >= judged,
            Memory::Lost => counted > 0,
        })
    })
    .await;
    // Some more reports: what was counted must not be counted again.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let counted = counted().await.expect("a view");
    assert!(counted <= judged, "{counted} counted of {judged} calls");
    let (lost, back) = told(name);
    assert_eq!(lost, back, "lost and found");
    let most = if noticed == Noticed::Always { 1 } else { 0 };
    assert!(
        lost >= most && lost <= 1,
        "the loss was told {lost} times over"
    );
    assert!(tasks() <= before + 20, "{} tasks, {before} before", tasks());
}

async fn nothing() {}

const NOTICED: (Noticed, Memory) = (Noticed::Always, Memory::Kept);
const NOTICED_AND_LOST: (Noticed, Memory) = (Noticed::Always, Memory::Lost);
const PERHAPS: (Noticed, Memory) = (Noticed::Perhaps, Memory::Kept);
const PERHAPS_LOST: (Noticed, Memory) = (Noticed::Perhaps, Memory::Lost);

async fn in_bad_weather(name: &str, weather: Weather) {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.addr().parse().expect("an address")).await;
    let proxy = proxy.expect("a port");
    let url = format!("redis://{}", proxy.address());
    let proxy = Cell::new(Some(proxy));
    let set = async |weather| {
        let mut there = proxy.take().expect("still there");
        there.set(weather).await;
        proxy.set(Some(there));
    };
    calls_go_on(name, &url, NOTICED, || set(weather), || set(Weather::Fine)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow() {
    in_bad_weather("faults.slow", Weather::Latency(2 * BUDGET)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_blackhole() {
    in_bad_weather("faults.blackhole", Weather::Blackhole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_resets() {
    in_bad_weather("faults.reset", Weather::Reset).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusing_connections() {
    in_bad_weather("faults.refuse", Weather::Refuse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_off_after_some_bytes() {
    in_bad_weather("faults.cut", Weather::CutAfter(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung() {
    let server = RedisServer::start();
    calls_go_on(
        "faults.hung",
        &server.url(),
        NOTICED,
        || async { server.pause() },
        || async { server.unpause() },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn down_and_restarted_empty() {
    let server = RefCell::new(RedisServer::start());
    let url = server.borrow().url();
    calls_go_on(
        "faults.down",
        &url,
        NOTICED_AND_LOST,
        || async { server.borrow_mut().kill() },
        || async { server.borrow_mut().restart() },
    )
    .await;
}

/// Strikes with one command and heals with another.
async fn commanded(name: &str, expected: (Noticed, Memory), strike: &str, heal: &str) {
    let server = RedisServer::start();
    let tell = |command: &str| {
        for command in command.split(';').filter(|command| !command.is_empty()) {
            let answer = server.command(command);
            assert!(!answer.starts_with('-'), "{command}: {answer}");
        }
    };
    calls_go_on(
        name,
        &server.url(),
        expected,
        || async { tell(strike) },
        || async { tell(heal) },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed() {
    commanded("faults.flushed", PERHAPS_LOST, "FLUSHALL", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_forgotten() {
    commanded("faults.scripts", PERHAPS, "SCRIPT FLUSH", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_killed() {
    let kill = "CLIENT KILL TYPE normal;CLIENT KILL TYPE pubsub";
    commanded("faults.killed", PERHAPS, kill, kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory() {
    let full = "CONFIG SET maxmemory-policy noeviction;CONFIG SET maxmemory 1";
    commanded("faults.memory", PERHAPS, full, "CONFIG SET maxmemory 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_a_replica() {
    let demote = "REPLICAOF 127.0.0.1 1";
    commanded("faults.replica", NOTICED, demote, "REPLICAOF NO ONE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_too_few_replicas_to_write() {
    let strike = "CONFIG SET min-replicas-to-write 1";
    let heal = "CONFIG SET min-replicas-to-write 0";
    commanded("faults.replicas", NOTICED, strike, heal).await;
}

/// PINGs are answered, scripts are not.
#[tokio::test(flavor = "multi_thread")]
async fn writes_paused() {
    commanded(
        "faults.paused",
        NOTICED,
        "CLIENT PAUSE 60000 WRITE",
        "CLIENT UNPAUSE",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_type_under_the_key_of_the_state() {
    let key = "{resilience:breaker:faults.state}:state";
    let strike = format!("DEL {key};SET {key} mine");
    commanded(
        "faults.state",
        NOTICED_AND_LOST,
        &strike,
        &format!("DEL {key}"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_type_under_the_key_of_the_window() {
    let key = "{resilience:breaker:faults.window}:window";
    let strike = format!("DEL {key};SET {key} mine");
    commanded(
        "faults.window",
        NOTICED_AND_LOST,
        &strike,
        &format!("DEL {key}"),
    )
    .await;
}

/// A server with a user `app`, and what is told to it.
async fn with_a_user(name: &str, strike: &str, heal: &str) {
    let server = RedisServer::start();
    let tell = |commands: &str| {
        for command in commands.split(';') {
            let answer = server.command(command);
            assert!(!answer.starts_with('-'), "{command}: {answer}");
        }
    };
    tell("ACL SETUSER app on >right ~{resilience:* &* +@all");
    calls_go_on(
        name,
        &format!("redis://app:right@{}", server.addr()),
        NOTICED,
        || async { tell(strike) },
        || async { tell(heal) },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn password_changed() {
    with_a_user(
        "faults.password",
        "ACL SETUSER app resetpass >other;CLIENT KILL USER app",
        "ACL SETUSER app resetpass >right",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permission_lost() {
    with_a_user(
        "faults.permission",
        "ACL SETUSER app -@scripting",
        "ACL SETUSER app +@scripting",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn master_killed_under_sentinel() {
    let group = RefCell::new(RedisSentinels::start());
    let url = group.borrow().url();
    let master = group.borrow().master();
    calls_go_on(
        "faults.sentinel-kill",
        &url,
        // What was not replicated yet is gone.
        PERHAPS_LOST,
        || async { group.borrow_mut().server_mut(master).kill() },
        nothing,
    )
    .await;
    assert_ne!(group.borrow().master(), master);
}

#[tokio::test(flavor = "multi_thread")]
async fn master_demoted_under_sentinel() {
    let group = RedisSentinels::start();
    let master = group.master();
    calls_go_on(
        "faults.sentinel-demote",
        &group.url(),
        PERHAPS_LOST,
        || async {
            group.fail_over();
            eventually("another master", SOON, || async {
                group.master() != master
            })
            .await;
        },
        nothing,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn master_killed_in_a_cluster() {
    let name = "faults.cluster-kill";
    let cluster = RefCell::new(RedisCluster::start());
    let url = cluster.borrow().url();
    let key = format!("{{resilience:breaker:{name}}}:state");
    let master = cluster.borrow().master_of(&key);
    calls_go_on(
        name,
        &url,
        PERHAPS_LOST,
        || async { cluster.borrow_mut().node_mut(master).kill() },
        nothing,
    )
    .await;
    assert_ne!(cluster.borrow().master_of(&key), master);
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_moved_in_a_cluster() {
    let name = "faults.cluster-move";
    let cluster = RedisCluster::start();
    let key = format!("{{resilience:breaker:{name}}}:state");
    calls_go_on(
        name,
        &cluster.url(),
        PERHAPS,
        || async {
            let to = cluster.move_slot(&key);
            assert_eq!(cluster.master_of(&key), to);
        },
        nothing,
    )
    .await;
}

/// A server that answers PINGs and nothing else costs a few budgets, not one per question.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_is_left_alone() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let answer = server.command("CLIENT PAUSE 60000 WRITE");
    assert_eq!(answer, "OK");
    let (start, mut waited, mut spared) = (Instant::now(), 0, 0);
    while start.elapsed() < Duration::from_secs(4) {
        // Lists the names, by a script.
        match redis.breakers().names().await {
            Err(CommandError::TimedOut | CommandError::Lost(_)) => waited += 1,
            Err(CommandError::CircuitOpen | CommandError::Down) => spared += 1,
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Three to open; then one when each of the intervals 200, 400, 800, 1000 ms is over, a tenth less at most.
    assert!((4..=8).contains(&waited), "{waited} waited");
    assert!(spared > 50, "{spared} were spared");
    assert_eq!(server.command("CLIENT UNPAUSE"), "OK");
    eventually("it is asked again", SOON, || async {
        redis.breakers().names().await.is_ok()
    })
    .await;
}

/// A store that says no at once is asked as often as the alert interval says, not as often as there are calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_is_not_asked_for_every_call() {
    let server = RedisServer::start();
    let name = "faults.refuses";
    let instance = Instance::start(&server.url(), builder(name, Duration::from_millis(300))).await;
    let traffic = Traffic::through(&instance.breaker);
    assert_eq!(server.command("CONFIG SET min-replicas-to-write 1"), "OK");
    eventually("the loss is noticed", SOON, || async {
        instance.is_degraded()
    })
    .await;
    traffic.set_sick(true);
    let (before, start) = (scripts(&server), Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = scripts(&server) - before;
    let rounds = start.elapsed().as_millis() as u64 / 50;
    assert!(
        asked <= rounds + 10,
        "asked {asked} times in {rounds} alert intervals"
    );
    traffic.stop().await;
}

/// Scripts run or refused, of all clients.
fn scripts(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats");
    let lines = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_eval"));
    lines
        .flat_map(|line| line.split([':', ',']))
        .filter_map(|part| part.split_once('='))
        .filter(|(key, _)| ["calls", "rejected_calls"].contains(key))
        .map(|(_, number)| number.trim().parse::<u64>().expect("a number"))
        .sum()
}

/// A server that accepts connections and drops them is tried less and less often.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_up_is_tried_less_and_less_often() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    let redis = resilience_redis::Redis::connect(&url).expect("a good URL");
    let (mut tries, start) = (0, Instant::now());
    while let Ok(accepted) =
        tokio::time::timeout_at(start + Duration::from_secs(3), listener.accept()).await
    {
        drop(accepted);
        tries += 1;
    }
    // 40, 80, .. 1000 ms, less up to a half each.
    assert!((3..=14).contains(&tries), "{tries} tries in 3 seconds");
    assert_eq!(redis.ping().await, Err(CommandError::Down));
}

/// A user that may not use the channels: the fleet agrees all the same, within a poll interval or two.
#[tokio::test(flavor = "multi_thread")]
async fn without_pushes_the_fleet_is_told_when_it_asks() {
    let server = RedisServer::start();
    let grant = "ACL SETUSER quiet on >right ~{resilience:* resetchannels +@all";
    assert_eq!(server.command(grant), "OK");
    let url = format!("redis://quiet:right@{}", server.addr());
    let new = || builder("faults.quiet", Duration::from_millis(500));
    let fleet = Instance::fleet(&url, 5, new).await;
    for one in &fleet[..2] {
        one.settle(9, Verdict::transient());
    }
    all_are(&fleet[..2], State::Open).await;
    let start = Instant::now();
    all_are(&fleet, State::Open).await;
    // The calm interval is 200 ms, and a fifth more at most.
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    for one in &fleet {
        one.call_until_closed().await;
    }
}

/// One script that does not end keeps the server from running any other.
#[tokio::test(flavor = "multi_thread")]
async fn busy_with_an_endless_script() {
    let server = RedisServer::start_with(&["--busy-reply-threshold", "100"]);
    let (url, addr) = (server.url(), server.addr());
    calls_go_on(
        "faults.busy",
        &url,
        NOTICED,
        || async {
            // No caller waits for its answer.
            let client = std::net::TcpStream::connect(&addr).expect("a connection");
            let script = "EVAL \"while true do end\" 0\r\n";
            std::io::Write::write_all(&mut &client, script.as_bytes()).expect("sent");
            std::mem::forget(client);
        },
        || async { assert_eq!(server.command("SCRIPT KILL"), "OK") },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_a_cluster_killed_and_restarted() {
    let cluster = RefCell::new(RedisCluster::start());
    let url = cluster.borrow().url();
    calls_go_on(
        "faults.cluster-down",
        &url,
        NOTICED_AND_LOST,
        || async { (0..6).for_each(|number| cluster.borrow_mut().node_mut(number).kill()) },
        || async { (0..6).for_each(|number| cluster.borrow_mut().node_mut(number).restart()) },
    )
    .await;
}
