//! "My service shares one database. When its pool runs dry, every request of mine waits for the pool's timeout,
//! and then for the next one's."
//!
//! Guards a pool (SQLite in memory; Postgres and MySQL are guarded the same way) with deadline, retry, bulkhead and
//! circuit breaker. The queries stay what they are: closures over `sqlx`, run through the stack by
//! [`Stack`].
//!
//! ```text
//! cargo run -p resilience-examples --example guarded_database
//! ```
//!
//! What it shows:
//! 1. Reads may be retried, inserts are made once: the call says which it is.
//! 2. A unique violation is the caller's mistake. Fifty of them do not open the breaker.
//! 3. A dry pool does open it: after a few timeouts the rest fail in microseconds.
//! 4. When the pool has a connection again, a few probes find out, and calls go through.
//! 5. A burst gets the places there are and short waits; what is beyond is told so at once.

use std::{error::Error as StdError, time::Duration};

use resilience_core::{
    Bulkhead, CircuitBreaker, Error, Retry, Timeout,
    breaker::{OpenFor, State},
    execute::Stack,
    retry::Backoff,
    sql::{self, SqlxErrors},
};
use sqlx::{SqlitePool, sqlite::SqlitePoolOptions};
use tokio::{task::JoinSet, time::Instant};

type BoxError = Box<dyn StdError + Send + Sync>;

/// How long a query waits for a connection.
const POOL_TIMEOUT: Duration = ms(50);

/// A database and what guards it.
struct Shop {
    pool: SqlitePool,
    db: Stack<SqlxErrors>,
    retry: Retry,
    bulkhead: Bulkhead,
    breaker: CircuitBreaker,
}

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    duplicates_refused: usize,
    waited_for_the_pool: usize,
    failed_fast: usize,
    slowest_fast_failure: Duration,
    served_again: bool,
    burst_served: usize,
    burst_rejected: usize,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    run().await.map(drop)
}

async fn run() -> Result<Seen, BoxError> {
    let shop = Shop::open().await?;
    let mut seen = Seen::default();
    ordinary_work(&shop).await?;
    unique_violations(&shop, &mut seen).await?;
    dry_pool(&shop, &mut seen).await?;
    recovery(&shop, &mut seen).await?;
    burst(&shop, &mut seen).await?;
    Ok(seen)
}

impl Shop {
    async fn open() -> Result<Self, BoxError> {
        // One connection, because every connection to `:memory:` is a database of its own.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(POOL_TIMEOUT)
            .after_release(sql::outside_transaction)
            .connect("sqlite::memory:")
            .await?;
        sqlx::query("create table customers (id integer primary key, email text not null unique)")
            .execute(&pool)
            .await?;

        let timeout = Timeout::new("shop", ms(500))?;
        let retry = Retry::builder("shop")
            .max_attempts(2)
            .backoff(Backoff::fixed(ms(10)))
            .build()?;
        let bulkhead = Bulkhead::builder("shop")
            .max_concurrent(4)
            .queue(4, ms(200))
            .build()?;
        let breaker = CircuitBreaker::builder("shop")
            .consecutive_failures(5)
            .open_for(OpenFor::fixed(ms(200)))
            .build()?;
        let db = Stack::builder()
            .timeout(&timeout)
            .retry(&retry)
            .bulkhead(&bulkhead)
            .breaker(&breaker)
            .classify(SqlxErrors)
            .build();
        Ok(Self {
            pool,
            db,
            retry,
            bulkhead,
            breaker,
        })
    }

    /// An insert is made once: if its outcome is unknown, it is not for a retry layer to make it again.
    async fn register(&self, email: &str) -> Result<i64, Error<sqlx::Error>> {
        let insert = || async {
            let insert = sqlx::query("insert into customers (email) values (?)").bind(email);
            Ok(insert.execute(&self.pool).await?.last_insert_rowid())
        };
        self.db.call(insert).await
    }

    /// A read may be made again.
    async fn count(&self) -> Result<i64, Error<sqlx::Error>> {
        // A connection that must not be used again is closed, so that the retry gets another one.
        let count = || {
            sql::connection(&self.pool, async |db| {
                let count = sqlx::query_scalar("select count(*) from customers");
                count.fetch_one(db).await
            })
        };
        self.db.call_idempotent(count).await
    }
}

async fn ordinary_work(shop: &Shop) -> Result<(), BoxError> {
    for email in ["ada@example.com", "grace@example.com"] {
        shop.register(email).await?;
    }
    println!("1. {} customers are registered.", shop.count().await?);
    Ok(())
}

async fn unique_violations(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    for _ in 0..50 {
        match shop.register("ada@example.com").await {
            Err(Error::Service(sqlx::Error::Database(error))) if error.is_unique_violation() => {
                seen.duplicates_refused += 1;
            }
            other => return Err(format!("not a unique violation: {other:?}").into()),
        }
    }
    let snapshot = shop.breaker.snapshot();
    println!(
        "2. {} duplicates were refused by the database; the breaker is {} and has counted {} failures.",
        seen.duplicates_refused, snapshot.state, snapshot.totals.failures,
    );
    Ok(())
}

async fn dry_pool(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    // A report holds on to the only connection.
    let report = shop.pool.acquire().await?;
    for _ in 0..100 {
        let start = Instant::now();
        match shop.count().await {
            Err(Error::Service(sqlx::Error::PoolTimedOut) | Error::Rejected(_)) => {}
            other => return Err(format!("the pool is not dry: {other:?}").into()),
        }
        // One call waits for the pool and finds the breaker open when it would try again: it has waited.
        let took = start.elapsed();
        if took >= POOL_TIMEOUT {
            seen.waited_for_the_pool += 1;
        } else {
            seen.failed_fast += 1;
            seen.slowest_fast_failure = seen.slowest_fast_failure.max(took);
        }
    }
    drop(report);
    println!(
        "3. The pool is dry. Of 100 reads, {} waited for it ({} retries in all), then the breaker opened: {} were \
         told at once, the slowest in {:?}.",
        seen.waited_for_the_pool,
        shop.retry.snapshot().retries,
        seen.failed_fast,
        seen.slowest_fast_failure,
    );
    Ok(())
}

async fn recovery(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    let start = Instant::now();
    let patience = ms(5000);
    while shop.breaker.state() != State::Closed && start.elapsed() < patience {
        // Waits as long as the rejection says: no busy loop, and no guess.
        match shop.count().await {
            Ok(_) => {}
            Err(Error::Rejected(no)) => {
                tokio::time::sleep(no.retry_after().unwrap_or(ms(20))).await
            }
            Err(Error::Service(error)) => return Err(error.into()),
        }
    }
    seen.served_again = shop.count().await.is_ok();
    println!(
        "4. The connection is back; after {:.0?} the breaker is {}.",
        start.elapsed(),
        shop.breaker.state(),
    );
    Ok(())
}

async fn burst(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let (db, pool) = (shop.db.clone(), shop.pool.clone());
        calls.spawn(async move {
            let query = || async {
                let mut connection = pool.acquire().await?;
                // What a query of 5 ms costs the pool.
                tokio::time::sleep(ms(5)).await;
                sqlx::query_scalar::<_, i64>("select count(*) from customers")
                    .fetch_one(&mut *connection)
                    .await
            };
            db.call_idempotent(query).await
        });
    }
    for ended in calls.join_all().await {
        match ended {
            Ok(_) => seen.burst_served += 1,
            Err(Error::Rejected(_)) => seen.burst_rejected += 1,
            Err(Error::Service(error)) => return Err(error.into()),
        }
    }
    println!(
        "5. A burst of 20: {} were served, {} had no place among {} and its queue, and were told at once.",
        seen.burst_served,
        seen.burst_rejected,
        shop.bulkhead.snapshot().max_concurrent,
    );
    Ok(())
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        let seen = run().await.unwrap();
        assert_eq!(seen.duplicates_refused, 50);
        assert!((1..=5).contains(&seen.waited_for_the_pool), "{seen:?}");
        assert_eq!(seen.waited_for_the_pool + seen.failed_fast, 100);
        assert!(
            seen.slowest_fast_failure < ms(40),
            "below one wait for the pool: {seen:?}"
        );
        assert!(seen.served_again, "{seen:?}");
        assert_eq!((seen.burst_served, seen.burst_rejected), (8, 12));
    }
}
