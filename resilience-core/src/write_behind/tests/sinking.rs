use super::*;
use crate::{
    backoff::Backoff,
    write_behind::{FlushError, WriteError},
};

#[tokio::test(start_paused = true)]
async fn what_was_written_is_read_at_once_and_sunk_soon() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database).build().unwrap();
    let first = carts.write("a", &1).await.unwrap();
    assert!(!first.sunk);
    assert_eq!(carts.read("a").await.unwrap().unwrap().value(), Some(&1));
    assert_eq!(database.get("a"), None);
    until("it is sunk", async || database.get("a") == Some(1)).await;
    until("it is not dirty", async || {
        carts.read("a").await.unwrap().is_none()
    })
    .await;
    let totals = carts.snapshot().totals;
    assert_eq!((totals.stored, totals.sunk, totals.dead), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn of_several_values_the_last_one_is_sunk_once() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database).build().unwrap();
    for value in 1..=50 {
        carts.write("a", &value).await.unwrap();
    }
    carts.flush(secs(10)).await.unwrap();
    assert_eq!(database.get("a"), Some(50));
    assert_eq!(database.given("a").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_during_the_sink_is_sunk_after_it_in_order() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.slow(1_000);
    let carts = sinking(&store, &database).build().unwrap();
    carts.write("a", &1).await.unwrap();
    until("it is being sunk", async || database.calls() == 1).await;
    let second = carts.write("a", &2).await.unwrap();
    assert_eq!(carts.read("a").await.unwrap().unwrap().value(), Some(&2));
    until("the first is sunk", async || database.get("a") == Some(1)).await;
    assert_eq!(
        carts.read("a").await.unwrap().unwrap().version(),
        second.version,
        "still dirty"
    );
    until("the second is sunk", async || database.get("a") == Some(2)).await;
    let given = database.given("a");
    assert!(given.len() == 2 && given.is_sorted(), "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_read_and_sunk_as_one() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database).build().unwrap();
    carts.write("a", &1).await.unwrap();
    carts.flush(secs(10)).await.unwrap();
    carts.delete("a").await.unwrap();
    assert_eq!(carts.read("a").await.unwrap().unwrap().value(), None);
    carts.flush(secs(10)).await.unwrap();
    assert_eq!((database.get("a"), database.given("a").len()), (None, 2));
}

#[tokio::test(start_paused = true)]
async fn versions_rise_after_a_key_was_sunk_and_after_a_flush_of_the_store() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database).build().unwrap();
    let mut last = 0;
    for value in 0..20 {
        let version = carts.write("a", &value).await.unwrap().version;
        assert!(version > last, "{value}");
        last = version;
        match value % 4 {
            1 => carts.flush(secs(10)).await.unwrap(),
            3 => store.flush(),
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_writes_at_once_are_sunk_in_batches() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database)
        .batch(50, ms(100))
        .shards(1)
        .build()
        .unwrap();
    let keys: Vec<String> = (0..200).map(|it| format!("key-{it}")).collect();
    let value = 7;
    let mut changes: Vec<_> = keys
        .iter()
        .map(|key| (key.as_str(), Some(&value)))
        .collect();
    changes.push(("key-3", None));
    let all = carts.write_all(changes).await.unwrap();
    assert_eq!(all.len(), 201);
    assert_eq!(all[3], all[200], "the last change of a key counts");
    carts.flush(secs(10)).await.unwrap();
    assert_eq!(
        (
            database.calls(),
            database.get("key-3"),
            database.get("key-4")
        ),
        (4, None, Some(7))
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_does_not_keep_others_and_is_a_dead_letter_at_last() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database)
        .shards(1)
        .max_attempts(3)
        .backoff(Backoff::fixed(secs(5)))
        .build()
        .unwrap();
    for value in 0..20 {
        carts.write(&format!("key-{value}"), &value).await.unwrap();
    }
    carts.write("bad", &POISON).await.unwrap();
    until("the others are sunk", async || {
        carts.snapshot().totals.sunk == 20
    })
    .await;
    assert_eq!(carts.snapshot().totals.dead, 0);
    until("it is dead", async || carts.snapshot().totals.dead == 1).await;
    let totals = carts.snapshot().totals;
    assert_eq!((totals.retried, totals.pauses), (2, 0));
    let dead = carts.dead(10).await.unwrap();
    assert_eq!(
        (&*dead[0].key, dead[0].attempts, &*dead[0].reason),
        ("bad", 3, "Refused")
    );
    assert_eq!(dead[0].value, Ok(Some(POISON)));
    assert!(carts.read("bad").await.unwrap().is_none());
    assert_eq!(carts.pending().await.unwrap().dead, 1);

    // Redriven, it is refused again; written, it is well.
    assert_eq!(carts.redrive(["bad", "unknown"]).await, Ok(1));
    assert_eq!(
        carts.read("bad").await.unwrap().unwrap().value(),
        Some(&POISON)
    );
    until("it is dead again", async || {
        carts.snapshot().totals.dead == 2
    })
    .await;
    carts.write("bad", &1).await.unwrap();
    assert!(carts.dead(10).await.unwrap().is_empty());
    carts.flush(secs(60)).await.unwrap();
    assert_eq!(database.get("bad"), Some(1));
    assert_eq!(carts.discard(["bad"]).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_is_waited_for_and_no_key_is_blamed() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.down(true);
    let carts = sinking(&store, &database)
        .shards(1)
        .max_attempts(2)
        .build()
        .unwrap();
    for value in 0..50 {
        carts.write(&format!("key-{value}"), &value).await.unwrap();
    }
    until("it pauses for long", async || {
        carts.snapshot().totals.pauses > 30
    })
    .await;
    assert_eq!(carts.pending().await.unwrap().paused_shards, 1);
    let before = database.calls();
    database.down(false);
    carts.flush(secs(120)).await.unwrap();
    let totals = carts.snapshot().totals;
    assert_eq!((totals.sunk, totals.retried, totals.dead), (50, 0, 0));
    assert!(before < 30 * 13 + 20, "{before} calls: not a storm");
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_or_hangs_is_a_failure_and_the_next_write_is_sunk() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let seen = database.clone();
    let carts = builder(&store)
        .shards(1)
        .sink_timeout(secs(2))
        .sink(move |batch: Batch<u64>| {
            let database = seen.clone();
            async move {
                match batch.iter().next().and_then(|it| it.value()) {
                    Some(1) => panic!("a sink that panics"),
                    Some(2) => std::future::pending().await,
                    _ => database.write(batch).await,
                }
            }
        })
        .build()
        .unwrap();
    carts.write("a", &1).await.unwrap();
    until("it was refused", async || {
        carts.snapshot().totals.retried > 0
    })
    .await;
    carts.write("a", &2).await.unwrap();
    until("it was cut off", async || {
        carts.snapshot().totals.pauses > 0
    })
    .await;
    carts.write("a", &3).await.unwrap();
    until("it is sunk", async || database.get("a") == Some(3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_died_in_the_sink_is_followed_by_another_when_its_lease_ends() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let hanging = Database::default();
    hanging.slow(3_600_000);
    // Its runtime ends with it: as a process that is killed.
    let runtime = tokio::runtime::Builder::new_current_thread();
    drop(runtime);
    let dying = sinking(&store, &hanging).lease(secs(15)).build().unwrap();
    dying.write("a", &1).await.unwrap();
    until("it is being sunk", async || hanging.calls() == 1).await;
    let living = sinking(&store, &database).lease(secs(15)).build().unwrap();
    // The first one renews its lease for as long as it lives.
    tokio::time::sleep(secs(100)).await;
    assert_eq!(database.calls(), 0);
    assert_eq!(dying.snapshot().totals.leases_lost, 0);
    store.flush();
    let second = living.write("a", &2).await.unwrap();
    until("it is sunk", async || database.get("a") == Some(2)).await;
    assert!(database.given("a") == [second.version]);
    until("the first one knows", async || {
        dying.snapshot().totals.leases_lost == 1
    })
    .await;
    assert_eq!(hanging.get("a"), None, "its call of the sink was dropped");
}

#[tokio::test(start_paused = true)]
async fn a_handle_without_a_sink_writes_for_another_process() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let writer = builder(&store).build().unwrap();
    writer.write("a", &1).await.unwrap();
    assert_eq!(writer.flush(secs(5)).await, Err(FlushError::Entries(1)));
    let sinker = sinking(&store, &database).build().unwrap();
    writer.flush(secs(5)).await.unwrap();
    assert_eq!(database.get("a"), Some(1));
    assert!(!writer.snapshot().sinks && sinker.snapshot().sinks);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_sinks_what_waits_and_rejects_what_comes() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database)
        .batch(100, secs(3_600))
        .build()
        .unwrap();
    for value in 0..20 {
        carts.write(&format!("key-{value}"), &value).await.unwrap();
    }
    tokio::time::sleep(secs(60)).await;
    assert_eq!(database.calls(), 0, "batches wait for more");
    carts.shutdown(secs(10)).await.unwrap();
    assert_eq!(carts.pending().await.unwrap().entries, 0);
    assert_eq!(database.get("key-19"), Some(19));
    let rejected = carts.write("late", &1).await.unwrap_err();
    assert!(
        matches!(rejected, WriteError::Rejected(it) if it.reason() == crate::Reason::ShuttingDown)
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_in_time_while_the_database_hangs_and_gives_the_batch_back() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.slow(3_600_000);
    let carts = sinking(&store, &database).shards(1).build().unwrap();
    carts.write("a", &1).await.unwrap();
    until("it is being sunk", async || database.calls() == 1).await;
    carts.shutdown(secs(10)).await.unwrap();
    assert_eq!(carts.pending().await.unwrap().entries, 1, "it is kept");
    let other = Database::default();
    let next = sinking(&store, &other).shards(1).build().unwrap();
    let begun = tokio::time::Instant::now();
    next.flush(secs(60)).await.unwrap();
    assert!(begun.elapsed() < secs(2), "no lease was left");
    assert_eq!(other.get("a"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_handle_sinks_what_waits() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let carts = sinking(&store, &database)
        .batch(100, secs(3_600))
        .build()
        .unwrap();
    carts.write("a", &1).await.unwrap();
    drop(carts);
    until("it is sunk", async || database.get("a") == Some(1)).await;
}
