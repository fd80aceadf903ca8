//! Servers that refuse to track, stop, and fail over; processes that stop reading.

use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use resilience_core::cache::store::Observer;
use resilience_tests::{redis::RedisServer, redis_scene::events, redis_sentinel::RedisSentinels};
use tokio::{runtime::Builder, task::spawn_blocking, time::Instant};

use super::*;

fn told_of(words: &str) -> usize {
    let events = events("resilience.redis");
    let of = events.iter().filter(|(message, _)| message.contains(words));
    of.map(|(_, times)| times).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_stopped_is_noticed_within_a_keepalive_and_the_budgets() {
    let server = RedisServer::start();
    let process = Process::with_budget(&server.url(), Duration::from_millis(100));
    process.is_told().await;
    let at = key("one");
    process.keeps(&at, None).await;
    let start = Instant::now();
    server.pause();
    process.forgets("the server is taken for lost", &at).await;
    let took = start.elapsed();
    // 200 ms, and three PINGs of 100 ms; what a busy machine adds.
    assert!(took < Duration::from_secs(2), "{took:?}");
    server.unpause();
    process.is_told().await;
    process.keeps(&at, None).await;
}

/// As proxies and some services do. Commands go through all the same.
#[tokio::test(flavor = "multi_thread")]
async fn where_tracking_is_refused_nothing_is_kept_and_calls_go_through() {
    let words = "does not report changes";
    let before = told_of(words);
    let server = RedisServer::start();
    let grant = "ACL SETUSER app on >right ~* &* +@all -client|tracking";
    assert_eq!(server.command(grant), "OK");
    let process = Process::start(&format!("redis://app:right@{}", server.addr()));
    let reads = || process.tracking.reads(&process.connection);
    eventually("a connection of its own", SOON, async || {
        !Arc::ptr_eq(&reads(), &process.connection)
    })
    .await;
    let at = key("one");
    assert!(process.raw(&["SET", &at, "1"]).await.is_ok());
    for _ in 0..3 {
        assert_eq!(process.read(&at).await, Ok(Some("1".into())));
        assert_eq!(process.kept(&at), None);
    }
    assert_eq!(told_of(words) - before, 1);
    // Allowed again: the next connection tracks.
    assert_eq!(server.command("ACL SETUSER app +client"), "OK");
    assert_eq!(process.local.state().restored, 0);
    let _killed = server.command("CLIENT KILL USER app");
    process.is_told().await;
    process.keeps(&at, Some("1")).await;
    assert_eq!(told_of(words) - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_there_is_no_connection_for_changes_everything_goes_over_the_ordinary_one() {
    let server = RedisServer::start();
    let ordinary = connection(&server.url(), Duration::from_secs(2));
    ordinary.ready(SOON).await.expect("connects");
    let most = async |clients: &str| {
        let set = ["CONFIG", "SET", "maxclients", clients];
        ordinary.raw(&set).await.expect("an answer");
    };
    most("1").await;
    let process = Process::over(Arc::clone(&ordinary));
    let at = key("one");
    for _ in 0..3 {
        assert_eq!(process.read(&at).await, Ok(None));
        assert_eq!(process.kept(&at), None);
    }
    assert!(Arc::ptr_eq(&process.tracking.reads(&ordinary), &ordinary));
    most("100").await;
    process.is_told().await;
    process.keeps(&at, None).await;
    ordinary.raw(&["SET", &at, "1"]).await.expect("an answer");
    process.forgets("a change", &at).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_subscribing_is_refused_changes_are_told_and_an_event_says_what_is_not_bounded() {
    let words = "does not bound";
    let before = told_of(words);
    let server = RedisServer::start();
    let grant = "ACL SETUSER app on >right ~* resetchannels +@all";
    assert_eq!(server.command(grant), "OK");
    let process = Process::told(&format!("redis://app:right@{}", server.addr())).await;
    let at = key("one");
    process.keeps(&at, None).await;
    assert_eq!(server.command(&format!("SET {at} 1")), "OK");
    process.forgets("a change", &at).await;
    assert_eq!(told_of(words) - before, 1);
}

/// Blocks the connection's task when it is told of a change.
struct Stuck {
    local: Local,
    is_stuck: AtomicBool,
    free: (Mutex<bool>, Condvar),
}

impl Observer for Stuck {
    fn changed(&self, id: u64) {
        self.local.changed(id);
        self.is_stuck.store(true, SeqCst);
        let (free, changed) = &self.free;
        let free = free.lock().expect("no panic");
        let waited = changed.wait_timeout_while(free, 2 * SOON, |free| !*free);
        drop(waited.expect("no panic"));
    }

    fn cleared(&self) {
        self.local.cleared();
    }

    fn lost(&self) {
        self.local.lost();
    }

    fn restored(&self) {
        self.local.restored();
    }
}

impl Stuck {
    fn free(&self) {
        *self.free.0.lock().expect("no panic") = true;
        self.free.1.notify_all();
    }
}

/// Whatever the test comes to, the process reads on.
struct FreeOnDrop(Arc<Stuck>);

impl Drop for FreeOnDrop {
    fn drop(&mut self) {
        self.0.free();
    }
}

#[test]
fn a_process_that_stops_reading_costs_the_server_what_the_limit_of_its_class_says() {
    let runtime = |builder: &mut Builder| builder.enable_all().build().expect("a runtime");
    // The process has a runtime of its own: the thread that is blocked may be the one that waits for its sockets and timers.
    let process = runtime(Builder::new_multi_thread().worker_threads(2));
    let stuck = Arc::new(Stuck {
        local: Local::default(),
        is_stuck: AtomicBool::new(false),
        free: Default::default(),
    });
    let _freed = FreeOnDrop(Arc::clone(&stuck));
    runtime(&mut Builder::new_current_thread()).block_on(async {
        let entered = process.enter();
        let limit = ["--client-output-buffer-limit", "pubsub 1mb 1mb 0"];
        let server = RedisServer::start_with(&limit);
        // With time for its PINGs: the server is to be the one that closes it.
        let connection = connection(&server.url(), SOON);
        drop(entered);
        is_cut_off_and_comes_back(&server, &connection, &stuck).await;
    });
}

async fn is_cut_off_and_comes_back(
    server: &RedisServer,
    connection: &Arc<Connection>,
    stuck: &Arc<Stuck>,
) {
    const KEYS: usize = 20_000;
    let tracking = Arc::<Tracking>::default();
    let observer = Arc::downgrade(stuck);
    let _joined = Tracking::observe(&tracking, connection, PREFIX, observer);
    let is_told = async || stuck.local.state().is_told;
    eventually("changes are reported", SOON, is_told).await;
    let writer = self::connection(&server.url(), SOON);
    writer.ready(SOON).await.expect("connects");
    // More than the sockets hold: 20 MB of names.
    let keys: Vec<_> = (0..KEYS)
        .map(|it| key(format_args!("{it:01000}")))
        .collect();
    let command = |name: &'static str, keys: &[String], value: Option<&'static str>| {
        let args = keys
            .iter()
            .flat_map(|key| [key.clone()].into_iter().chain(value.map(str::to_owned)));
        let words = [name.to_owned()].into_iter().chain(args);
        words.collect::<Vec<_>>()
    };
    for keys in keys.chunks(100) {
        let reads = tracking.reads(connection);
        let words = command("MGET", keys, None);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        reads.raw(&words).await.expect("an answer");
    }
    for keys in keys.chunks(100) {
        let words = command("MSET", keys, Some("1"));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        writer.raw(&words).await.expect("an answer");
    }
    let is_stuck = async || stuck.is_stuck.load(SeqCst);
    eventually("it reads no further", SOON, is_stuck).await;
    let closed = async || server.command("CLIENT LIST TYPE pubsub").is_empty();
    eventually("the server has closed the connection", SOON, closed).await;
    stuck.free();
    let is_back = async || stuck.local.state().restored >= 2;
    eventually("it is told again", SOON, is_back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_successor_tells_of_changes() {
    let group = spawn_blocking(RedisSentinels::start).await.expect("starts");
    let process = Process::told(&group.url()).await;
    let former = group.master();
    let at = key("one");
    assert_eq!(group.server(former).command(&format!("SET {at} 1")), "OK");
    process.keeps(&at, Some("1")).await;
    let group = spawn_blocking(move || {
        group.fail_over();
        group.has_another_master(former);
        group
    });
    let group = group.await.expect("another master");
    let successor = group.server(group.master());
    let set = format!("SET {at} 2");
    eventually("it takes writes", SOON, async || {
        successor.command(&set) == "OK"
    })
    .await;
    eventually("the new value is kept", SOON, async || {
        let _ = process.read(&at).await;
        process.kept(&at) == Some(Some("2".into()))
    })
    .await;
    let state = process.local.state().clone();
    assert!(state.lost >= 1 && state.restored >= 2, "{state:?}");
    assert_eq!(successor.command(&format!("SET {at} 3")), "OK");
    process.forgets("a change at the successor", &at).await;
}
