#[cfg(feature = "testing")]
mod conformance;
mod faults;
mod pressure;
mod reading;
mod sinking;
mod unreliable;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use super::{Batch, InProcessWriteBehind, WriteBehind, WriteBehindBuilder};
use crate::classify::{self, Verdict};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the database of a test says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Down,
    Refused,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

fn verdicts() -> impl classify::Classify<(), Fault> + Send + Sync + 'static {
    classify::results(|result: Result<&(), &Fault>| match result {
        Ok(()) => Verdict::Success,
        Err(Fault::Down) => Verdict::transient(),
        Err(Fault::Refused) => Verdict::Permanent,
    })
}

/// A database that compares versions, and remembers what it was given.
#[derive(Clone, Debug, Default)]
struct Database(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rows: Mutex<BTreeMap<String, (u64, Option<u64>)>>,
    /// Every change that was given, in order.
    given: Mutex<Vec<(String, u64)>>,
    calls: AtomicUsize,
    down: AtomicBool,
    /// How long a call takes, in milliseconds.
    slow: AtomicUsize,
}

/// Refused, wherever it comes.
const POISON: u64 = 666;

impl Database {
    async fn write(&self, batch: Batch<u64>) -> Result<(), Fault> {
        self.0.calls.fetch_add(1, SeqCst);
        let slow = self.0.slow.load(SeqCst);
        if slow > 0 {
            tokio::time::sleep(ms(slow as u64)).await;
        }
        if self.0.down.load(SeqCst) {
            return Err(Fault::Down);
        }
        if batch.iter().any(|it| it.value() == Some(&POISON)) {
            return Err(Fault::Refused);
        }
        let mut rows = self.0.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner);
        for change in &batch {
            given.push((change.key().to_owned(), change.version()));
            let row = rows.entry(change.key().to_owned()).or_default();
            if row.0 < change.version() {
                *row = (change.version(), change.value().copied());
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<u64> {
        let rows = self.0.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.get(key).and_then(|it| it.1)
    }

    /// The versions of a key that were given, in order.
    fn given(&self, key: &str) -> Vec<u64> {
        let given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = given.iter().filter(|it| it.0 == key);
        of_key.map(|it| it.1).collect()
    }

    fn calls(&self) -> usize {
        self.0.calls.load(SeqCst)
    }

    fn down(&self, yes: bool) {
        self.0.down.store(yes, SeqCst);
    }

    fn slow(&self, ms: usize) {
        self.0.slow.store(ms, SeqCst);
    }
}

fn builder(store: &InProcessWriteBehind) -> WriteBehindBuilder<u64> {
    WriteBehind::builder("carts", store.clone())
}

fn sinking(store: &InProcessWriteBehind, database: &Database) -> WriteBehindBuilder<u64> {
    let database = database.clone();
    builder(store).sink_with(verdicts(), move |batch| {
        let database = database.clone();
        async move { database.write(batch).await }
    })
}

/// Polls until `condition` holds, for up to an hour of the paused clock.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let polling = async {
        while !condition().await {
            tokio::time::sleep(ms(5)).await;
        }
    };
    let within = tokio::time::timeout(secs(3_600), polling).await;
    within.unwrap_or_else(|_| panic!("not within an hour: {what}"));
}
