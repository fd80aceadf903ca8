use super::*;
use crate::{Reason, write_behind::WriteError};

fn reason(error: &WriteError) -> Option<Reason> {
    match error {
        WriteError::Rejected(rejected) => Some(rejected.reason()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_behind_rejects_further_keys_and_takes_them_again_when_it_has_caught_up() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.down(true);
    let carts = sinking(&store, &database)
        .shards(1)
        .max_entries(10)
        .build()
        .unwrap();
    for value in 0..10 {
        carts.write(&format!("key-{value}"), &value).await.unwrap();
    }
    let full = carts.write("more", &1).await.unwrap_err();
    assert_eq!(reason(&full), Some(Reason::SinkBehind));
    // A key that waits already takes no more room.
    carts.write("key-1", &100).await.unwrap();
    database.down(false);
    carts.flush(secs(60)).await.unwrap();
    carts.write("more", &1).await.unwrap();
    let totals = carts.snapshot().totals;
    assert_eq!((totals.stored, totals.rejected), (12, 1));
    assert_eq!(database.get("key-1"), Some(100));
}

#[tokio::test(start_paused = true)]
async fn an_oldest_entry_that_is_too_old_rejects_all_writes() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.down(true);
    let carts = sinking(&store, &database)
        .shards(1)
        .max_age(secs(60))
        .build()
        .unwrap();
    carts.write("a", &1).await.unwrap();
    tokio::time::sleep(secs(61)).await;
    let full = carts.write("a", &2).await.unwrap_err();
    assert_eq!(reason(&full), Some(Reason::SinkBehind));
    database.down(false);
    carts.flush(secs(60)).await.unwrap();
    carts.write("a", &2).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn written_through_a_full_one_calls_wait_for_the_sink_and_order_is_kept() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.slow(100);
    let carts = sinking(&store, &database)
        .shards(1)
        .batch(2, ms(100))
        .max_entries(4)
        .write_through_when_full()
        .timeout(secs(30))
        .build()
        .unwrap();
    for value in 0..4 {
        assert!(
            !carts
                .write(&format!("key-{value}"), &value)
                .await
                .unwrap()
                .sunk
        );
    }
    let through = carts.write("through", &1).await.unwrap();
    assert!(through.sunk);
    assert_eq!(database.get("through"), Some(1));
    assert_eq!(database.given("through"), [through.version]);
    carts.flush(secs(10)).await.unwrap();
    assert_eq!(database.get("key-3"), Some(3));
}

#[tokio::test(start_paused = true)]
async fn written_through_while_the_database_is_away_it_is_stored_and_at_last_rejected() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.down(true);
    let carts = sinking(&store, &database)
        .shards(1)
        .max_entries(2)
        .write_through_when_full()
        .timeout(secs(3))
        .build()
        .unwrap();
    for value in 0..4 {
        let written = carts.write(&format!("key-{value}"), &value).await.unwrap();
        assert!(!written.sunk);
    }
    let full = carts.write("more", &1).await.unwrap_err();
    assert_eq!(reason(&full), Some(Reason::SinkBehind));
    database.down(false);
    carts.flush(secs(60)).await.unwrap();
    assert_eq!(database.get("key-3"), Some(3), "it was stored");
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_when_it_is_built_or_written() {
    let store = InProcessWriteBehind::new();
    let cases = [
        (builder(&store).shards(0), "shards"),
        (builder(&store).batch(0, secs(1)), "batch"),
        (builder(&store).batch(10, secs(100_000)), "batch"),
        (builder(&store).lease(ms(99)), "lease"),
        (builder(&store).poll(Duration::ZERO), "poll"),
        (builder(&store).sink_timeout(Duration::ZERO), "sink_timeout"),
        (builder(&store).timeout(Duration::ZERO), "timeout"),
        (builder(&store).max_attempts(0), "max_attempts"),
        (builder(&store).max_entries(0), "max_entries"),
        (builder(&store).max_age(Duration::ZERO), "max_age"),
        (builder(&store).keep(secs(1)), "keep"),
    ];
    for (builder, field) in cases {
        assert_eq!(builder.build().unwrap_err().field(), field);
    }
    let nameless = WriteBehind::<u64>::builder("", store.clone()).build();
    assert_eq!(nameless.unwrap_err().field(), "name");
    let carts = builder(&store).build().unwrap();
    let refused = carts.write("", &1).await.unwrap_err();
    assert!(matches!(refused, WriteError::Invalid(_)), "{refused}");
    let refused = carts.write(&"x".repeat(1025), &1).await.unwrap_err();
    assert!(matches!(refused, WriteError::Invalid(_)), "{refused}");
    assert_eq!(carts.pending().await.unwrap().entries, 0);
}

#[test]
fn without_a_runtime_it_is_an_error_and_no_panic() {
    let store = InProcessWriteBehind::new();
    assert_eq!(builder(&store).build().unwrap_err().field(), "store");
}

#[tokio::test(start_paused = true)]
async fn another_number_of_shards_is_refused_while_there_are_entries() {
    let store = InProcessWriteBehind::new();
    let one = builder(&store).shards(1).build().unwrap();
    one.write("a", &1).await.unwrap();
    let other = builder(&store).shards(2).build().unwrap();
    let key = (0..).map(|it| format!("key-{it}"));
    let of_first =
        |key: &String| crate::write_behind::store::Shard::of_key("carts", key, 2).index == 0;
    let key = key.into_iter().find(of_first).unwrap();
    let refused = other.write(&key, &1).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Invalid(_)), "{refused}");
}
