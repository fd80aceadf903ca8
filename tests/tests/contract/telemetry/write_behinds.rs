//! What happens to a write-behind.

use std::{any::Any, time::Duration};

use resilience_core::{
    Verdict, WriteBehind, classify,
    retry::Backoff,
    write_behind::{Batch, InProcessWriteBehind, WriteBehindBuilder, WriteBehindStore},
};
use resilience_redis::Redis;
use resilience_tests::until::eventually;

const SOON: Duration = Duration::from_secs(20);

fn builder(name: &'static str, store: impl WriteBehindStore) -> WriteBehindBuilder<String> {
    let verdict = classify::results(|result: Result<&(), &String>| match result {
        Ok(()) => Verdict::Success,
        Err(error) if error == "away" => Verdict::transient(),
        Err(_) => Verdict::Permanent,
    });
    let sink = |batch: Batch<String>| async move {
        for change in &batch {
            match change.value().map(String::as_str) {
                Some("hang") => std::future::pending().await,
                Some("fine") | None => {}
                Some(other) => return Err(other.to_owned()),
            }
        }
        Ok(())
    };
    WriteBehind::builder(name, store)
        .sink_with(verdict, sink)
        .shards(1)
        .max_attempts(1)
        .batch(10, Duration::from_millis(10))
        .poll(Duration::from_millis(10))
        .lease(Duration::from_millis(100))
        .backoff(Backoff::fixed(Duration::from_millis(20)))
}

/// Changes that are sunk, refused, paused for and lost; one that is being sunk, and another handle whose store is away, for as long as
/// what is returned is kept.
pub(crate) async fn everything_happens_to_a_write_behind(name: &'static str) -> impl Any + use<> {
    let store = InProcessWriteBehind::new();
    let values = builder(name, store.clone()).build().unwrap();
    let write = async |key: &str, value: &str| {
        values.write(key, &value.to_owned()).await.unwrap();
    };
    write("a", "away").await;
    eventually("it pauses", SOON, || async {
        values.snapshot().totals.pauses > 0
    })
    .await;
    write("a", "fine").await;
    values.flush(SOON).await.unwrap();
    write("b", "hang").await;
    eventually("it is being sunk", SOON, || async {
        values.snapshot().totals.sinking == 1
    })
    .await;
    store.flush();
    eventually("the loss is noticed", SOON, || async {
        let totals = values.snapshot().totals;
        totals.leases_lost == 1 && totals.losses == 1
    })
    .await;
    write("c", "bad").await;
    eventually("it is set aside", SOON, || async {
        values.snapshot().totals.dead == 1
    })
    .await;
    write("d", "hang").await;
    eventually("it is being sunk", SOON, || async {
        let snapshot = values.snapshot();
        snapshot.totals.sinking == 1 && snapshot.dead == 1 && !snapshot.oldest.is_zero()
    })
    .await;
    let away = Redis::connect("redis://127.0.0.1:1").unwrap();
    let away = builder(name, away.write_behind()).build().unwrap();
    eventually("its store is away", SOON, || async {
        let snapshot = away.snapshot();
        snapshot.totals.store_errors > 0 && !snapshot.available
    })
    .await;
    (values, away)
}
