//! "Our orders are in the database, but sometimes shipping never hears of one, and sometimes it ships one twice."
//!
//! An order service writes an order and its event in one transaction (outbox). A relay publishes what is committed to a
//! stream. A shipping service handles each event in an inbox: the shipment and the record that the event was handled are one
//! transaction, too. So there is no moment at which a crash could lose an order or ship it twice.
//!
//! ```text
//! cargo run -p resilience-examples --example order_events
//! DATABASE_URL=postgres://.. REDIS_URL=redis://.. cargo run -p resilience-examples --example order_events
//! ```
//!
//! SQLite in a file of the temporary folder, and a broker in this process; or PostgreSQL and Redis.
//!
//! What it shows:
//! 1. Orders and their events are committed together; an order that is rolled back has no event.
//! 2. No relay runs: the events wait in the database, and shipping gets them when one does.
//! 3. Shipping crashes after a shipment, before the message is acknowledged: it comes again, and is not shipped again.
//! 4. Orders of one customer are shipped in the order in which they were placed.

use std::{
    error::Error as StdError,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    Consumer, PgInbox, PgOutbox, SqliteInbox, SqliteOutbox,
    fleet::IntoStore,
    retry::Backoff,
    sql::{self, inbox::Work, outbox::OutboxRelay},
    stream::{InProcessStreams, Message, StreamBroker},
};
use resilience_redis::Redis;
use serde::{Deserialize, Serialize};
use sqlx::{
    PgPool, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
use tokio::time::{sleep, timeout};

type BoxError = Box<dyn StdError + Send + Sync>;

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Placed {
    order: i64,
    customer: String,
    item: String,
}

/// Both services, on one database. In a company they would be two, each with a database of its own.
trait Services: Clone + Send + Sync + 'static {
    /// Places an order; `changes_mind`: and rolls it back.
    fn place(
        &self,
        placed: &Placed,
        changes_mind: bool,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Ships an order, once per event.
    fn ship(&self, message: &Message<Placed>) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Publishes the events that are committed.
    fn relay(&self, broker: impl IntoStore<dyn StreamBroker>) -> Result<OutboxRelay, BoxError>;

    /// The orders that were shipped, in order.
    fn shipped(&self) -> impl Future<Output = Result<Vec<i64>, BoxError>> + Send;
}

const TABLES: &str = "drop table if exists example_orders;
                      create table example_orders (id bigint primary key, item text not null);
                      drop table if exists example_shipments;
                      create table example_shipments (number integer primary key, id bigint not null)";

const SHIP: &str =
    "insert into example_shipments (number, id) select count(*) + 1, $1 from example_shipments";

/// The services on one kind of database.
macro_rules! services {
    ($services:ident, $pool:ident, $outbox:ident, $inbox:ident, $begin:literal) => {
        #[derive(Clone)]
        struct $services {
            pool: $pool,
            outbox: $outbox<Placed>,
            inbox: $inbox,
        }

        impl $services {
            async fn open(pool: $pool) -> Result<Self, BoxError> {
                sqlx::raw_sql(TABLES).execute(&pool).await?;
                let outbox = $outbox::builder("orders")
                    .source("/shop")
                    .event_type("order.placed");
                let outbox = outbox.table("example_outbox").build()?;
                outbox.migrate(&pool).await?;
                let inbox = $inbox::builder("shipping").table("example_inbox").build()?;
                inbox.migrate(&pool).await?;
                Ok(Self {
                    pool,
                    outbox,
                    inbox,
                })
            }
        }

        impl Services for $services {
            async fn place(&self, placed: &Placed, changes_mind: bool) -> Result<(), BoxError> {
                let mut tx = sql::begin_with(&self.pool, $begin).await?;
                let order = sqlx::query("insert into example_orders values ($1, $2)");
                order
                    .bind(placed.order)
                    .bind(&placed.item)
                    .execute(&mut *tx)
                    .await?;
                self.outbox
                    .publish(&mut tx, &placed.customer, placed)
                    .await?;
                if changes_mind {
                    tx.rollback().await?;
                } else {
                    tx.commit().await?;
                    self.outbox.wake();
                }
                Ok(())
            }

            async fn ship(&self, message: &Message<Placed>) -> Result<(), BoxError> {
                let order = message.event().order;
                let shipped =
                    self.inbox
                        .run(&self.pool, message.id(), |mut work: Work<_>| async move {
                            sqlx::query(SHIP).bind(order).execute(&mut *work).await?;
                            Ok::<_, sqlx::Error>(work.done(()))
                        });
                let shipped = shipped.await?;
                match shipped.replayed() {
                    Some(_) => println!("   order {order} came again, and was shipped already"),
                    None => println!("   order {order} is shipped"),
                }
                Ok(())
            }

            fn relay(
                &self,
                broker: impl IntoStore<dyn StreamBroker>,
            ) -> Result<OutboxRelay, BoxError> {
                Ok(self.outbox.relay(&self.pool, broker).build()?)
            }

            async fn shipped(&self) -> Result<Vec<i64>, BoxError> {
                let shipped =
                    sqlx::query_scalar("select id from example_shipments order by number");
                Ok(shipped.fetch_all(&self.pool).await?)
            }
        }
    };
}

services!(
    OnSqlite,
    SqlitePool,
    SqliteOutbox,
    SqliteInbox,
    "BEGIN IMMEDIATE"
);
services!(OnPostgres, PgPool, PgOutbox, PgInbox, "BEGIN");

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let broker: Arc<dyn StreamBroker> = match std::env::var("REDIS_URL") {
        Ok(url) => Arc::new(Redis::connect(&url)?.streams()),
        Err(_) => Arc::new(InProcessStreams::new()),
    };
    if let Ok(url) = std::env::var("DATABASE_URL") {
        let services = OnPostgres::open(PgPool::connect(&url).await?).await?;
        return run(services, broker).await.map(drop);
    }
    let file = std::env::temp_dir().join(format!("order-events-{:x}.db", fastrand::u64(..)));
    let seen = run(OnSqlite::open(sqlite(&file).await?).await?, broker).await;
    let _ = std::fs::remove_file(file);
    seen.map(drop)
}

async fn sqlite(file: &std::path::Path) -> Result<SqlitePool, BoxError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(10));
    Ok(SqlitePool::connect_with(options).await?)
}

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    shipped_without_relay: usize,
    shipped: Vec<i64>,
    redelivered: u64,
}

async fn run(services: impl Services, broker: Arc<dyn StreamBroker>) -> Result<Seen, BoxError> {
    let mut seen = Seen::default();
    let shipping = Consumer::<Placed>::builder("orders", Arc::clone(&broker))
        .group("shipping")
        .lanes(|message| message.key.clone())
        .retry(Backoff::fixed(Duration::from_millis(50)))
        .build()?;
    let (ship, crashes) = (services.clone(), Arc::new(AtomicBool::new(true)));
    let handler = move |message: Message<Placed>| {
        let (services, crashes) = (ship.clone(), Arc::clone(&crashes));
        async move {
            services.ship(&message).await?;
            // Once, after the last order.
            if message.event().order == 6 && crashes.swap(false, Relaxed) {
                println!("   shipping crashes before it acknowledges order 6");
                return Err(BoxError::from(io::Error::other("crashed")));
            }
            Ok(())
        }
    };
    let shop = async {
        println!("1. Three orders are placed, and one is given up:");
        for order in 1..=3 {
            place(&services, order, false).await?;
        }
        place(&services, 4, true).await?;
        println!(
            "2. No relay runs. Shipped: {}",
            services.shipped().await?.len()
        );
        seen.shipped_without_relay = services.shipped().await?.len();
        let relay = services.relay(Arc::clone(&broker))?;
        wait_for(&services, 3).await?;
        println!("   The relay is replaced, as in a deployment; orders come in meanwhile:");
        relay.shutdown(Duration::from_secs(5)).await?;
        for order in 5..=6 {
            place(&services, order, false).await?;
        }
        let relay = services.relay(Arc::clone(&broker))?;
        wait_for(&services, 5).await?;
        println!("3. What shipping did not acknowledge comes again:");
        let again = async {
            while shipping.snapshot().totals.acknowledged < 5 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), again).await?;
        relay.shutdown(Duration::from_secs(5)).await?;
        shipping.shutdown(Duration::from_secs(5)).await?;
        Ok::<_, BoxError>(())
    };
    let serving = async { shipping.run(handler).await.map_err(BoxError::from) };
    tokio::try_join!(serving, shop)?;
    seen.shipped = services.shipped().await?;
    seen.redelivered = shipping.snapshot().totals.redelivered;
    println!("4. Shipped, in order: {:?}", seen.shipped);
    Ok(seen)
}

async fn place(services: &impl Services, order: i64, changes_mind: bool) -> Result<(), BoxError> {
    let placed = Placed {
        order,
        customer: "customer-7".to_owned(),
        item: "tea".to_owned(),
    };
    services.place(&placed, changes_mind).await?;
    let how = if changes_mind {
        "rolled back"
    } else {
        "committed"
    };
    println!("   order {order} is {how}");
    Ok(())
}

async fn wait_for(services: &impl Services, orders: usize) -> Result<(), BoxError> {
    let shipped = async {
        while services.shipped().await?.len() < orders {
            sleep(Duration::from_millis(5)).await;
        }
        Ok::<_, BoxError>(())
    };
    timeout(Duration::from_secs(30), shipped).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_order_that_is_committed_is_shipped_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let pool = sqlite(&folder.path().join("db")).await.unwrap();
        let services = OnSqlite::open(pool).await.unwrap();
        let seen = run(services, Arc::new(InProcessStreams::new()))
            .await
            .unwrap();
        assert_eq!(seen.shipped_without_relay, 0);
        assert_eq!(seen.shipped, [1, 2, 3, 5, 6]);
        assert_eq!(seen.redelivered, 1);
    }

    #[tokio::test]
    async fn it_runs_on_postgres_and_redis_too() {
        let server = resilience_tests::postgres::Postgres::start();
        let redis = resilience_tests::redis::RedisServer::start();
        let services = OnPostgres::open(PgPool::connect(&server.url()).await.unwrap())
            .await
            .unwrap();
        let broker = Redis::connect(&redis.url()).unwrap().streams();
        let seen = run(services, Arc::new(broker)).await.unwrap();
        assert_eq!(seen.shipped, [1, 2, 3, 5, 6]);
    }
}
