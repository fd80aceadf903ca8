//! An inbox behind a faster store: what the front may answer, and what only the database may.

use std::time::Duration;

use resilience_core::Error;
use resilience_core::{
    error::Reason,
    idempotency::{InProcessIdempotency, Outcome},
    sql::inbox::SqliteInbox,
};

use super::rig::{EFFECT, SqliteRig, coffee, ms, tea};

struct Shop {
    rig: SqliteRig,
    front: InProcessIdempotency,
}

impl Shop {
    async fn open() -> Self {
        let (mut rig, front) = (SqliteRig::new("").await, InProcessIdempotency::new());
        rig.inbox = behind(&front);
        Self { rig, front }
    }

    async fn order(&self) -> Result<Outcome<u64>, Error<sqlx::Error>> {
        let work = self
            .rig
            .inbox
            .run(&self.rig.pool, tea("a"), |mut work| async move {
                let fence = work.fence();
                sqlx::query(EFFECT)
                    .bind("a")
                    .bind(fence as i64)
                    .execute(&mut *work)
                    .await?;
                Ok::<_, sqlx::Error>(work.done(fence))
            });
        work.await
    }

    /// Behind everybody's back.
    async fn run(&self, statement: &'static str) {
        sqlx::raw_sql(statement)
            .execute(&self.rig.pool)
            .await
            .unwrap();
    }
}

fn behind(front: &InProcessIdempotency) -> SqliteInbox {
    let inbox = SqliteInbox::builder("orders").retention(Duration::from_secs(3_600));
    inbox.front(front.clone(), ms(1_000)).build().unwrap()
}

#[tokio::test]
async fn what_is_done_is_replayed_without_the_database() {
    let shop = Shop::open().await;
    let first = shop.order().await.unwrap();
    assert_eq!(first.replayed(), None);
    // Nothing of it is needed.
    shop.run("DROP TABLE inbox; DROP TABLE effects").await;
    let again = shop.order().await.unwrap();
    assert!(again.replayed().is_some_and(|age| age < ms(60_000)));
    assert_eq!(again.value, first.value);
}

#[tokio::test]
async fn a_front_that_has_lost_everything_is_told_again_by_the_database() {
    let shop = Shop::open().await;
    let first = shop.order().await.unwrap().value;
    shop.front.flush();
    shop.run("UPDATE inbox SET completed_at = completed_at - 60000")
        .await;
    for _ in 0..2 {
        let again = shop.order().await.unwrap();
        assert_eq!(again.value, first);
        assert!(
            again
                .replayed()
                .is_some_and(|age| (ms(60_000)..ms(120_000)).contains(&age)),
            "{again:?}"
        );
        // The second time, from the front, at the same age.
        shop.run("DROP TABLE IF EXISTS effects").await;
        shop.run("ALTER TABLE inbox RENAME TO away").await;
        let from_front = shop.order().await.unwrap();
        assert!(
            from_front.replayed().is_some_and(|age| age >= ms(60_000)),
            "{from_front:?}"
        );
        shop.run("ALTER TABLE away RENAME TO inbox").await;
    }
}

#[tokio::test]
async fn what_is_rolled_back_is_not_told_to_the_front() {
    let shop = Shop::open().await;
    let failed = shop
        .rig
        .inbox
        .run(&shop.rig.pool, tea("a"), |mut work| async move {
            sqlx::query("INSERT INTO effects VALUES (NULL, NULL)")
                .execute(&mut *work)
                .await?;
            Ok::<_, sqlx::Error>(work.done(0_u64))
        });
    failed.await.unwrap_err();
    assert_eq!(shop.order().await.unwrap().replayed(), None);
    assert_eq!(shop.rig.effects("a").await, 1);
}

#[tokio::test]
async fn the_database_decides_when_the_front_is_taken_or_says_that_the_key_is_anothers() {
    let shop = Shop::open().await;
    // Another process took the claim in front, and died.
    let dead = shop
        .rig
        .inbox
        .run(&shop.rig.pool, tea("a"), |work| async move {
            std::future::pending::<()>().await;
            Ok::<_, sqlx::Error>(work.done(0_u64))
        });
    assert!(tokio::time::timeout(ms(300), dead).await.is_err());
    assert_eq!(shop.order().await.unwrap().replayed(), None);
    assert!(shop.order().await.unwrap().replayed().is_some());
    let other = shop
        .rig
        .inbox
        .run(&shop.rig.pool, coffee("a"), |work| async move {
            Ok::<_, sqlx::Error>(work.done(0_u64))
        });
    let refused = other.await.unwrap_err();
    assert_eq!(
        refused.rejected().map(|no| no.reason()),
        Some(Reason::KeyReused)
    );
    // The database has forgotten; the front calls it a mismatch, which is none of its business.
    shop.run("DELETE FROM inbox").await;
    let other = shop
        .rig
        .inbox
        .run(&shop.rig.pool, coffee("a"), |work| async move {
            Ok::<_, sqlx::Error>(work.done(7_u64))
        });
    assert_eq!(other.await.unwrap().value, 7);
}

#[tokio::test]
async fn a_front_that_is_full_or_silent_costs_its_budget_and_nothing_else() {
    let mut shop = Shop::open().await;
    // No room for a record: every claim on it fails.
    shop.rig.inbox = behind(&InProcessIdempotency::bounded(1, 1));
    for replayed in [false, true, true] {
        assert_eq!(shop.order().await.unwrap().replayed().is_some(), replayed);
    }
    assert_eq!(shop.rig.effects("a").await, 1);
}
