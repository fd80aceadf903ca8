//! What happens to an outbox.

use std::{any::Any, time::Duration};

use resilience_core::{SqliteOutbox, retry::Backoff, stream::InProcessStreams};
use resilience_redis::Redis;
use resilience_tests::until::eventually;
use sqlx::{SqlitePool, sqlite::SqlitePoolOptions};
use tracing::Level;

use super::events::listen;

const SOON: Duration = Duration::from_secs(20);

async fn database() -> SqlitePool {
    let pool = SqlitePoolOptions::new().max_connections(1);
    pool.connect("sqlite::memory:").await.unwrap()
}

async fn publish(outbox: &SqliteOutbox<String>, pool: &SqlitePool) {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    outbox
        .publish(&mut tx, "key", &"event".to_owned())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    outbox.wake();
}

/// Events that are published, and one that cannot be; a lease that is lost; and another outbox of that name whose broker is away, for as
/// long as what is returned is kept.
pub(crate) async fn everything_happens_to_an_outbox(name: &'static str) -> impl Any + use<> {
    let pool = database().await;
    let outbox = SqliteOutbox::builder(name).build().unwrap();
    outbox.migrate(&pool).await.unwrap();
    let relay = outbox.relay(&pool, InProcessStreams::new());
    let relay = relay.poll(Duration::from_millis(20)).build().unwrap();
    publish(&outbox, &pool).await;
    eventually("it is published", SOON, || async {
        relay.snapshot().totals.stored == 1
    })
    .await;
    let lost = "UPDATE outbox_relays SET fence = fence + 1";
    sqlx::query(lost).execute(&pool).await.unwrap();
    let bad = "INSERT INTO outbox (name, format, id, stream, envelope, body) VALUES ($1, 1, 'bad', 's', '[', '')";
    sqlx::query(bad).bind(name).execute(&pool).await.unwrap();
    eventually("all that can be told was told", SOON, || async {
        let snapshot = relay.snapshot();
        snapshot.totals.leases_lost == 1 && snapshot.dead_letters == 1
    })
    .await;

    let other_pool = database().await;
    let other = SqliteOutbox::builder(name).build().unwrap();
    other.migrate(&other_pool).await.unwrap();
    let away = Redis::connect("redis://127.0.0.1:1").unwrap();
    let waiting = other.relay(&other_pool, away.streams());
    let waiting = waiting
        .backoff(Backoff::fixed(Duration::from_millis(20)))
        .build()
        .unwrap();
    publish(&other, &other_pool).await;
    eventually("it waits", SOON, || async {
        let snapshot = waiting.snapshot();
        snapshot.waiting == 1 && !snapshot.broker_available
    })
    .await;
    ((pool, outbox, relay), (other_pool, other, waiting, away))
}

#[tokio::test]
async fn a_relay_tells_what_it_does() {
    let (recorder, _default) = listen();
    let _kept = everything_happens_to_an_outbox("telemetry.outbox").await;
    let seen = recorder.take();
    for (level, message) in [
        (Level::INFO, "outbox relay leads"),
        (Level::WARN, "outbox relay lost its lease"),
        (Level::WARN, "event became a dead letter"),
        (Level::WARN, "store unavailable"),
    ] {
        let told = seen.iter().any(|event| {
            let is = |key: &str, value: &str| event.fields.get(key).is_some_and(|it| it == value);
            event.level == level
                && is("message", message)
                && is("pattern", "stream")
                && is("name", "telemetry.outbox")
        });
        assert!(told, "{level} {message} among {seen:#?}");
    }
    let series = resilience_core::telemetry::series();
    let of = |metric: &str| -> u64 {
        let of_name = series
            .iter()
            .filter(|it| it.metric.name == metric && &*it.name == "telemetry.outbox");
        of_name.map(|it| it.value).sum()
    };
    assert_eq!(of("resilience.outbox.written"), 2);
    assert_eq!(of("resilience.outbox.takeovers"), 3);
    assert_eq!(of("resilience.outbox.leading"), 2);
    assert_eq!(of("resilience.outbox.waiting"), 1);
    assert_eq!(of("resilience.outbox.dead_letters"), 1);
}
