//! The inbox in SQLite.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use ::sqlx::{Row as _, SqlStr, Sqlite, SqliteConnection, raw_sql};

use super::{
    super::{Transaction, statement::text, table::Table},
    dialect::{Ask, Complete, Dialect, Found, Row, Statement, Statements, sealed::Sealed},
};

impl Dialect for Sqlite {}

impl Sealed for Sqlite {
    /// Takes the write lock first: a transaction that reads before it writes fails when another has written since.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    const PREPARED: bool = true;

    fn statements(table: &Table, _waits: bool, prepared: bool) -> Statements {
        let fill = |template: &str| {
            text(
                template
                    .replace("{table}", &table.quoted(""))
                    .replace("{fence}", &table.bare("_fence"))
                    .replace("{expires}", &table.bare("_expires"))
                    .replace("{inserted}", &table.bare("_inserted"))
                    .replace("{updated}", &table.bare("_updated"))
                    .replace("{expired}", "r.expires_at <= excluded.created_at")
                    .replace(
                        "{again}",
                        "(r.outcome IS NULL AND r.fingerprint = excluded.fingerprint)",
                    )
                    .replace(
                        "{now}",
                        "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)",
                    ),
            )
        };
        let fill_in = |template| Statement {
            text: fill(template),
            prepared,
        };
        Statements {
            schema: fill(include_str!("sqlite/0001_inbox.sql")),
            claim: fill_in(include_str!("sqlite/claim.sql")),
            look: fill_in(
                "SELECT fingerprint, fence, attempt, outcome, {now} - completed_at, expires_at - {now} FROM {table} \
                 WHERE name = ?1 AND key = ?2",
            ),
            complete: fill_in(
                "UPDATE {table} SET outcome = ?4, completed_at = {now}, expires_at = {now} + ?5 \
                 WHERE name = ?1 AND key = ?2 AND fence = ?3 AND outcome IS NULL",
            ),
            prune: fill_in(
                "DELETE FROM {table} WHERE (name, key) IN (\
                 SELECT name, key FROM {table} WHERE expires_at <= {now} ORDER BY expires_at LIMIT ?1)",
            ),
        }
    }

    async fn claim(
        connection: &mut SqliteConnection,
        statements: &Statements,
        ask: Ask<'_>,
        last: &AtomicI64,
    ) -> Result<Found, ::sqlx::Error> {
        let Ask {
            name,
            key,
            fingerprint,
            retention_ms,
            ..
        } = ask;
        let claimed = statements
            .claim
            .query()
            .bind(name)
            .bind(key)
            .bind(fingerprint)
            .bind(retention_ms)
            .bind(last.load(Relaxed))
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(row) = claimed {
            let fence = row.try_get(0)?;
            last.fetch_max(fence, Relaxed);
            return Ok(Found::Row(Row {
                fingerprint: None,
                fence,
                attempt: row.try_get(1)?,
                outcome: None,
                age_ms: 0,
                left_ms: retention_ms,
            }));
        }
        // This transaction has the write lock: the row is as the claim found it.
        let row = statements
            .look
            .query()
            .bind(name)
            .bind(key)
            .fetch_one(connection)
            .await?;
        Ok(Found::Row(Row {
            fingerprint: row.try_get(0)?,
            fence: row.try_get(1)?,
            attempt: row.try_get(2)?,
            outcome: row.try_get(3)?,
            age_ms: row.try_get::<Option<i64>, _>(4)?.unwrap_or(0),
            left_ms: row.try_get(5)?,
        }))
    }

    async fn complete(
        connection: &mut SqliteConnection,
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
        connection: &mut SqliteConnection,
        statement: &Statement,
        most: u32,
    ) -> Result<u64, ::sqlx::Error> {
        let delete = statement.query().bind(most);
        Ok(delete.execute(connection).await?.rows_affected())
    }

    async fn migrate(
        mut transaction: Transaction<Self>,
        schema: SqlStr,
    ) -> Result<(), ::sqlx::Error> {
        raw_sql(schema).execute(&mut *transaction).await?;
        transaction.commit().await
    }
}
