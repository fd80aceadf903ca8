//! Caches of several processes that share a Redis, with what happens to a Redis.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::{
    Cache, FleetOptions,
    cache::{CacheBuilder, Level, Loaded},
};
use resilience_redis::Redis;
use resilience_tests::{
    redis::RedisServer, redis_cluster::RedisCluster, redis_scene::SOON, until::eventually,
};

type Strings = Cache<String, String>;

/// A process: its connections, and its cache.
struct Process {
    cache: Strings,
    _redis: Redis,
}

async fn process(url: &str) -> Process {
    process_with(url, |it| it).await
}

async fn process_with(
    url: &str,
    set: impl Fn(CacheBuilder<String, String>) -> CacheBuilder<String, String>,
) -> Process {
    let redis = Redis::builder(url).budget(SOON / 10).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("connects");
    let builder = Cache::builder("things")
        .ttl(Duration::from_secs(600))
        .fleet(FleetOptions::new().budget(SOON / 10))
        .store(redis.cache());
    let cache = set(builder).build().expect("good settings");
    eventually("changes are reported to the process", SOON, async || {
        cache.snapshot().coherent
    })
    .await;
    Process {
        cache,
        _redis: redis,
    }
}

/// The truth: counts its loads.
#[derive(Clone, Default)]
struct Truth(Arc<AtomicUsize>);

impl Truth {
    fn load(
        &self,
        value: &str,
    ) -> impl FnOnce() -> std::future::Ready<io::Result<Loaded<String>>> + Send + use<> {
        let (count, value) = (Arc::clone(&self.0), value.to_owned());
        move || {
            count.fetch_add(1, SeqCst);
            std::future::ready(Ok(Loaded::new(value).tag("red")))
        }
    }

    fn loads(&self) -> usize {
        self.0.load(SeqCst)
    }
}

async fn has(process: &Process, key: &str, value: Option<&str>) {
    let is_its = async || process.cache.get(key).await.as_deref().map(String::as_str) == value;
    eventually("the value is the latest", SOON, is_its).await;
}

async fn is_local(process: &Process, key: &str) {
    let level = async || process.cache.lookup(key).await.map(|it| it.level) == Some(Level::Local);
    eventually("the process holds it", SOON, level).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_changes_every_other_sees_by_key_by_tag_and_altogether() {
    let server = RedisServer::start();
    let cluster = RedisCluster::start();
    for url in [server.url(), cluster.url().to_owned()] {
        let (one, other) = (process(&url).await, process(&url).await);
        let truth = Truth::default();
        // Each has read the tag itself, and holds the value.
        one.cache.get_or_load("a", truth.load("1")).await.unwrap();
        for it in [&one, &other] {
            has(it, "a", Some("1")).await;
            is_local(it, "a").await;
        }
        assert_eq!(truth.loads(), 1);
        one.cache
            .put("a", Loaded::new("2".to_owned()).tag("red"))
            .await
            .unwrap();
        has(&other, "a", Some("2")).await;
        is_local(&other, "a").await;
        is_local(&one, "a").await;
        other.cache.invalidate_tag("red").await.unwrap();
        for it in [&one, &other] {
            has(it, "a", None).await;
        }
        one.cache.put("b", "3".to_owned()).await.unwrap();
        for it in [&other, &one] {
            is_local(it, "b").await;
        }
        other.cache.clear().await.unwrap();
        for it in [&one, &other] {
            has(it, "b", None).await;
        }
        one.cache
            .write("a", "4".to_owned(), || async { io::Result::Ok(()) })
            .await
            .unwrap();
        has(&other, "a", Some("4")).await;
        is_local(&other, "a").await;
        one.cache.invalidate("a").await.unwrap();
        has(&other, "a", None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_in_several_processes_takes_one_load_and_leaves_no_lease_behind() {
    let server = RedisServer::start();
    let url = server.url();
    let processes = join_all((0..4).map(|_| process(&url))).await;
    let loads = Arc::new(AtomicUsize::new(0));
    for round in 0..5 {
        let key = format!("key-{round}");
        let crowd = processes
            .iter()
            .flat_map(|it| std::iter::repeat_n(it, 25))
            .map(|it| {
                let loads = Arc::clone(&loads);
                let load = move || async move {
                    loads.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    io::Result::Ok("value".to_owned())
                };
                it.cache.get_or_load(&key, load)
            });
        for got in join_all(crowd).await {
            assert_eq!(got.unwrap().as_deref().map(String::as_str), Some("value"));
        }
        assert_eq!(loads.load(SeqCst), round + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_dies_hangs_is_flushed_or_forgets_its_scripts_serves_nothing_wrong() {
    let mut server = RedisServer::start();
    let (one, other) = (process(&server.url()).await, process(&server.url()).await);
    let truth = Truth::default();
    let mut version = 0;
    for fault in ["flush", "scripts", "kill", "pause", "type"] {
        version += 1;
        let old = version.to_string();
        one.cache.invalidate("a").await.unwrap();
        eventually("it is stored", SOON, async || {
            one.cache.get_or_load("a", truth.load(&old)).await.unwrap();
            other.cache.get("a").await.as_deref() == Some(&old)
        })
        .await;
        match fault {
            "flush" => drop(server.command("FLUSHALL")),
            "scripts" => drop(server.command("SCRIPT FLUSH")),
            "kill" => server.kill(),
            "pause" => server.pause(),
            _ => {
                drop(server.command("FLUSHALL"));
                drop(server.command("RPUSH {resilience:cache:things:a} 1"));
            }
        }
        // The truth changes while the store may be away.
        version += 1;
        let new = version.to_string();
        let told = one.cache.invalidate("a").await;
        let own = one.cache.get_or_load("a", truth.load(&new)).await.unwrap();
        assert_eq!(own.as_deref(), Some(&new), "{fault}");
        match fault {
            "kill" => {
                assert!(told.is_err());
                server.restart();
            }
            "pause" => {
                assert!(told.is_err());
                server.unpause();
            }
            _ => told.unwrap(),
        }
        let settled = async || {
            let snapshots = [&one, &other].map(|it| it.cache.snapshot());
            snapshots
                .iter()
                .all(|it| it.coherent && it.available && it.pending_invalidations == 0)
        };
        eventually("everything is back", SOON * 2, settled).await;
        let got = other
            .cache
            .get_or_load("a", truth.load(&new))
            .await
            .unwrap();
        assert_eq!(got.as_deref(), Some(&new), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_and_one_that_takes_no_writes_cost_loads_and_no_errors() {
    let server = RedisServer::start();
    let it = process(&server.url()).await;
    let truth = Truth::default();
    it.cache.put("a", "1".to_owned()).await.unwrap();
    for (on, off) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        (
            "CONFIG SET min-replicas-to-write 3",
            "CONFIG SET min-replicas-to-write 0",
        ),
    ] {
        assert_eq!(server.command(on), "OK");
        assert_eq!(
            it.cache.get("a").await.as_deref().map(String::as_str),
            Some("1")
        );
        for key in ["x", "y"] {
            let got = it.cache.get_or_load(key, truth.load("2")).await.unwrap();
            assert_eq!(got.as_deref().map(String::as_str), Some("2"));
        }
        assert_eq!(server.command(off), "OK");
    }
    eventually("it is stored again", SOON, async || {
        it.cache.get_or_load("z", truth.load("3")).await.unwrap();
        it.cache.get("z").await.is_some()
    })
    .await;
}
