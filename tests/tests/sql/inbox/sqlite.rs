//! What is SQLite's own.

use resilience_core::sql::inbox::{Claimed, Work};

use super::rig::{SqliteRig, tea};

/// Why `BEGIN IMMEDIATE`: nothing is lost without it, but nothing is done either.
#[tokio::test]
async fn a_transaction_that_has_read_before_another_wrote_is_refused_and_not_run_twice() {
    let rig = SqliteRig::new("").await;
    let mut late = rig.pool.begin().await.unwrap();
    let read = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM effects");
    read.fetch_one(&mut *late).await.unwrap();
    let work = |work: Work<sqlx::Sqlite>| async move { Ok::<_, sqlx::Error>(work.done(())) };
    rig.inbox.run(&rig.pool, tea("a"), work).await.unwrap();
    let refused = rig.inbox.claim(&mut late, &tea("a")).await.unwrap_err();
    let code = refused.as_database_error().and_then(|error| error.code());
    assert_eq!(code.as_deref(), Some("517"), "{refused}");
    late.rollback().await.unwrap();
    let mut again = rig.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let done = rig.inbox.claim(&mut again, &tea("a")).await.unwrap();
    assert!(matches!(done, Claimed::Done(_)), "{done:?}");
}
