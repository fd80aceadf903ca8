//! "A client of my order service did not get our answer in time and sent the order again. Now they have two."
//!
//! An order service on SQLite (a file in a temporary folder; nothing to install). What an order changes and the record of
//! its idempotency key are rows of one database, committed together: there is no moment at which a crash could leave one
//! without the other.
//!
//! ```text
//! cargo run -p resilience-examples --example guarded_transaction
//! ```
//!
//! What it shows:
//! 1. An order that is sent again is answered again, and not carried out again.
//! 2. So are ten that arrive at the same time.
//! 3. A process that dies in the middle leaves nothing behind; the next attempt carries the order out.
//! 4. A key that comes with another order is refused.
//! 5. "Sold out" is an answer too: recorded for a while, and given again.
//! 6. Old records are pruned.
//!
//! In PostgreSQL it is `PgInbox` instead of `SqliteInbox` and `PgPool` instead of `SqlitePool`.

use std::{error::Error as StdError, time::Duration};

use resilience_core::{
    Error, Reason, SqliteInbox,
    idempotency::{Fingerprint, Key},
    sql::{
        self,
        inbox::{Claimed, Work},
    },
};
use serde::{Deserialize, Serialize};
use sqlx::{
    Sqlite, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tokio::task::JoinSet;

type BoxError = Box<dyn StdError + Send + Sync>;

/// What a client wants. The same key with another one of these is a mistake.
#[derive(Clone, Debug)]
struct Order {
    item: &'static str,
    pieces: i64,
}

/// What they are told, the first time and every time after.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
enum Answer {
    Ordered { number: i64 },
    SoldOut,
}

#[derive(Clone)]
struct Shop {
    pool: SqlitePool,
    inbox: SqliteInbox,
}

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    first: Option<Answer>,
    again: Option<Answer>,
    orders_of_ten: i64,
    different_answers_of_ten: usize,
    after_the_crash: i64,
    after_the_retry: i64,
    refused: bool,
    sold_out: usize,
    stock_left: i64,
    pruned: u64,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    run().await.map(drop)
}

async fn run() -> Result<Seen, BoxError> {
    let folder = tempfile::tempdir()?;
    let shop =
        Shop::open(SqliteConnectOptions::new().filename(folder.path().join("shop.db"))).await?;
    let mut seen = Seen::default();
    sent_again(&shop, &mut seen).await?;
    ten_at_once(&shop, &mut seen).await?;
    crash(&shop, &mut seen).await?;
    another_order(&shop, &mut seen).await?;
    sold_out(&shop, &mut seen).await?;
    seen.pruned = shop.prune().await?;
    println!("6. {} old records were pruned.", seen.pruned);
    Ok(seen)
}

impl Shop {
    async fn open(options: SqliteConnectOptions) -> Result<Self, BoxError> {
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await?;
        let tables = "create table stock (item text primary key, pieces integer not null check (pieces >= 0));
                      create table orders (number integer primary key, item text not null, pieces integer not null);
                      insert into stock values ('tea', 20), ('cake', 1)";
        sqlx::raw_sql(tables).execute(&pool).await?;
        let inbox = SqliteInbox::builder("orders")
            // Longer than any client goes on trying.
            .retention(Duration::from_secs(3 * 86_400))
            .build()?;
        inbox.migrate(&pool).await?;
        Ok(Self { pool, inbox })
    }

    /// Carries the order out, once for this key.
    async fn place(&self, key: &str, order: &Order) -> Result<Answer, Error<sqlx::Error>> {
        let key = order.key(key);
        let work = self
            .inbox
            .run(&self.pool, key, |mut work: Work<Sqlite>| async move {
                let answer = carry_out(&mut work, order).await?;
                Ok(work.done(answer))
            });
        Ok(work.await?.value)
    }

    async fn orders(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("select count(*) from orders")
            .fetch_one(&self.pool)
            .await
    }

    async fn stock(&self, item: &str) -> Result<i64, sqlx::Error> {
        let stock = sqlx::query_scalar("select pieces from stock where item = $1").bind(item);
        stock.fetch_one(&self.pool).await
    }

    /// What a task does every few minutes. Here, time flies.
    async fn prune(&self) -> Result<u64, sqlx::Error> {
        sqlx::query("update inbox set expires_at = created_at")
            .execute(&self.pool)
            .await?;
        self.inbox.prune(&self.pool, 1_000).await
    }
}

/// The effect: plain statements on a connection, which know nothing of keys.
async fn carry_out(
    connection: &mut SqliteConnection,
    order: &Order,
) -> Result<Answer, sqlx::Error> {
    let take =
        sqlx::query("update stock set pieces = pieces - $2 where item = $1 and pieces >= $2");
    let taken = take
        .bind(order.item)
        .bind(order.pieces)
        .execute(&mut *connection)
        .await?;
    if taken.rows_affected() == 0 {
        return Ok(Answer::SoldOut);
    }
    let insert = sqlx::query("insert into orders (item, pieces) values ($1, $2)");
    let inserted = insert
        .bind(order.item)
        .bind(order.pieces)
        .execute(connection)
        .await?;
    Ok(Answer::Ordered {
        number: inserted.last_insert_rowid(),
    })
}

impl Order {
    /// The client's key, and what tells this order from another.
    fn key(&self, key: &str) -> Key {
        let pieces = self.pieces.to_be_bytes();
        Key::new(key).fingerprint(Fingerprint::of([self.item.as_bytes(), &pieces]))
    }
}

const TEA: Order = Order {
    item: "tea",
    pieces: 2,
};
const CAKE: Order = Order {
    item: "cake",
    pieces: 1,
};

async fn sent_again(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    let first = shop.place("ada-1", &TEA).await?;
    let again = shop.place("ada-1", &TEA).await?;
    println!(
        "1. Sent twice: {first:?}, then {again:?}; orders: {}.",
        shop.orders().await?
    );
    (seen.first, seen.again) = (Some(first), Some(again));
    Ok(())
}

async fn ten_at_once(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    let before = shop.orders().await?;
    let mut clients = JoinSet::new();
    for _ in 0..10 {
        let shop = shop.clone();
        clients.spawn(async move { shop.place("grace-1", &TEA).await });
    }
    let mut answers = Vec::new();
    for answer in clients.join_all().await {
        answers.push(answer?);
    }
    answers.dedup();
    seen.different_answers_of_ten = answers.len();
    seen.orders_of_ten = shop.orders().await? - before;
    println!(
        "2. Ten at once: orders: {}, and all were told {:?}.",
        seen.orders_of_ten, answers[0]
    );
    Ok(())
}

async fn crash(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    let before = shop.orders().await?;
    // The same by hand, without the closure, to die at the worst moment: all is written, nothing is committed.
    let mut tx = sql::begin_with(&shop.pool, "begin immediate").await?;
    if let Claimed::Fresh(entry) = shop.inbox.claim(&mut tx, &TEA.key("alan-1")).await? {
        let answer = carry_out(&mut tx, &TEA).await?;
        entry
            .complete(&mut tx, &serde_json::to_vec(&answer)?)
            .await?;
    }
    drop(tx);
    seen.after_the_crash = shop.orders().await? - before;
    shop.place("alan-1", &TEA).await?;
    seen.after_the_retry = shop.orders().await? - before;
    println!(
        "3. Died before the commit: orders: {}; sent again: {}.",
        seen.after_the_crash, seen.after_the_retry
    );
    Ok(())
}

async fn another_order(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    match shop.place("ada-1", &CAKE).await {
        Err(Error::Rejected(no)) => {
            println!("4. The key of the tea with an order for cake: {no}.");
            seen.refused = no.reason() == Reason::KeyReused;
            Ok(())
        }
        other => Err(format!("not refused: {other:?}").into()),
    }
}

async fn sold_out(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    shop.place("ada-2", &CAKE).await?;
    for _ in 0..2 {
        seen.sold_out += usize::from(shop.place("grace-2", &CAKE).await? == Answer::SoldOut);
    }
    seen.stock_left = shop.stock("tea").await?;
    println!(
        "5. The last cake is gone: told so {} times. Of the tea, {} pieces are left.",
        seen.sold_out, seen.stock_left
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        let seen = run().await.unwrap();
        assert_eq!(seen.first, Some(Answer::Ordered { number: 1 }));
        assert_eq!(seen.again, seen.first);
        assert_eq!((seen.orders_of_ten, seen.different_answers_of_ten), (1, 1));
        assert_eq!((seen.after_the_crash, seen.after_the_retry), (0, 1));
        assert!(seen.refused, "{seen:?}");
        assert_eq!(seen.sold_out, 2);
        assert_eq!(seen.stock_left, 20 - 3 * TEA.pieces);
        assert_eq!(seen.pruned, 5, "one record for each key");
    }

    #[tokio::test]
    async fn a_failure_of_the_database_takes_the_record_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let shop = Shop::open(SqliteConnectOptions::new().filename(folder.path().join("shop.db")))
            .await
            .unwrap();
        sqlx::query("alter table orders rename to elsewhere")
            .execute(&shop.pool)
            .await
            .unwrap();
        assert!(matches!(
            shop.place("a", &TEA).await,
            Err(Error::Service(_))
        ));
        assert_eq!(shop.stock("tea").await.unwrap(), 20, "given back");
        sqlx::query("alter table elsewhere rename to orders")
            .execute(&shop.pool)
            .await
            .unwrap();
        assert_eq!(
            shop.place("a", &TEA).await.unwrap(),
            Answer::Ordered { number: 1 }
        );
    }
}
