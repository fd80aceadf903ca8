//! What PostgreSQL has of its own: commits that become visible out of order, notifications, poolers, restarts.

use std::{collections::HashMap, time::Duration};

use resilience_core::{PgOutbox, sql, sql::outbox::OutboxRelay, stream::StreamBroker};
use resilience_redis::Redis;
use resilience_tests::{
    pgbouncer::PgBouncer,
    postgres::Postgres,
    proxy::{Proxy, Weather},
    redis::RedisServer,
    until::eventually,
};
use sqlx::{
    PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::task::JoinSet;

use super::rig::{PgRig, SOON, events, quick, wait_for};
use crate::inbox::rig::{ms, shared};

const HOUR: Duration = Duration::from_secs(3_600);

async fn write(outbox: &PgOutbox<String>, pool: &PgPool, key: &str, event: &str) {
    let mut tx = sql::begin(pool).await.unwrap();
    outbox
        .publish(&mut tx, key, &event.to_owned())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn leads(relay: &OutboxRelay) {
    eventually("it has the lease", SOON, || async {
        relay.snapshot().leading
    })
    .await;
}

/// Number of sessions that wait for something, or run something, as the condition says.
async fn sessions(pool: &PgPool, condition: &'static str) -> i64 {
    let count = format!("SELECT count(*) FROM pg_stat_activity WHERE {condition}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(count))
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_neither_waited_for_nor_skipped() {
    let rig = PgRig::new("outbox_late").await;
    let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
        .build()
        .unwrap();
    let mut late = sql::begin(&rig.pool).await.unwrap();
    rig.outbox
        .publish(&mut late, "a", &"late".to_owned())
        .await
        .unwrap();
    // With higher numbers, and committed before.
    for (number, event) in ["one", "two", "three"].into_iter().enumerate() {
        write(&rig.outbox, &rig.pool, "b", event).await;
        wait_for(&rig.broker, number + 1).await;
    }
    late.commit().await.unwrap();
    assert_eq!(
        wait_for(&rig.broker, 4).await,
        ["one", "two", "three", "late"]
    );
    assert_eq!(relay.snapshot().totals.duplicates, 0);
}

#[tokio::test]
async fn events_of_a_key_are_in_the_order_of_commits_while_writers_and_relays_compete() {
    const WRITERS: usize = 8;
    const EACH: usize = 40;
    const KEYS: usize = 3;
    let rig = PgRig::new("outbox_order").await;
    let accounts = "CREATE TABLE accounts (key text PRIMARY KEY, version bigint NOT NULL)";
    sqlx::raw_sql(accounts).execute(&rig.pool).await.unwrap();
    for key in 0..KEYS {
        let account = sqlx::query("INSERT INTO accounts VALUES ($1, 0)").bind(key.to_string());
        account.execute(&rig.pool).await.unwrap();
    }
    let relay = || {
        quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
            .batch(7)
            .build()
            .unwrap()
    };
    let relays = [relay(), relay()];
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (outbox, pool) = (rig.outbox.clone(), rig.pool.clone());
        writers.spawn(async move {
            for number in 0..EACH {
                let key = ((writer + number) % KEYS).to_string();
                let mut tx = sql::begin(&pool).await.unwrap();
                let next =
                    "UPDATE accounts SET version = version + 1 WHERE key = $1 RETURNING version";
                let version: i64 = sqlx::query_scalar(next)
                    .bind(&key)
                    .fetch_one(&mut *tx)
                    .await
                    .unwrap();
                outbox
                    .publish(&mut tx, &key, &format!("{key} {version}"))
                    .await
                    .unwrap();
                if (writer + number) % 5 == 0 {
                    tx.rollback().await.unwrap();
                } else {
                    tx.commit().await.unwrap();
                }
            }
        });
    }
    // Another relay goes on in the middle of it.
    wait_for(&rig.broker, 30).await;
    let leader = relays.iter().find(|it| it.snapshot().leading);
    leader.expect("one leads").shutdown(SOON).await.unwrap();
    writers.join_all().await;
    let total: i64 = sqlx::query_scalar("SELECT sum(version)::bigint FROM accounts")
        .fetch_one(&rig.pool)
        .await
        .unwrap();
    let published = wait_for(&rig.broker, total as usize).await;
    let mut versions: HashMap<String, u64> = HashMap::new();
    for event in &published {
        let (key, version) = event.split_once(' ').unwrap();
        let last = versions.entry(key.to_owned()).or_default();
        *last += 1;
        assert_eq!(version, last.to_string(), "of {key}");
    }
    assert_eq!(published.len(), total as usize);
}

#[tokio::test]
async fn with_locked_keys_a_publish_waits_for_the_transaction_that_published_with_its_key() {
    let rig = PgRig::new("outbox_locks").await;
    let outbox = PgOutbox::<String>::builder("orders_locked")
        .stream("orders")
        .lock_keys();
    let outbox = outbox.build().unwrap();
    let mut first = sql::begin(&rig.pool).await.unwrap();
    outbox
        .publish(&mut first, "a", &"first".to_owned())
        .await
        .unwrap();
    // Of another key, and in any order of keys.
    let mut other = sql::begin(&rig.pool).await.unwrap();
    let keys = [
        outbox.envelope("c"),
        outbox.envelope("b"),
        outbox.envelope(""),
    ];
    let event = "other".to_owned();
    outbox
        .publish_all(&mut other, keys.map(|key| (key, &event)))
        .await
        .unwrap();
    other.commit().await.unwrap();
    let second = tokio::spawn({
        let (outbox, pool) = (outbox.clone(), rig.pool.clone());
        async move { write(&outbox, &pool, "a", "second").await }
    });
    let waits = "wait_event = 'advisory' AND query LIKE '%pg_advisory_xact_lock(hash)%'";
    eventually("it waits for the lock", SOON, || async {
        sessions(&rig.pool, waits).await > 0
    })
    .await;
    outbox
        .publish(&mut first, "a", &"first again".to_owned())
        .await
        .unwrap();
    first.commit().await.unwrap();
    second.await.unwrap();
    let _relay = quick(outbox.relay(&rig.pool, rig.broker.clone()))
        .build()
        .unwrap();
    let published = wait_for(&rig.broker, 6).await;
    let of_key: Vec<_> = published.iter().filter(|it| *it != "other").collect();
    assert_eq!(of_key, ["first", "first again", "second"]);
}

#[tokio::test]
async fn a_commit_of_any_process_wakes_the_relay() {
    let rig = PgRig::new("outbox_notified").await;
    let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
        .poll(HOUR)
        .build()
        .unwrap();
    leads(&relay).await;
    // Another process: its handle knows nothing of the relay.
    let outbox = PgOutbox::<String>::builder(rig.outbox.name())
        .stream("orders")
        .build()
        .unwrap();
    let listens = "query LIKE 'LISTEN%resilience_outbox%'";
    eventually("it listens", SOON, || async {
        sessions(&rig.pool, listens).await > 0
    })
    .await;
    for number in 0..5 {
        write(&outbox, &rig.other_pool(), "a", &number.to_string()).await;
        wait_for(&rig.broker, number + 1).await;
    }
}

#[tokio::test]
async fn a_listener_whose_session_was_ended_listens_again_and_misses_nothing() {
    let rig = PgRig::new("outbox_relistens").await;
    let named = |name: &str| {
        let options: PgConnectOptions = shared().url().parse().unwrap();
        PgPoolOptions::new()
            .max_connections(1)
            .connect_lazy_with(options.application_name(name))
    };
    let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone())).poll(HOUR);
    let relay = relay.listen_on(named("outbox_listener")).build().unwrap();
    leads(&relay).await;
    let outbox = PgOutbox::<String>::builder(rig.outbox.name())
        .stream("orders")
        .build()
        .unwrap();
    let listens = "application_name = 'outbox_listener' AND query LIKE 'LISTEN%'";
    for number in 0..3 {
        eventually("it listens", SOON, || async {
            sessions(&rig.pool, listens).await == 1
        })
        .await;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox_listener'";
        sqlx::raw_sql(end).execute(&rig.pool).await.unwrap();
        // Either a notification wakes it, or it listens again and reads the table.
        write(&outbox, &rig.pool, "a", &number.to_string()).await;
        wait_for(&rig.broker, number + 1).await;
    }
}

#[tokio::test]
async fn with_the_line_of_the_listener_cut_a_poll_finds_what_was_committed() {
    let rig = PgRig::new("outbox_cut").await;
    let mut proxy = Proxy::to(shared().address()).await.unwrap();
    let options: PgConnectOptions = shared().url().parse().unwrap();
    let line = PgPoolOptions::new().max_connections(1);
    let line = line.connect_lazy_with(options.port(proxy.address().port()));
    let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone())).listen_on(line);
    let relay = relay.build().unwrap();
    leads(&relay).await;
    let outbox = PgOutbox::<String>::builder(rig.outbox.name())
        .stream("orders")
        .build()
        .unwrap();
    for (number, weather) in [Weather::Refuse, Weather::Fine, Weather::Blackhole]
        .into_iter()
        .enumerate()
    {
        proxy.set(weather).await;
        write(&outbox, &rig.pool, "a", &number.to_string()).await;
        wait_for(&rig.broker, number + 1).await;
    }
}

#[tokio::test]
async fn a_database_that_is_killed_and_comes_back_loses_no_event_and_repeats_none() {
    let server = Postgres::start();
    let rig = PgRig::on(&server, "outbox_restarted").await;
    let relays = [(); 2].map(|()| {
        quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
            .batch(3)
            .build()
            .unwrap()
    });
    let mut written = Vec::new();
    for round in 0..3 {
        for number in 0..20 {
            let event = format!("{round} {number}");
            write(&rig.outbox, &rig.pool, "a", &event).await;
            written.push(event);
        }
        let server = &server;
        server.kill();
        eventually("it is noticed", SOON, || async {
            relays.iter().any(|it| !it.snapshot().database_available)
        })
        .await;
        server.start_again();
        eventually("the pool has connections again", SOON, || async {
            sqlx::raw_sql("SELECT 1").execute(&rig.pool).await.is_ok()
        })
        .await;
    }
    assert_eq!(wait_for(&rig.broker, written.len()).await, written);
    eventually(
        "all are deleted, and the database is said to be there",
        SOON,
        || async {
            let left = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox");
            let available = relays.iter().all(|it| it.snapshot().database_available);
            available && left.fetch_one(&rig.pool).await.is_ok_and(|left| left == 0)
        },
    )
    .await;
    assert_eq!(events(&rig.broker).await, written);
}

#[tokio::test]
async fn the_outbox_works_through_a_pooler_that_changes_the_connection_after_each_transaction() {
    const CLIENTS: usize = 4;
    const CALLS: usize = 25;
    let bouncer = PgBouncer::start(shared(), 2);
    let client = |connections| {
        let options: PgConnectOptions = bouncer.url().parse().unwrap();
        PgPoolOptions::new()
            .max_connections(connections)
            .connect_lazy_with(options)
    };
    let outbox = PgOutbox::<String>::builder("bounced")
        .stream("orders")
        .table("bounced_outbox");
    let outbox = outbox.lock_keys().build().unwrap();
    let setup = client(1);
    outbox.migrate(&setup).await.unwrap();
    let broker = resilience_core::stream::InProcessStreams::new();
    let direct = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy(&shared().url())
        .unwrap();
    let relays = [
        quick(outbox.relay(&client(2), broker.clone()))
            .listen(false)
            .build()
            .unwrap(),
        quick(outbox.relay(&client(2), broker.clone()))
            .listen_on(direct)
            .build()
            .unwrap(),
    ];
    let mut calls = JoinSet::new();
    for number in 0..CLIENTS {
        let (outbox, pool) = (outbox.clone(), client(1));
        calls.spawn(async move {
            for call in 0..CALLS {
                write(
                    &outbox,
                    &pool,
                    &number.to_string(),
                    &format!("{number} {call}"),
                )
                .await;
            }
        });
    }
    calls.join_all().await;
    let published = wait_for(&broker, CLIENTS * CALLS).await;
    for number in 0..CLIENTS {
        let of_key = published
            .iter()
            .filter(|it| it.starts_with(&format!("{number} ")));
        let expected: Vec<_> = (0..CALLS).map(|call| format!("{number} {call}")).collect();
        assert!(of_key.eq(&expected));
    }
    let dead: u64 = relays.iter().map(|it| it.snapshot().totals.dead).sum();
    assert_eq!(dead, 0);
    assert!(outbox.dead_letters(&setup, 1).await.unwrap().is_empty());
    // On each of the server's connections.
    let named = || async {
        let mut tx = sql::begin(&client(1)).await.unwrap();
        let count = sqlx::raw_sql("SELECT count(*) FROM pg_prepared_statements");
        let count = count.fetch_one(&mut *tx).await.unwrap();
        (tx, count.get::<i64, _>(0))
    };
    let (one, other) = tokio::join!(named(), named());
    assert_eq!((one.1, other.1), (0, 0));
}

#[tokio::test]
async fn events_are_stored_once_in_redis_while_its_line_is_cut() {
    const EVENTS: usize = 300;
    let rig = PgRig::new("outbox_redis").await;
    let server = RedisServer::start();
    let mut proxy = Proxy::to(server.addr().parse().unwrap()).await.unwrap();
    let through = Redis::connect(&format!("redis://{}", proxy.address())).unwrap();
    let relay = quick(rig.outbox.relay(&rig.pool, through.streams()))
        .batch(10)
        .build()
        .unwrap();
    let written: Vec<_> = (0..EVENTS).map(|number| number.to_string()).collect();
    for (number, event) in written.iter().enumerate() {
        write(&rig.outbox, &rig.pool, "a", event).await;
        if number % 50 == 25 {
            proxy.set(Weather::Reset).await;
            proxy.set(Weather::Fine).await;
        }
    }
    let direct = Redis::connect(&server.url()).unwrap().streams();
    eventually("it is connected", SOON, || async {
        direct.state("orders").await.is_ok()
    })
    .await;
    assert_eq!(wait_for(&direct, EVENTS).await, written);
    relay.shutdown(SOON).await.unwrap();
    assert_eq!(events(&direct).await, written);
}

#[tokio::test]
async fn publishes_that_are_given_up_lose_no_write_of_another_route_and_publish_what_was_committed()
{
    const CALLS: usize = 150;
    let rig = PgRig::new("outbox_hang_ups").await;
    let options = (*rig.pool.connect_options()).clone();
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy_with(options);
    for call in 0..CALLS {
        let order = async {
            let mut tx = sql::begin(&pool).await.unwrap();
            let effect =
                sqlx::query("INSERT INTO effects VALUES ($1)").bind(format!("order {call}"));
            effect.execute(&mut *tx).await.unwrap();
            rig.outbox
                .publish(&mut tx, "a", &format!("order {call}"))
                .await
                .unwrap();
            tx.commit().await.unwrap();
        };
        let patience = Duration::from_micros(fastrand::u64(0..3_000));
        let _ = tokio::time::timeout(patience, order).await;
        let other = sqlx::query("INSERT INTO effects VALUES ($1)").bind(format!("other {call}"));
        other.execute(&pool).await.unwrap();
    }
    let texts = |like: &'static str| {
        let texts = sqlx::query_scalar::<_, String>(
            "SELECT what FROM effects WHERE what LIKE $1 ORDER BY what",
        );
        texts.bind(like).fetch_all(&rig.pool)
    };
    // Commits that were given up go on.
    pool.close().await;
    assert_eq!(texts("other%").await.unwrap().len(), CALLS);
    let committed = texts("order%").await.unwrap();
    let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
        .build()
        .unwrap();
    let mut published = wait_for(&rig.broker, committed.len()).await;
    relay.shutdown(ms(20_000)).await.unwrap();
    published.sort();
    assert_eq!(published, committed);
}
