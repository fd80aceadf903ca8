//! The inbox in PostgreSQL.

use std::sync::atomic::AtomicI64;

use ::sqlx::{PgConnection, Postgres, Row as _, SqlStr, postgres::PgRow, query, raw_sql};

use super::{
    super::{
        Transaction,
        statement::{MIGRATING, text},
        table::Table,
    },
    dialect::{Ask, Complete, Dialect, Found, Row, Statement, Statements, sealed::Sealed},
};

impl Dialect for Postgres {}

impl Sealed for Postgres {
    const BEGIN: &'static str = "BEGIN ISOLATION LEVEL READ COMMITTED";
    const PREPARED: bool = false;

    fn statements(table: &Table, waits: bool, prepared: bool) -> Statements {
        let lock = if waits {
            "pg_advisory_xact_lock"
        } else {
            "pg_try_advisory_xact_lock"
        };
        let fill = |template: &str| {
            text(
                template
                    .replace("{table}", &table.quoted(""))
                    .replace("{fence}", &table.quoted("_fence"))
                    .replace("{expires}", &table.bare("_expires"))
                    .replace("{lock}", lock)
                    .replace("{expired}", "r.expires_at <= EXCLUDED.created_at")
                    .replace(
                        "{again}",
                        "(r.outcome IS NULL AND r.fingerprint = EXCLUDED.fingerprint)",
                    )
                    .replace(
                        "{age}",
                        "(extract(epoch FROM clock_timestamp() - r.completed_at) * 1000)::bigint",
                    )
                    .replace(
                        "{left}",
                        "(extract(epoch FROM r.expires_at - clock_timestamp()) * 1000)::bigint",
                    ),
            )
        };
        let fill_in = |template| Statement {
            text: fill(template),
            prepared,
        };
        Statements {
            schema: fill(include_str!("postgres/0001_inbox.sql")),
            claim: fill_in(include_str!("postgres/claim.sql")),
            // The claim reads it.
            look: fill_in(""),
            complete: fill_in(
                "UPDATE {table} SET outcome = $4, completed_at = clock_timestamp(), \
                 expires_at = clock_timestamp() + $5 * interval '1 ms' \
                 WHERE name = $1 AND key = $2 AND fence = $3 AND outcome IS NULL",
            ),
            // Skips rows that another transaction has locked.
            prune: fill_in(
                "DELETE FROM {table} WHERE (name, key) IN (\
                 SELECT name, key FROM {table} WHERE expires_at <= clock_timestamp() \
                 ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
            ),
        }
    }

    async fn claim(
        connection: &mut PgConnection,
        statements: &Statements,
        ask: Ask<'_>,
        _last: &AtomicI64,
    ) -> Result<Found, ::sqlx::Error> {
        let Ask {
            name,
            key,
            fingerprint,
            retention_ms,
            wait_ms,
        } = ask;
        // Set for claims without waiting too: another statement may hold a lock on the row.
        let wait = format!("{}ms", wait_ms.unwrap_or(1));
        let asked = statements
            .claim
            .query()
            .bind(name)
            .bind(key)
            .bind(fingerprint)
            .bind(retention_ms)
            .bind(wait)
            .fetch_one(connection)
            .await;
        match asked {
            Ok(row) => found(&row),
            Err(error) if is_lock_timeout(&error) => Ok(Found::Busy),
            Err(error) => Err(error),
        }
    }

    async fn complete(
        connection: &mut PgConnection,
        statement: &Statement,
        completed: Complete<'_>,
    ) -> Result<u64, ::sqlx::Error> {
        let Complete {
            name,
            key,
            fence,
            outcome,
            retention_ms,
        } = completed;
        let update = statement
            .query()
            .bind(name)
            .bind(key)
            .bind(fence)
            .bind(outcome)
            .bind(retention_ms);
        Ok(update.execute(connection).await?.rows_affected())
    }

    async fn prune(
        connection: &mut PgConnection,
        statement: &Statement,
        most: u32,
    ) -> Result<u64, ::sqlx::Error> {
        let delete = statement.query().bind(i64::from(most));
        Ok(delete.execute(connection).await?.rows_affected())
    }

    async fn migrate(
        mut transaction: Transaction<Self>,
        schema: SqlStr,
    ) -> Result<(), ::sqlx::Error> {
        query("SELECT pg_advisory_xact_lock($1)")
            .persistent(false)
            .bind(MIGRATING)
            .execute(&mut *transaction)
            .await?;
        raw_sql(schema).execute(&mut *transaction).await?;
        transaction.commit().await
    }
}

fn found(row: &PgRow) -> Result<Found, ::sqlx::Error> {
    if !row.try_get::<bool, _>(0)? {
        return Ok(Found::Busy);
    }
    Ok(Found::Row(Row {
        fingerprint: row.try_get(1)?,
        fence: row.try_get(2)?,
        attempt: row.try_get(3)?,
        outcome: row.try_get(4)?,
        age_ms: row.try_get::<Option<i64>, _>(5)?.unwrap_or(0),
        left_ms: row.try_get(6)?,
    }))
}

fn is_lock_timeout(error: &::sqlx::Error) -> bool {
    let database = error.as_database_error();
    database.and_then(|error| error.code()).as_deref() == Some("55P03")
}
