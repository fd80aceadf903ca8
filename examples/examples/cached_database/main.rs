//! "Our product pages ask the database for the same rows all day. We put a map in front of it; since then a new price
//! shows up on some of the instances, and when the map is empty the database falls over."
//!
//! Two instances of a shop that cache the rows of one table. SQLite in a temporary folder, or PostgreSQL; what the instances
//! share of their caches is in this process. With several processes, `redis.cache()` takes its place.
//!
//! ```text
//! cargo run -p resilience-examples --example cached_database
//! DATABASE_URL=postgres://.. cargo run -p resilience-examples --example cached_database
//! ```
//!
//! What it shows:
//! 1. A crowd at both instances asks for a row: one query.
//! 2. A price is changed in a transaction, and invalidated after its commit: both instances have the new one. A
//!    change that was rolled back costs one query.
//! 3. A change by `write` goes through to the cache: the other instance reads it without a query.
//! 4. A page of rows: one query for those that are missing, and none for a row that is known not to exist.
//! 5. A sale of a whole category: one statement, and one tag.
//! 6. The database is away: the breaker opens, bread is still on the page and said to be stale, and what was invalidated is
//!    not.

mod table;

use std::{collections::HashMap, error::Error as StdError, sync::Arc, time::Duration};

use resilience_core::{
    Cache, Error,
    cache::{Affected, CallOptions, Freshness, InProcessCache, LoadError, Loaded, Lookup, guarded},
};
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use self::table::{Pool, Table, postgres, sqlite};

type BoxError = Box<dyn StdError + Send + Sync>;
/// A query that failed, or a rejection by the stack around it.
type DbError = Error<sqlx::Error>;

/// What a page shows of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Product {
    id: i64,
    name: String,
    category: String,
    cents: i64,
}

impl Product {
    /// With the category as its tag. Bread is made every day: fresh for a moment here, to have something that gets stale.
    fn loaded(self) -> Loaded<Self> {
        let tag = format!("category:{}", self.category);
        let bread = self.category == "bread";
        let loaded = Loaded::new(self).tag(tag);
        if bread { loaded.ttl(ms(100)) } else { loaded }
    }
}

/// One instance of the shop.
#[derive(Clone)]
struct Shop {
    products: Cache<i64, Product>,
    table: Table,
}

impl Shop {
    /// Instances with the same `store` share what is cached.
    fn open(table: &Table, store: &InProcessCache) -> Result<Self, BoxError> {
        let products = Cache::builder("products")
            .ttl(Duration::from_secs(300))
            .negative_ttl(Duration::from_secs(30))
            .stale_if_error(Duration::from_secs(3600))
            .store(store.clone()) // with several processes: `redis.cache()`
            .build()?;
        Ok(Self {
            products,
            table: table.clone(),
        })
    }

    async fn product(&self, id: i64) -> Result<Lookup<Product>, LoadError<sqlx::Error>> {
        let table = self.table.clone();
        // Through a stack: its rejections are those of the call.
        let load = move || guarded(async move { table.read(id).await });
        let options = CallOptions::new();
        self.products.load_with(&id, options, load).await
    }

    async fn price(&self, id: i64) -> Result<Option<i64>, BoxError> {
        let product = self.product(id).await?.value;
        Ok(product.map(|product| product.cents))
    }

    /// A page: those of `ids` that exist.
    async fn page(
        &self,
        ids: &[i64],
    ) -> Result<HashMap<i64, Arc<Product>>, LoadError<sqlx::Error>> {
        let table = self.table.clone();
        let load = move |missing: Vec<i64>| {
            let table = table.clone();
            guarded(async move { table.read_many(&missing).await })
        };
        self.products.get_or_load_many(ids, load).await.all()
    }

    /// The transaction, and then the invalidation. It is made whatever the transaction returned (a commit whose answer was
    /// lost has been made all the same), also if this future is dropped, and repeated until the store has it.
    async fn change_price(&self, id: i64, cents: i64) -> Result<(), DbError> {
        let transaction = || self.table.set_price(id, cents);
        self.products.change(id, transaction).await
    }

    /// Write-through: the new row is in the cache when this returns. Whatever happens in between (the transaction
    /// fails, this future is dropped, the process dies), what the cache held before is not served again.
    async fn replace(&self, product: Product) -> Result<(), DbError> {
        let (table, row) = (&self.table, &product);
        let save = || table.replace(row);
        let value = product.clone().loaded();
        self.products.write(&product.id, value, save).await
    }

    /// All rows of a category are changed by one statement and dropped by one tag, however many are cached.
    async fn sale(&self, category: &str, percent: i64) -> Result<(), DbError> {
        let affected = Affected::new().tag(format!("category:{category}"));
        let statement = || self.table.reduce(category, percent);
        self.products.change(affected, statement).await
    }
}

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    crowd_queries: u64,
    new_prices: [Option<i64>; 2],
    after_rollback: (Option<i64>, u64),
    written: (Option<i64>, u64),
    page: (usize, u64),
    page_again: (usize, u64),
    sale: [Option<i64>; 2],
    sale_queries: u64,
    stale: Option<(i64, Freshness)>,
    failed_loads: u64,
    rejected: bool,
    invalidated_is_served: bool,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let file = std::env::temp_dir().join(format!("cached-database-{:x}.db", fastrand::u64(..)));
    let seen = match std::env::var("DATABASE_URL") {
        Ok(url) => run(postgres(&url).await?).await,
        Err(_) => run(sqlite(&file).await?).await,
    };
    // Not there with PostgreSQL.
    let _ = std::fs::remove_file(file);
    seen.map(drop)
}

async fn run(pool: Pool) -> Result<Seen, BoxError> {
    let (table, store) = (Table::open(pool).await?, InProcessCache::new());
    let shops = [Shop::open(&table, &store)?, Shop::open(&table, &store)?];
    let mut seen = Seen::default();
    crowd(&shops, &mut seen).await?;
    new_price(&shops, &mut seen).await?;
    write_through(&shops, &mut seen).await?;
    pages(&shops[0], &mut seen).await?;
    sale(&shops, &mut seen).await?;
    away(&shops[0], &mut seen).await?;
    Ok(seen)
}

async fn crowd(shops: &[Shop; 2], seen: &mut Seen) -> Result<(), BoxError> {
    let mut crowd = JoinSet::new();
    for caller in 0..100 {
        let shop = shops[caller % 2].clone();
        crowd.spawn(async move { shop.price(1).await });
    }
    for price in crowd.join_all().await {
        assert_eq!(price?, Some(900));
    }
    seen.crowd_queries = shops[0].table.take_queries();
    println!(
        "1. 100 customers at two instances look at green tea: {} query.",
        seen.crowd_queries
    );
    Ok(())
}

async fn new_price([one, other]: &[Shop; 2], seen: &mut Seen) -> Result<(), BoxError> {
    one.change_price(1, 950).await?;
    seen.new_prices = [one.price(1).await?, other.price(1).await?];
    one.table.take_queries();
    if one.change_price(1, -1).await.is_ok() {
        return Err("a negative price was accepted".into());
    }
    // After an invalidation nothing is cached for a moment, in which a loader could still read from a replica that is behind: what
    // is read now is loaded for this caller.
    seen.after_rollback = (other.price(1).await?, one.table.take_queries());
    println!(
        "2. A new price, committed and then invalidated: {:?} at both. One that the database refuses: still {:?}, for {} query.",
        seen.new_prices, seen.after_rollback.0, seen.after_rollback.1,
    );
    Ok(())
}

async fn write_through([one, other]: &[Shop; 2], seen: &mut Seen) -> Result<(), BoxError> {
    let honey = Product {
        id: 5,
        name: "heather honey".to_owned(),
        category: "other".to_owned(),
        cents: 1_100,
    };
    one.replace(honey).await?;
    one.table.take_queries();
    seen.written = (other.price(5).await?, one.table.take_queries());
    println!(
        "3. Honey is written through the cache: {:?} at the other instance, for {} queries.",
        seen.written.0, seen.written.1,
    );
    Ok(())
}

async fn pages(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    // 99 does not exist.
    let ids = [2, 4, 5, 99];
    shop.table.take_queries();
    seen.page = (shop.page(&ids).await?.len(), shop.table.take_queries());
    // Without bread, which is not fresh for long.
    let again = shop.page(&[2, 5, 99]).await?.len();
    seen.page_again = (again, shop.table.take_queries());
    println!(
        "4. A page of 4 rows, one of which does not exist: {} found, {} query. Again without bread: {} found, {} queries.",
        seen.page.0, seen.page.1, seen.page_again.0, seen.page_again.1,
    );
    Ok(())
}

async fn sale([one, other]: &[Shop; 2], seen: &mut Seen) -> Result<(), BoxError> {
    one.price(1).await?;
    other.sale("tea", 50).await?;
    one.table.take_queries();
    seen.sale = [one.price(1).await?, one.price(2).await?];
    one.price(5).await?;
    seen.sale_queries = one.table.take_queries();
    println!(
        "5. Tea at half price, one tag invalidated: {:?}; {} queries, none for honey.",
        seen.sale, seen.sale_queries,
    );
    Ok(())
}

async fn away(shop: &Shop, seen: &mut Seen) -> Result<(), BoxError> {
    for bread in [3, 4] {
        shop.product(bread).await?;
    }
    shop.products.invalidate(&4).await?;
    shop.table.close().await?;
    let before = shop.products.snapshot().totals.loads_failed;
    let start = Instant::now();
    while start.elapsed() < ms(10_000) {
        let rye = shop.product(3).await?;
        if let (Some(product), Freshness::StaleOnError) = (rye.value, rye.freshness) {
            seen.stale = Some((product.cents, rye.freshness));
            break;
        }
        sleep(ms(10)).await;
    }
    // Rye is not asked for again for a second; rows that are not kept are, until the breaker opens.
    let mut refusal = None;
    for id in 1_000..1_010 {
        refusal = shop.product(id).await.err();
    }
    let rejected = refusal.as_ref().and_then(Error::rejected);
    seen.rejected = rejected.is_some();
    seen.failed_loads = shop.products.snapshot().totals.loads_failed - before;
    seen.invalidated_is_served = shop.product(4).await.is_ok();
    println!(
        "6. Without a database: rye is still {:?}. Spelt, which was invalidated, is {}. Of {} loads that failed, {} \
         reached the database before the breaker was {}: `{}`.",
        seen.stale,
        if seen.invalidated_is_served {
            "served"
        } else {
            "not served"
        },
        seen.failed_loads,
        shop.table.breaker.snapshot().totals.failures,
        shop.table.breaker.state(),
        refusal.map_or_else(String::new, |error| error.to_string()),
    );
    Ok(())
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use resilience_tests::postgres::Postgres;

    use super::*;

    fn check(seen: &Seen) {
        assert_eq!(seen.crowd_queries, 1);
        assert_eq!(seen.new_prices, [Some(950); 2]);
        assert_eq!(seen.after_rollback, (Some(950), 1));
        assert_eq!(seen.written, (Some(1_100), 0));
        assert_eq!(seen.page, (3, 1));
        assert_eq!(seen.page_again, (2, 0));
        assert_eq!(seen.sale, [Some(475), Some(400)]);
        assert_eq!(seen.sale_queries, 2);
        assert_eq!(seen.stale, Some((400, Freshness::StaleOnError)));
        assert!(seen.rejected && !seen.invalidated_is_served, "{seen:?}");
    }

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let pool = sqlite(&directory.path().join("shop.db")).await.unwrap();
        check(&run(pool).await.unwrap());
    }

    #[tokio::test]
    async fn it_goes_the_same_way_over_postgresql() {
        let server = Postgres::start();
        check(&run(postgres(&server.url()).await.unwrap()).await.unwrap());
    }
}
