//! Values that are read while they are written: none stays stale.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures_util::future::join_all;
use resilience_tests::redis::{Flavour, RedisServer};

use super::*;

const WRITES: u64 = 20;
const READERS: usize = 4;
const KILLS: usize = 20;

/// Keys, for each of which one writer and four readers run at once. `RACES=5000` is the full count.
pub(super) fn races() -> usize {
    let races = std::env::var("RACES").ok();
    races.map_or(200, |races| races.parse().expect("a number"))
}

/// Writes over a connection of its own to a key that readers read meanwhile. Returns the last value.
async fn race(writer: &Connection, process: &Process, at: &str) -> String {
    let over = AtomicBool::new(false);
    let write = async {
        for number in 1..=WRITES {
            let value = number.to_string();
            while writer.raw(&["SET", at, &value]).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        over.store(true, Relaxed);
    };
    let read = async || {
        while !over.load(Relaxed) {
            let _ = process.read(at).await;
            tokio::task::yield_now().await;
        }
        // One more, which comes too late or not.
        let _ = process.read(at).await;
    };
    tokio::join!(write, join_all((0..READERS).map(|_| read())));
    WRITES.to_string()
}

/// Races for all keys, and counts those whose value stays stale.
pub(super) async fn stale_after_races(
    process: &Arc<Process>,
    writer: &Arc<Connection>,
    all: usize,
) -> usize {
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..8 {
        let (process, writer) = (Arc::clone(process), Arc::clone(writer));
        tasks.spawn(async move {
            let mut stale = 0;
            for number in (lane..all).step_by(8) {
                let at = key(format_args!("race-{number}"));
                let last = race(&writer, &process, &at).await;
                let is_right = async || {
                    let kept = process.kept(&at);
                    kept.is_none_or(|kept| kept.as_ref() == Some(&last))
                };
                if tokio::time::timeout(Duration::from_secs(2), async {
                    while !is_right().await {
                        tokio::task::yield_now().await;
                    }
                })
                .await
                .is_err()
                {
                    stale += 1;
                }
                // It is kept, and stays right.
                if process.local.state().is_told {
                    process.keeps(&at, Some(&last)).await;
                }
            }
            stale
        });
    }
    tasks.join_all().await.into_iter().sum()
}

pub(super) async fn writer(process: &Process) -> Arc<Connection> {
    let writer = Arc::new(process.connection.another());
    writer.ready(SOON).await.expect("connects");
    writer
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_stays_stale_that_was_read_while_it_was_written() {
    for flavour in Flavour::installed() {
        let server = RedisServer::start_flavour(flavour, &[]);
        let process = Arc::new(Process::told(&server.url()).await);
        let writer = writer(&process).await;
        let stale = stale_after_races(&process, &writer, races()).await;
        assert_eq!(stale, 0, "{flavour:?}");
        assert_eq!(process.local.state().lost, 0, "{flavour:?}");
    }
}

/// Every read goes over a connection that tracks, from its first command on, or is not kept.
#[tokio::test(flavor = "multi_thread")]
async fn no_value_stays_stale_when_connections_are_killed_meanwhile() {
    let server = Arc::new(RedisServer::start());
    let process = Arc::new(Process::told(&server.url()).await);
    let writer = writer(&process).await;
    let killing = tokio::spawn({
        let (server, process) = (Arc::clone(&server), Arc::clone(&process));
        async move {
            for _ in 0..KILLS {
                process.loses_a_connection(&server).await;
            }
        }
    });
    let mut stale = 0;
    while !killing.is_finished() {
        stale += stale_after_races(&process, &writer, races() / 8).await;
    }
    killing.await.expect("no panic");
    assert_eq!(stale, 0);
    process.is_told().await;
}
