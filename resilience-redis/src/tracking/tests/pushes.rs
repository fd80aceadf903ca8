//! What changes are told.

use futures_util::future::join_all;
use resilience_tests::redis::{Flavour, RedisServer};

use super::*;

/// On every server program that is installed.
async fn on_all(args: &[&str], test: impl AsyncFn(RedisServer, Process)) {
    join_all(Flavour::installed().into_iter().map(async |flavour| {
        let server = RedisServer::start_flavour(flavour, args);
        let process = Process::told(&server.url()).await;
        test(server, process).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_by_programs_that_know_nothing_of_the_cache_are_told() {
    on_all(&[], async |server, process| {
        let at = key("one");
        process.keeps(&at, None).await;
        for (change, value) in [
            (format!("SET {at} 1"), Some("1")),
            (format!("SET {at} 2 EX 100"), Some("2")),
            (format!("EXPIRE {at} 50"), Some("2")),
            (format!("PERSIST {at}"), Some("2")),
            (format!("APPEND {at} 3"), Some("23")),
            (format!("DEL {at}"), None),
            (format!("RPUSH {at} 1"), None),
            (format!("DEL {at}"), None),
        ] {
            let answer = server.command(&change);
            assert!(!answer.starts_with('-'), "{change}: {answer}");
            process.forgets(&change, &at).await;
            if !change.starts_with("RPUSH") {
                process.keeps(&at, value).await;
            }
        }
        let state = process.local.state().clone();
        assert_eq!((state.lost, state.restored, state.cleared), (0, 1, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_time_to_live_is_told() {
    on_all(&[], async |server, process| {
        let at = key("brief");
        assert_eq!(server.command(&format!("SET {at} 1 PX 300")), "OK");
        process.keeps(&at, Some("1")).await;
        process.forgets("the key has expired", &at).await;
        process.keeps(&at, None).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_process_writes_itself_is_told_as_well() {
    on_all(&[], async |_server, process| {
        let at = key("own");
        process.keeps(&at, None).await;
        process.raw(&["SET", &at, "1"]).await.expect("an answer");
        process.forgets("an own write", &at).await;
        process.keeps(&at, Some("1")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_clears_everything() {
    on_all(&[], async |server, process| {
        for (number, command) in ["FLUSHALL", "FLUSHDB"].into_iter().enumerate() {
            let at = key("one");
            assert_eq!(server.command(&format!("SET {at} 1")), "OK");
            process.keeps(&at, Some("1")).await;
            assert_eq!(server.command(command), "OK");
            process.forgets(command, &at).await;
            assert!(process.local.state().cleared > number);
            process.keeps(&at, None).await;
        }
    })
    .await;
}

/// With room for a few hundred of a thousand keys.
#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_told() {
    let args = ["--maxmemory-policy", "allkeys-lru"];
    on_all(&args, async |server, process| {
        let value = "v".repeat(10_000);
        let used = server.command("INFO memory");
        let used = used.lines().find_map(|it| it.strip_prefix("used_memory:"));
        let used: u64 = used.expect("a figure").trim().parse().expect("a number");
        let most = format!("CONFIG SET maxmemory {}", used + (4 << 20));
        assert_eq!(server.command(&most), "OK");
        let keys: Vec<_> = (0..1_000).map(key).collect();
        for at in &keys {
            let answer = process.raw(&["SET", at, &value]).await;
            answer.expect("an answer");
            process.keeps(at, Some(&value)).await;
        }
        // What is kept is what is there, as soon as all pushes have come.
        eventually("evicted keys are forgotten", SOON, async || {
            let kept = keys
                .iter()
                .filter(|at| process.kept(at).flatten().is_some());
            kept.filter(|at| server.command(&format!("EXISTS {at}")) == "0")
                .count()
                == 0
        })
        .await;
        let left: usize = server.command("DBSIZE").parse().expect("a number");
        assert!(left < 900, "{left} keys are left: nothing was evicted");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_used_while_there_are_observers_and_bounded_by_the_server() {
    on_all(&[], async |server, process| {
        let tracked = || {
            let list = server.command("CLIENT LIST TYPE pubsub");
            list.lines().filter(|it| it.contains("sub=1")).count()
        };
        // The server bounds the output of clients of this class.
        assert_eq!(tracked(), 1);
        let local = Arc::<Local>::default();
        let second = observe(&process.tracking, &process.connection, &local);
        assert!(local.state().is_told, "it is told at once");
        assert_eq!(tracked(), 1, "one connection for all observers");
        let Process {
            connection,
            tracking,
            _joined,
            ..
        } = process;
        let reads = tracking.reads(&connection);
        assert!(!Arc::ptr_eq(&reads, &connection));
        drop((_joined, reads));
        assert!(!Arc::ptr_eq(&tracking.reads(&connection), &connection));
        drop(second);
        assert!(Arc::ptr_eq(&tracking.reads(&connection), &connection));
        let gone = async || tracked() == 0;
        eventually("the connection is closed", SOON, gone).await;
        // And again.
        let local = Arc::<Local>::default();
        let third = observe(&tracking, &connection, &local);
        eventually("it is told again", SOON, async || local.state().is_told).await;
        drop(third);
    })
    .await;
}
