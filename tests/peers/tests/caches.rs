//! What caches over Redis do when it matters, ours beside the peers', on one real server: two instances each. Ours is held to
//! the answer; a peer's is printed as it is, so that the table of the comparison can be made again with newer versions:
//!
//! ```text
//! cargo test --ignore-rust-version -p resilience-peers --test caches -- --nocapture
//! ```

#[path = "../../src/child_process.rs"]
#[allow(dead_code, unreachable_pub)]
mod child_process;
#[path = "../../src/redis.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis;
#[path = "../../src/redis_connection.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis_connection;
mod shelf;
#[path = "../../src/until.rs"]
#[allow(unreachable_pub)]
mod until;

use std::{
    fmt::Display,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{JoinHandle, yield_now},
    time::{Instant, sleep},
};

use crate::{
    redis::RedisServer,
    shelf::{Cached, Failed, Foyer, Ours, RedisClient, Shelf},
};

const KEY: &str = "key";
const OLD: u64 = 1;
const NEW: u64 = 2;
const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(50);

fn say<S: Shelf>(row: &str, what: impl Display) {
    println!("| {row} | {} | {what} |", S::NAME);
}

/// Does the same with each of the peers.
macro_rules! with_each_peer {
    ($row:ident, $case:ident) => {
        say::<Cached>($row, $case::<Cached>().await);
        say::<RedisClient>($row, $case::<RedisClient>().await);
        say::<Foyer>($row, $case::<Foyer>().await);
    };
}

/// A server and two instances; those that keep values in the process only share nothing.
async fn two<S: Shelf>(ttl: Duration) -> (RedisServer, S, S) {
    let server = RedisServer::start();
    let one = S::open(&server, ttl).await;
    let other = S::open(&server, ttl).await;
    (server, one, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stampede_is_one_load() {
    async fn loads<S: Shelf>() -> usize {
        let (_server, one, other) = two::<S>(HOUR).await;
        let loads = Arc::new(AtomicUsize::new(0));
        let calls: Vec<_> = (0..100)
            .map(|caller| {
                let (shelf, loads) = ([&one, &other][caller % 2].clone(), Arc::clone(&loads));
                let load = async move {
                    loads.fetch_add(1, SeqCst);
                    sleep(BRIEF).await;
                    Ok(NEW)
                };
                tokio::spawn(async move { shelf.get(KEY, load).await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.expect("no panic"), Ok(NEW));
        }
        loads.load(SeqCst)
    }
    let row = "loads by 100 callers at two instances, who miss at once";
    let ours = loads::<Ours>().await;
    say::<Ours>(row, ours);
    assert_eq!(ours, 1);
    with_each_peer!(row, loads);
}

/// Starts a load of the old value, which ends after a notification.
async fn loading<S: Shelf>(shelf: &S) -> (JoinHandle<Result<u64, Failed>>, Arc<Notify>) {
    let (go_on, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (gate, first) = (Arc::clone(&go_on), Arc::clone(&begun));
    let shelf = shelf.clone();
    let load = async move {
        first.notify_one();
        gate.notified().await;
        Ok(OLD)
    };
    let loading = tokio::spawn(async move { shelf.get(KEY, load).await });
    begun.notified().await;
    (loading, go_on)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_while_it_was_loaded_is_not_cached() {
    async fn cached<S: Shelf>() -> &'static str {
        let (_server, one, other) = two::<S>(HOUR).await;
        let (loading, go_on) = loading(&one).await;
        // Of the two, the one that the load is not at, where they share anything.
        if S::IS_SHARED { &other } else { &one }
            .invalidate(KEY)
            .await;
        go_on.notify_one();
        let _ = loading.await;
        match one.get(KEY, ready(Ok(NEW))).await {
            Ok(OLD) => "the old value, until it expires",
            Ok(NEW) => "the new value",
            other => panic!("{other:?}"),
        }
    }
    let row = "invalidated while it is loaded; a call afterwards gets";
    let ours = cached::<Ours>().await;
    say::<Ours>(row, ours);
    assert_eq!(ours, "the new value");
    with_each_peer!(row, cached);
}

/// Of this many keys, those that an instance has an old value of when all is quiet.
const KEYS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn no_key_that_is_read_while_it_changes_stays_stale() {
    async fn stale<S: Shelf>() -> String {
        if !S::IS_SHARED {
            return "all: its instances do not hear of each other".to_owned();
        }
        let (_server, writer, reader) = two::<S>(HOUR).await;
        let truth: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
        let read = async |key: usize| {
            let truth = Arc::clone(&truth);
            let load = async move {
                let read = truth[key].load(SeqCst);
                yield_now().await;
                Ok(read)
            };
            reader.get(&key.to_string(), load).await
        };
        for key in 0..KEYS {
            let over = AtomicBool::new(false);
            let changes = async {
                for number in 1..=5 {
                    truth[key].store(number, SeqCst);
                    writer.invalidate(&key.to_string()).await;
                    yield_now().await;
                }
                over.store(true, SeqCst);
            };
            let reads = async {
                while !over.load(SeqCst) {
                    let _ = read(key).await;
                    yield_now().await;
                }
            };
            tokio::join!(changes, reads);
        }
        // What is on its way arrives meanwhile.
        let (quiet, mut stale) = (Instant::now(), (0..KEYS).collect::<Vec<_>>());
        while quiet.elapsed() < Duration::from_secs(1) && !stale.is_empty() {
            let mut left = Vec::new();
            for key in stale {
                if read(key).await != Ok(5) {
                    left.push(key);
                }
            }
            stale = left;
        }
        format!("{} of {KEYS}", stale.len())
    }
    let row = "keys that stay stale at an instance that read them while another changed them";
    let ours = stale::<Ours>().await;
    say::<Ours>(row, &ours);
    assert_eq!(ours, format!("0 of {KEYS}"));
    with_each_peer!(row, stale);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_value_is_served_in_place_of_an_error() {
    async fn got<S: Shelf>() -> &'static str {
        let (_server, one, other) = two::<S>(BRIEF).await;
        assert_eq!(one.get(KEY, ready(Ok(OLD))).await, Ok(OLD));
        let start = Instant::now();
        // Each has a clock of its own.
        sleep(BRIEF * 3).await;
        loop {
            let asked = if S::IS_SHARED { &other } else { &one };
            match asked.get(KEY, ready(Err(Failed))).await {
                Ok(OLD) if S::HAS_TTL => return "the stale value",
                Ok(OLD) => return "the value: it has no time to live",
                Err(Failed) => return "the error",
                other => assert!(start.elapsed() < SOON, "{other:?}"),
            }
        }
    }
    let row = "a value has expired and its loader fails";
    let ours = got::<Ours>().await;
    say::<Ours>(row, ours);
    assert_eq!(ours, "the stale value");
    with_each_peer!(row, got);
}
