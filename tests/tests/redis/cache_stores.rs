//! Every store of cached values, held to one suite, and what only Redis' has.

use std::{sync::Arc, time::Duration};

use resilience_core::{
    cache::{
        CacheStore, InProcessCache,
        record::{Entry, Fill, Lease, Leased, Stored, Token},
    },
    conformance,
};
use resilience_redis::{Redis, RedisCache};
use resilience_tests::{
    redis::{Flavour, RedisServer},
    redis_clock::Clock,
    redis_cluster::RedisCluster,
    redis_scene::SOON,
    redis_sentinel::RedisSentinels,
};

const NAME: &str = "products";
const HOUR: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    let store = InProcessCache::new();
    let shared: Arc<dyn CacheStore> = Arc::new(store.clone());
    conformance::cache::all(&shared, &|| store.flush()).await;
    conformance::cache::observing(&shared, &|| store.flush()).await;
}

/// Values of a megabyte on a busy machine take their time.
async fn connect(url: &str) -> Redis {
    let redis = Redis::builder(url).budget(SOON / 6).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis
}

async fn conforms(url: &str, flush: &(dyn Fn() + Sync)) {
    let store: Arc<dyn CacheStore> = Arc::new(connect(url).await.cache());
    conformance::cache::all(&store, flush).await;
    conformance::cache::observing(&store, flush).await;
}

fn flush(server: &RedisServer) {
    assert_eq!(server.command("FLUSHALL"), "OK");
}

/// Redis, and Redis 6.2 and Valkey where the machine has them.
#[tokio::test(flavor = "multi_thread")]
async fn every_server_that_is_installed_conforms() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        conforms(&server.url(), &|| flush(&server)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start();
    let flush = || {
        for node in 0..6 {
            // Replicas refuse, and are emptied by their masters.
            let _ = cluster.node(node).command("FLUSHALL");
        }
    };
    conforms(&cluster.url(), &flush).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_found_through_sentinels_conforms() {
    let group = RedisSentinels::start();
    conforms(&group.url(), &|| flush(group.server(group.master()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_a_user_of_few_rights_it_conforms() {
    let server = RedisServer::start();
    // What the README tells operators to grant.
    let grant = "ACL SETUSER app on >right ~{resilience:* &{resilience:* +@connection +@scripting +@pubsub \
                 +@read +@write +@fast +time";
    assert_eq!(server.command(grant), "OK");
    let url = format!("redis://app:right@{}", server.addr());
    conforms(&url, &|| flush(&server)).await;
}

fn value(body: &'static str) -> Fill {
    Fill {
        body: Some(body.as_bytes().into()),
        fresh_ms: HOUR / 2,
        keep_ms: HOUR,
        load_ms: 7,
        tags: [].into(),
    }
}

fn hour() -> Lease {
    Lease {
        token: Token::random(),
        lease_ms: HOUR,
        renew: None,
    }
}

async fn get(store: &RedisCache, key: &str) -> Option<Entry> {
    let got = store.get(NAME, &[key]).await.expect("an answer");
    got.into_iter().next().flatten()
}

async fn put(store: &RedisCache, key: &str, body: &'static str) {
    let put = store.put(NAME, key, Token::random(), &value(body)).await;
    assert_eq!(put, Ok(Stored::Stored));
}

fn ask(server: &RedisServer, words: &[&str]) -> String {
    server.try_words(words).expect("an answer")
}

/// The connections of stores.
fn connections(server: &RedisServer) -> String {
    let ids = server.command("CLIENT LIST TYPE normal");
    let ours = ids.lines().filter(|line| !line.contains("cmd=client"));
    let ids: Vec<_> = ours
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    assert!(!ids.is_empty());
    ids.join(" ")
}

/// Changes the bytes of a record, `r`, by an expression of Lua.
fn rewrite(server: &RedisServer, key: &str, expression: &str) {
    let script = format!(
        "local r = redis.call('GET', KEYS[1]) redis.call('SET', KEYS[1], {expression}, 'PX', 3600000)"
    );
    let done = ask(server, &["EVAL", &script, "1", key]);
    assert!(!done.starts_with('-'), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_record_of_the_key_is_a_miss_and_is_replaced_on_the_same_connection() {
    for flavour in Flavour::installed() {
        let server = RedisServer::start_flavour(flavour, &[]);
        let store = connect(&server.url()).await.cache();
        let long = "x".repeat(100);
        put(&store, "other", "other").await;
        let before = connections(&server);
        let (key, other) = (store.key(NAME, "key"), store.key(NAME, "other"));
        let foreign: [&dyn Fn(); 7] = [
            &|| drop(ask(&server, &["SET", &key, "text"])),
            &|| drop(ask(&server, &["SET", &key, &long])),
            &|| drop(ask(&server, &["RPUSH", &key, "item"])),
            // By an operator, or a tool that renames keys.
            &|| drop(ask(&server, &["COPY", &other, &key])),
            &|| {
                drop(ask(&server, &["COPY", &other, &key]));
                rewrite(&server, &key, "'\\251' .. string.sub(r, 2)");
            },
            &|| rewrite(&server, &key, "'\\250\\63' .. string.sub(r, 3)"),
            &|| {
                rewrite(
                    &server,
                    &key,
                    "string.sub(r, 1, 2) .. '\\6' .. string.sub(r, 4)",
                )
            },
        ];
        for (at, write) in foreign.iter().enumerate() {
            if at < 5 {
                let _ = ask(&server, &["DEL", &key]);
            }
            write();
            assert_eq!(get(&store, "key").await, None, "{at}");
            let both = store.get(NAME, &["key", "other"]).await;
            let both = both.expect("an answer");
            assert!(both[0].is_none() && both[1].is_some(), "{at}");
            let asked = hour();
            let leased = store.lease(NAME, "key", &asked).await;
            assert_eq!(leased, Ok(Leased::Granted { stale: None }), "{at}");
            let filled = store.fill(NAME, "key", asked.token, &value("new")).await;
            assert_eq!(filled, Ok(Stored::Stored));
            assert!(get(&store, "key").await.is_some(), "{at}");
            // Each step replaces it.
            let _ = ask(&server, &["DEL", &key]);
            let _ = ask(&server, &["RPUSH", &key, "item"]);
            put(&store, "key", "put").await;
            let _ = ask(&server, &["DEL", &key]);
            let _ = ask(&server, &["RPUSH", &key, "item"]);
            store.invalidate(NAME, "key", 0).await.expect("done");
            assert_eq!(ask(&server, &["EXISTS", &key]), "0");
            put(&store, "key", "put").await;
        }
        assert_eq!(connections(&server), before, "none was remade");
    }
}

/// As a later version may write it: an instance of this one goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_with_more_in_it_is_read_and_leased() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.cache();
    put(&store, "key", "body").await;
    let before = get(&store, "key").await.expect("a value");
    let key = store.key(NAME, "key");
    rewrite(
        &server,
        &key,
        "'\\250\\72' .. string.sub(r, 3, 64) .. 'xxxxxxxx' .. string.sub(r, 65)",
    );
    let same = |entry: Entry| {
        assert_eq!(
            (entry.version, entry.body),
            (before.version, before.body.clone())
        );
    };
    same(get(&store, "key").await.expect("a value"));
    let asked = Lease {
        renew: Some(before.version),
        ..hour()
    };
    let leased = store.lease(NAME, "key", &asked).await;
    let Ok(Leased::Granted { stale: Some(entry) }) = leased else {
        panic!("{leased:?}");
    };
    same(entry);
    same(get(&store, "key").await.expect("a value"));
}

/// An invalidation is never refused, and a value that is known is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_takes_every_invalidation_and_no_new_key() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let store = connect(&server.url()).await.cache();
        let (write, asked, token) = (Token::random(), hour(), Token::random());
        for key in ["put", "invalidated", "written"] {
            put(&store, key, "old").await;
        }
        store
            .begin_write(NAME, "ended", write, HOUR)
            .await
            .expect("begun");
        store.lease(NAME, "leased", &asked).await.expect("leased");
        let before = store.generations(NAME, &["tag"], HOUR).await;
        assert_eq!(server.command("CONFIG SET maxmemory 1"), "OK");

        let refused = store.put(NAME, "new", token, &value("new")).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("OOM")));
        assert!(store.lease(NAME, "new", &hour()).await.is_err());
        put(&store, "put", "new").await;
        let entry = get(&store, "put").await.expect("a value");
        assert_eq!(entry.body.as_deref(), Some(&b"new"[..]));
        for key in ["invalidated", "unknown"] {
            store.invalidate(NAME, key, HOUR).await.expect("done");
            assert_eq!(get(&store, key).await, None);
            let refused = store.lease(NAME, key, &hour()).await;
            assert!(matches!(refused, Ok(Leased::Refused { .. })), "{refused:?}");
        }
        for key in ["written", "unwritten"] {
            store
                .begin_write(NAME, key, write, HOUR)
                .await
                .expect("begun");
            assert_eq!(get(&store, key).await, None);
        }
        let new = value("new");
        let ended = store
            .end_write(NAME, "ended", write, Some(&new), HOUR)
            .await;
        assert_eq!(ended, Ok(Stored::Refused), "an invalidation is left");
        let refused = store.lease(NAME, "ended", &hour()).await;
        assert!(matches!(refused, Ok(Leased::Refused { .. })), "{refused:?}");
        let filled = store.fill(NAME, "leased", asked.token, &value("new")).await;
        assert_eq!(filled, Ok(Stored::Stored));
        store.invalidate_tag(NAME, "tag", HOUR).await.expect("done");
        let after = store.generations(NAME, &["tag"], HOUR).await;
        assert!(after.is_ok() && after != before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_has_an_end_and_a_read_writes_nothing() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.cache();
    let ttl = |key: &str| -> i64 { ask(&server, &["PTTL", key]).parse().expect("a number") };
    let hours = HOUR.cast_signed();
    put(&store, "value", "a").await;
    store.lease(NAME, "leased", &hour()).await.expect("leased");
    store
        .invalidate(NAME, "tombstone", HOUR)
        .await
        .expect("done");
    let begun = store
        .begin_write(NAME, "write", Token::random(), HOUR)
        .await;
    begun.expect("begun");
    for key in ["value", "leased", "tombstone", "write"] {
        let left = ttl(&store.key(NAME, key));
        assert!((hours - 60_000..=hours).contains(&left), "{key}: {left}");
    }
    store
        .announce(NAME)
        .expect("a list")
        .await
        .expect("entered");
    assert_eq!(store.names().await.as_deref(), Ok(&[NAME.to_owned()][..]));

    let tag = "{resilience:cache:products}:tag:fruit";
    let first = store.generations(NAME, &["fruit"], HOUR).await;
    assert!(ttl(tag) > hours, "{}", ttl(tag));
    let changes = || {
        let info = server.command("INFO persistence");
        let line = info.lines().find(|line| line.starts_with("rdb_changes"));
        line.expect("it counts").to_owned()
    };
    let before = changes();
    for keep_ms in [1, HOUR] {
        let again = store.generations(NAME, &["fruit"], keep_ms).await;
        assert_eq!(again, first);
    }
    assert!(get(&store, "value").await.is_some());
    assert_eq!(changes(), before, "read, and not written");
    // Never for a shorter time than was asked for before.
    store.invalidate_tag(NAME, "fruit", 1).await.expect("done");
    assert!(ttl(tag) > hours, "{}", ttl(tag));
    store
        .generations(NAME, &["fruit"], 10 * HOUR)
        .await
        .expect("kept");
    assert!(ttl(tag) >= 10 * hours, "{}", ttl(tag));
    for key in server.command("KEYS *").lines() {
        assert!(ttl(key) > 0, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_script_cache_costs_a_round_trip_and_no_answer() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.cache();
    for _ in 0..3 {
        put(&store, "key", "a").await;
        let leased = store.lease(NAME, "key", &hour()).await;
        assert!(matches!(leased, Ok(Leased::Fresh(_))), "{leased:?}");
        let _ = server.command("SCRIPT FLUSH");
    }
}

/// An estimate of the clock that is wrong costs a script, and no load.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_makes_no_fresh_value_be_loaded() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let store = connect(&server.url()).await.cache();
    let hour_long = Duration::from_millis(HOUR);
    let steps: [&dyn Fn(); 2] = [&|| clock.set_ahead(hour_long), &|| {
        clock.set_back(hour_long)
    }];
    for (at, step) in steps.iter().enumerate() {
        step();
        let key = format!("key {at}");
        put(&store, &key, "new").await;
        let seen = get(&store, &key).await;
        assert!(!seen.is_some_and(|entry| entry.is_fresh()), "not known yet");
        let leased = store.lease(NAME, &key, &hour()).await;
        assert!(matches!(leased, Ok(Leased::Fresh(_))), "{leased:?}");
        let seen = get(&store, &key).await.expect("a value");
        assert!(seen.is_fresh(), "the script has told the time");
    }
    // From before the clock was set back: how old it is cannot be known.
    let leased = store.lease(NAME, "key 0", &hour()).await;
    assert!(
        matches!(leased, Ok(Leased::Granted { stale: Some(_) })),
        "{leased:?}"
    );
}

/// A key that is read is found wherever its slot is.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_is_followed_by_reads() {
    let cluster = RedisCluster::start();
    let store = connect(&cluster.url()).await.cache();
    let keys = ["a", "b", "c"];
    for key in keys {
        put(&store, key, "value").await;
    }
    let at = store.key(NAME, "b");
    let moving = cluster.begin_move(&at);
    for _ in 0..3 {
        let got = store.get(NAME, &keys).await.expect("an answer");
        assert!(got.iter().all(Option::is_some), "{got:?}");
    }
    let _ = cluster.end_move(&moving);
    let got = store.get(NAME, &keys).await.expect("an answer");
    assert!(got.iter().all(Option::is_some), "{got:?}");
    let _ = cluster.move_slot(&at);
    let got = store.get(NAME, &keys).await.expect("an answer");
    assert!(got.iter().all(Option::is_some), "{got:?}");
}
