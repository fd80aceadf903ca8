use super::{unreliable::Unreliable, *};
use crate::write_behind::WriteError;

fn over(store: &Unreliable, database: &Database) -> WriteBehindBuilder<u64> {
    let database = database.clone();
    WriteBehind::builder("carts", store.clone()).sink_with(verdicts(), move |batch| {
        let database = database.clone();
        async move { database.write(batch).await }
    })
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_stored_once_also_when_it_was_sunk_meanwhile() {
    let (inner, database) = (InProcessWriteBehind::new(), Database::default());
    let store = Unreliable::over(inner.clone());
    let carts = WriteBehind::<u64>::builder("carts", store.clone())
        .build()
        .unwrap();
    let sinker = sinking(&inner, &database)
        .batch(1, Duration::ZERO)
        .poll(ms(1))
        .build()
        .unwrap();
    // Between the attempts of the first write, it is sunk, and another write is.
    store.lose(2);
    let first = carts.write("a", &1);
    let second = async {
        until("the first is sunk", async || database.get("a") == Some(1)).await;
        let other = builder(&inner).build().unwrap();
        other.write("a", &2).await.unwrap()
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.unwrap().version < second.version);
    sinker.flush(secs(10)).await.unwrap();
    assert_eq!(database.get("a"), Some(2));
    assert_eq!(database.given("a").len(), 2);
    assert_eq!(carts.snapshot().totals.repeated, 1);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_a_write_says_so_and_without_a_store_it_is_refused() {
    let store = Unreliable::new();
    let carts = WriteBehind::<u64>::builder("carts", store.clone())
        .build()
        .unwrap();
    store.hang(true);
    let begun = tokio::time::Instant::now();
    let unknown = carts.write("a", &1).await.unwrap_err();
    assert!(matches!(unknown, WriteError::Unknown(_)), "{unknown}");
    assert!(begun.elapsed() <= secs(7));
    // Known to be away: at once, and nothing was written.
    let begun = tokio::time::Instant::now();
    let rejected = carts.write("a", &1).await.unwrap_err();
    assert!(
        matches!(rejected, WriteError::Rejected(it) if it.reason() == crate::Reason::StoreUnreachable)
    );
    assert_eq!(begun.elapsed(), Duration::ZERO);
    store.hang(false);
    until("it is back", async || carts.write("a", &2).await.is_ok()).await;
    let refusing = Unreliable::new();
    let carts = WriteBehind::<u64>::builder("carts", refusing.clone())
        .build()
        .unwrap();
    refusing.refuse(true);
    let refused = carts.write("a", &1).await.unwrap_err();
    assert!(matches!(refused, WriteError::Refused(_)), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_and_comes_loses_nothing_that_was_acknowledged() {
    let (store, database) = (Unreliable::new(), Database::default());
    let carts = over(&store, &database).shards(2).build().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..30 {
        store.lose(round % 3);
        store.refuse(round % 7 == 6);
        let key = format!("key-{}", round % 10);
        let value = round as u64;
        if carts.write(&key, &value).await.is_ok() {
            acknowledged.push((key, value));
        }
        tokio::time::sleep(ms(300)).await;
    }
    store.refuse(false);
    until("all are sunk", async || carts.flush(secs(60)).await.is_ok()).await;
    for key in (0..10).map(|it| format!("key-{it}")) {
        let last = acknowledged.iter().rev().find(|it| it.0 == key);
        let expected = last.map(|it| it.1);
        // What was not acknowledged may be there, if it is later.
        assert!(database.get(&key) >= expected, "{key}");
        let given = database.given(&key);
        assert!(given.is_sorted(), "{given:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_answer_is_lost_is_repeated_and_counts_once() {
    let (store, database) = (Unreliable::new(), Database::default());
    let carts = over(&store, &database).build().unwrap();
    carts.write("a", &1).await.unwrap();
    store.lose(2);
    until("it is sunk", async || carts.snapshot().totals.sunk == 1).await;
    carts.flush(secs(10)).await.unwrap();
    assert_eq!(
        (database.calls(), carts.snapshot().totals.leases_lost),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_takes_the_batch_from_a_process_that_cannot_renew_its_lease() {
    let (store, database) = (Unreliable::new(), Database::default());
    database.slow(60_000);
    let carts = over(&store, &database)
        .shards(1)
        .lease(secs(6))
        .sink_timeout(secs(100))
        .build()
        .unwrap();
    carts.write("a", &1).await.unwrap();
    until("it is being sunk", async || database.calls() == 1).await;
    let begun = tokio::time::Instant::now();
    store.hang(true);
    until("it gives up", async || {
        carts.snapshot().totals.leases_lost == 1
    })
    .await;
    assert!(begun.elapsed() < secs(6), "before the lease ends");
    assert_eq!(database.get("a"), None, "the call of the sink was dropped");
    database.slow(0);
    store.hang(false);
    until("it is sunk", async || database.get("a") == Some(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_its_entries_is_noticed_once() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    database.down(true);
    let carts = sinking(&store, &database).shards(1).build().unwrap();
    carts.write("a", &1).await.unwrap();
    until("it pauses", async || carts.snapshot().totals.pauses > 0).await;
    store.flush();
    until("it is noticed", async || {
        carts.snapshot().totals.losses == 1
    })
    .await;
    tokio::time::sleep(secs(100)).await;
    assert_eq!(carts.snapshot().totals.losses, 1);
    assert_eq!(carts.snapshot().entries, 0);
    // A writer notices as well.
    let writer = builder(&store).shards(1).build().unwrap();
    writer.write("a", &1).await.unwrap();
    store.flush();
    writer.write("a", &2).await.unwrap();
    assert_eq!(writer.snapshot().totals.losses, 1);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_read_is_set_aside_and_others_are_sunk() {
    let (store, database) = (InProcessWriteBehind::new(), Database::default());
    let other = WriteBehind::<String>::builder("carts", store.clone())
        .build()
        .unwrap();
    other.write("bad", &"text".to_owned()).await.unwrap();
    let carts = sinking(&store, &database).max_attempts(2).build().unwrap();
    carts.write("good", &1).await.unwrap();
    until("it is dead", async || carts.snapshot().totals.dead == 1).await;
    assert_eq!(database.get("good"), Some(1));
    let dead = carts.dead(10).await.unwrap();
    assert!(dead[0].reason.contains("cannot be decoded") && dead[0].value.is_err());
}
