//! "Carts change all the time, and my database cannot take every change. No cart may get lost."
//!
//! Changes of carts are acknowledged when the store has them, and reach the database in batches, the last change of each cart only.
//!
//! ```text
//! cargo run -p resilience-examples --example write_behind
//! REDIS_URL=redis://.. cargo run -p resilience-examples --example write_behind
//! ```
//!
//! What it shows:
//! 1. Many changes of some carts are a few rows for the database; each row compares the version, as `where version < $2` does.
//! 2. A cache in front reads what is not in the database yet.
//! 3. The database is away: changes are taken, and wait.
//! 4. A cart that the database refuses is set aside, and others are not.
//! 5. A shutdown writes what waits.
//!
//! Without a Redis the changes wait in this process, and end with it. With one, `redis.write_behind()`, they outlive it.

use std::{
    collections::HashMap,
    env,
    error::Error as StdError,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use resilience_core::{
    Cache, Verdict, WriteBehind, classify,
    write_behind::{Batch, InProcessWriteBehind, ReadError, WriteBehindStore},
};
use resilience_redis::Redis;

type BoxError = Box<dyn StdError + Send + Sync>;
type Store = Arc<dyn WriteBehindStore>;

/// Items by name.
type Cart = Vec<String>;

/// A table of carts. `None`: deleted.
#[derive(Clone, Default)]
struct Database(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    rows: HashMap<String, (u64, Option<Cart>)>,
    statements: usize,
    away: bool,
}

#[derive(Debug)]
enum DatabaseError {
    Away,
    TooLong,
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Away => "the database is away",
            Self::TooLong => "value too long for column `items`",
        })
    }
}

impl Database {
    /// One statement with many rows: `insert .. on conflict (key) do update .. where carts.version < excluded.version`.
    async fn upsert(&self, batch: Batch<Cart>) -> Result<(), DatabaseError> {
        let mut table = self.table();
        table.statements += 1;
        if table.away {
            return Err(DatabaseError::Away);
        }
        if batch
            .iter()
            .any(|it| it.value().is_some_and(|cart| cart.len() > 100))
        {
            return Err(DatabaseError::TooLong);
        }
        for change in &batch {
            let row = table.rows.entry(change.key().to_owned()).or_default();
            if row.0 < change.version() {
                *row = (change.version(), change.value().cloned());
            }
        }
        Ok(())
    }

    fn read(&self, key: &str) -> Option<Cart> {
        self.table().rows.get(key).and_then(|row| row.1.clone())
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was seen, for the tests.
#[derive(Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    changes: u64,
    few_statements: bool,
    read_before_it_was_sunk: bool,
    waited_for_the_database: bool,
    set_aside: usize,
    left: u64,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let store: Store = match env::var("REDIS_URL") {
        Ok(url) => Arc::new(Redis::connect(&url)?.write_behind()),
        Err(_) => Arc::new(InProcessWriteBehind::new()),
    };
    run(store).await.map(drop)
}

async fn run(store: Store) -> Result<Seen, BoxError> {
    let database = Database::default();
    let table = database.clone();
    let verdicts = classify::results(|result: Result<&(), &DatabaseError>| match result {
        Ok(()) => Verdict::Success,
        Err(DatabaseError::Away) => Verdict::transient(),
        Err(DatabaseError::TooLong) => Verdict::Permanent,
    });
    let carts = WriteBehind::<Cart>::builder("carts", store)
        .sink_with(verdicts, move |batch| {
            let table = table.clone();
            async move { table.upsert(batch).await }
        })
        .max_attempts(1)
        .batch(100, Duration::from_millis(50))
        .build()?;
    let table = database.clone();
    let cache: Cache<String, Cart> = Cache::builder("carts")
        .loader(carts.through(move |key: String| {
            let table = table.clone();
            async move { Ok::<_, ReadError>(table.read(&key)) }
        }))
        .build()?;
    let put = async |key: &str, cart: Cart| {
        let kept = cart.clone();
        cache.write(key, kept, || carts.write(key, &cart)).await
    };
    let mut seen = Seen::default();
    let soon = Duration::from_secs(30);

    for change in 0..50 {
        for customer in 0..10 {
            put(
                &format!("customer-{customer}"),
                vec![format!("item {change}")],
            )
            .await?;
        }
    }
    carts.flush(soon).await?;
    seen.changes = carts.snapshot().totals.stored;
    let statements = database.table().statements;
    seen.few_statements = statements * 5 < 500;
    println!("1. {} changes: {statements} statements", seen.changes);

    database.table().away = true;
    put("customer-3", vec!["tea".to_owned()]).await?;
    cache.invalidate("customer-3").await?;
    let cart = cache
        .fetch("customer-3")
        .await
        .map_err(|error| error.to_string())?;
    let before = database.read("customer-3");
    seen.read_before_it_was_sunk =
        cart.as_deref() == Some(&vec!["tea".to_owned()]) && before != cart.as_deref().cloned();
    println!("2. read {cart:?}, while the database has {before:?}");

    let waiting = carts.pending().await?;
    database.table().away = false;
    carts.flush(soon).await?;
    seen.waited_for_the_database =
        waiting.entries == 1 && database.read("customer-3") == cart.as_deref().cloned();
    println!(
        "3. {} waited for the database, which has {:?} now",
        waiting.entries,
        database.read("customer-3")
    );

    put("customer-4", vec!["x".to_owned(); 101]).await?;
    put("customer-5", vec!["coffee".to_owned()]).await?;
    carts.flush(soon).await?;
    let dead = carts.dead(10).await?;
    seen.set_aside = dead.len();
    for letter in &dead {
        println!("4. {} is set aside: {}", letter.key, letter.reason);
    }
    carts.discard(dead.iter().map(|it| &it.key)).await?;

    carts.delete("customer-6").await?;
    carts.shutdown(soon).await?;
    seen.left = carts.pending().await?.entries;
    println!(
        "5. {} are left, customer-6 has {:?}",
        seen.left,
        database.read("customer-6")
    );
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn carts_are_sunk_in_batches_and_none_is_lost() {
        let seen = run(Arc::new(InProcessWriteBehind::new())).await.unwrap();
        let expected = Seen {
            changes: 500,
            few_statements: true,
            read_before_it_was_sunk: true,
            waited_for_the_database: true,
            set_aside: 1,
            left: 0,
        };
        assert_eq!(seen, expected);
    }
}
