//! The table of products, in SQLite or PostgreSQL.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    Bulkhead, CircuitBreaker, Timeout,
    breaker::OpenFor,
    cache::Loaded,
    execute::Stack,
    sql::{self, SqlxErrors},
};
use sqlx::{PgPool, QueryBuilder, SqlitePool, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};

use super::{BoxError, DbError, Product, ms};

/// A row of the table.
type Row = (i64, String, String, i64);

impl From<Row> for Product {
    fn from((id, name, category, cents): Row) -> Self {
        Self {
            id,
            name,
            category,
            cents,
        }
    }
}

/// The table of products, and what guards its database. Clones are the same.
#[derive(Clone)]
pub(super) struct Table {
    pool: Pool,
    db: Stack<SqlxErrors>,
    pub(super) breaker: CircuitBreaker,
    queries: Arc<AtomicU64>,
}

#[derive(Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Evaluates an expression with the pool of whichever database it is.
macro_rules! with_pool {
    ($table:expr, $pool:ident => $body:expr) => {
        match &$table.pool {
            Pool::Sqlite($pool) => $body,
            Pool::Postgres($pool) => $body,
        }
    };
}

impl Table {
    pub(super) async fn open(pool: Pool) -> Result<Self, BoxError> {
        let timeout = Timeout::new("shop", ms(2000))?;
        let bulkhead = Bulkhead::builder("shop")
            .max_concurrent(4)
            .queue(64, ms(500))
            .build()?;
        let breaker = CircuitBreaker::builder("shop")
            .consecutive_failures(5)
            .open_for(OpenFor::fixed(Duration::from_secs(5)))
            .build()?;
        let db = Stack::builder()
            .timeout(&timeout)
            .bulkhead(&bulkhead)
            .breaker(&breaker)
            .classify(SqlxErrors)
            .build();
        let table = Self {
            pool,
            db,
            breaker,
            queries: Arc::default(),
        };
        with_pool!(table, pool => {
            sqlx::raw_sql(SCHEMA).execute(pool).await?;
        });
        Ok(table)
    }

    pub(super) async fn read(&self, id: i64) -> Result<Loaded<Product>, DbError> {
        self.queries.fetch_add(1, Relaxed);
        let sql = "select id, name, category, cents from example_products where id = $1";
        let row: Option<Row> = with_pool!(self, pool => {
            let read = || sql::connection(pool, async |db| sqlx::query_as(sql).bind(id).fetch_optional(db).await);
            self.db.call(read).await?
        });
        // No row is an answer too: it is remembered for the negative time to live.
        Ok(row.map_or(Loaded::missing(), |row| Product::from(row).loaded()))
    }

    pub(super) async fn read_many(
        &self,
        ids: &[i64],
    ) -> Result<HashMap<i64, Loaded<Product>>, DbError> {
        self.queries.fetch_add(1, Relaxed);
        let rows: Vec<Row> = with_pool!(self, pool => {
            let read = || sql::connection(pool, async |db| {
                let mut query = QueryBuilder::new("select id, name, category, cents from example_products where id in (");
                let mut list = query.separated(", ");
                for id in ids {
                    list.push_bind(*id);
                }
                query.push(")").build_query_as().fetch_all(db).await
            });
            self.db.call(read).await?
        });
        let with_id = rows
            .into_iter()
            .map(|row| (row.0, Product::from(row).loaded()));
        Ok(with_id.collect())
    }

    pub(super) async fn set_price(&self, id: i64, cents: i64) -> Result<(), DbError> {
        with_pool!(self, pool => {
            let write = || sql::transaction(pool, async |tx| {
                let log = "insert into example_prices (product, cents) values ($1, $2)";
                sqlx::query(log).bind(id).bind(cents).execute(&mut *tx).await?;
                let set = "update example_products set cents = $2 where id = $1";
                sqlx::query(set).bind(id).bind(cents).execute(&mut *tx).await
            });
            self.db.call(write).await.map(drop)
        })
    }

    pub(super) async fn replace(&self, product: &Product) -> Result<(), DbError> {
        with_pool!(self, pool => {
            let write = || sql::transaction(pool, async |tx| {
                let set = "update example_products set name = $2, category = $3, cents = $4 where id = $1";
                let set = sqlx::query(set).bind(product.id).bind(&product.name);
                set.bind(&product.category).bind(product.cents).execute(&mut *tx).await
            });
            self.db.call(write).await.map(drop)
        })
    }

    pub(super) async fn reduce(&self, category: &str, percent: i64) -> Result<(), DbError> {
        let sql =
            "update example_products set cents = cents * (100 - $2) / 100 where category = $1";
        with_pool!(self, pool => {
            let write = || sql::transaction(pool, async |tx| {
                sqlx::query(sql).bind(category).bind(percent).execute(&mut *tx).await
            });
            self.db.call(write).await.map(drop)
        })
    }

    /// What an outage does, as far as the shop can tell. The tables of the example go with it.
    pub(super) async fn close(&self) -> Result<(), BoxError> {
        with_pool!(self, pool => {
            let drop = "drop table example_prices; drop table example_products;";
            sqlx::raw_sql(drop).execute(pool).await?;
            pool.close().await;
        });
        Ok(())
    }

    /// Queries since this was last asked.
    pub(super) fn take_queries(&self) -> u64 {
        self.queries.swap(0, Relaxed)
    }
}

/// Not temporary: such tables are of one connection only.
const SCHEMA: &str = "
    create table example_products (
        id bigint primary key, name text not null, category text not null,
        cents bigint not null check (cents > 0)
    );
    create table example_prices (product bigint not null, cents bigint not null);
    insert into example_products values
        (1, 'green tea', 'tea', 900), (2, 'black tea', 'tea', 800), (3, 'rye', 'bread', 400),
        (4, 'spelt', 'bread', 500), (5, 'honey', 'other', 700);
";

pub(super) async fn sqlite(file: &Path) -> Result<Pool, BoxError> {
    let url = format!("sqlite://{}?mode=rwc", file.display());
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .after_release(sql::outside_transaction)
        .connect(&url);
    Ok(Pool::Sqlite(pool.await?))
}

pub(super) async fn postgres(url: &str) -> Result<Pool, BoxError> {
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .after_release(sql::outside_transaction)
        .connect(url);
    Ok(Pool::Postgres(pool.await?))
}
