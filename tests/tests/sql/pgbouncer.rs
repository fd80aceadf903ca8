//! Through a PgBouncer in transaction mode, which gives the server's connection to another client after each transaction.

use resilience_core::{
    Verdict,
    retry::Backoff,
    sql::{self, inbox::PgInbox},
};
use resilience_tests::{pgbouncer::PgBouncer, postgres::Postgres};
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{task::JoinSet, time::timeout};

use crate::inbox::rig::{ms, shared};

/// A client of its own: its driver counts its prepared statements from one.
fn client(bouncer: &PgBouncer, connections: u32) -> PgPool {
    let options: PgConnectOptions = bouncer.url().parse().unwrap();
    PgPoolOptions::new()
        .max_connections(connections)
        .connect_lazy_with(options)
}

async fn effects(server: &Postgres, table: &'static str) -> (i64, i64) {
    let mut direct = PgConnection::connect(&server.url()).await.unwrap();
    let count = format!("SELECT count(*), count(DISTINCT what) FROM {table}");
    let count = sqlx::query_as(sqlx::AssertSqlSafe(count));
    count.fetch_one(&mut direct).await.unwrap()
}

#[tokio::test]
async fn the_inbox_works_through_a_pooler_that_changes_the_connection_after_each_transaction() {
    const CLIENTS: usize = 8;
    const CALLS: usize = 20;
    let bouncer = PgBouncer::start(shared(), 3);
    let setup = client(&bouncer, 1);
    let create = "CREATE TABLE bounced (what text NOT NULL)";
    sqlx::raw_sql(create).execute(&setup).await.unwrap();
    let inbox = PgInbox::builder("orders").table("bounced_records");
    // Nothing is repeated: everything works the first time.
    let inbox = inbox.max_attempts(1).build().unwrap();
    inbox.migrate(&setup).await.unwrap();
    let mut calls = JoinSet::new();
    for number in 0..CLIENTS {
        let (inbox, pool) = (inbox.clone(), client(&bouncer, 2));
        calls.spawn(async move {
            for call in 0..CALLS {
                // Each is asked for by two clients.
                let key = &format!("{}-{call}", number / 2);
                let run = inbox.run(&pool, &**key, |mut work| async move {
                    let effect = sqlx::query("INSERT INTO bounced VALUES ($1)").bind(key);
                    effect.persistent(false).execute(&mut *work).await?;
                    Ok::<_, sqlx::Error>(work.done(()))
                });
                run.await.unwrap();
            }
        });
    }
    calls.join_all().await;
    let keys = (CLIENTS / 2 * CALLS) as i64;
    assert_eq!(effects(shared(), "bounced").await, (keys, keys));
    sqlx::query("UPDATE bounced_records SET expires_at = now()")
        .persistent(false)
        .execute(&mut PgConnection::connect(&shared().url()).await.unwrap())
        .await
        .unwrap();
    assert_eq!(inbox.prune(&setup, 7).await.unwrap(), keys as u64);
}

#[tokio::test]
async fn prepared_statements_through_a_pooler_fail_as_the_table_says_and_are_tried_elsewhere() {
    let bouncer = PgBouncer::start(shared(), 1);
    let code = |failed: sqlx::Error| {
        let condition = sql::condition(&failed);
        assert_eq!(condition.verdict, Verdict::transient(), "{failed}");
        assert!(condition.discard_connection, "{failed}");
        let code = failed.as_database_error().and_then(|error| error.code());
        code.map(|code| code.into_owned())
    };
    let (one, other) = (client(&bouncer, 1), client(&bouncer, 1));
    let select = |pool| async move { sqlx::query("SELECT 1").execute(pool).await };
    select(&one).await.unwrap();
    let there_already = select(&other).await.unwrap_err();
    assert_eq!(code(there_already).as_deref(), Some("42P05"));
    // Replaces the server's connection behind the client's. If PgBouncer notices the end late, the client gets an error about a
    // connection that ended and opens another one; the replacement is then repeated.
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bounced'";
    let name = "SET application_name = 'bounced'";
    let mut direct = PgConnection::connect(&shared().url()).await.unwrap();
    let replaced = async {
        loop {
            let named = sqlx::raw_sql(name).execute(&one).await;
            if named.is_err() {
                continue;
            }
            sqlx::raw_sql(end).execute(&mut direct).await.unwrap();
            while !sqlx::query(end)
                .fetch_all(&mut direct)
                .await
                .unwrap()
                .is_empty()
            {}
            // A client that got such an error prepares its statement again.
            for _ in 0..2 {
                if let Err(failed) = select(&one).await
                    && code(failed).as_deref() == Some("26000")
                {
                    return;
                }
            }
        }
    };
    let replaced = timeout(ms(30_000), replaced).await;
    replaced.expect("the new connection has no such statement");
}

#[tokio::test]
async fn work_with_prepared_statements_gets_through_a_pooler_on_other_connections() {
    let bouncer = PgBouncer::start(shared(), 1);
    let inbox = PgInbox::builder("orders").table("rebounced_records");
    let inbox = inbox.backoff(Backoff::fixed(ms(1))).build().unwrap();
    inbox.migrate(&client(&bouncer, 1)).await.unwrap();
    // The names that the work's statement would get are taken on the server's connection.
    let other = client(&bouncer, 1);
    for statement in ["SELECT 1", "SELECT 2"] {
        sqlx::query(statement).execute(&other).await.unwrap();
    }
    let pool = client(&bouncer, 1);
    let run = inbox.run(&pool, "a", |mut work| async move {
        sqlx::query("SELECT 3").execute(&mut *work).await?;
        Ok::<_, sqlx::Error>(work.done(()))
    });
    assert_eq!(run.await.unwrap().replayed(), None);
    assert!(inbox.snapshot().retries >= 1);
}
