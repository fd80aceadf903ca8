//! What happens to an inbox.

use std::io;

use resilience_core::{
    idempotency::{Fingerprint, InProcessIdempotency, Key},
    sql::inbox::{Done, SqliteInbox, Work},
};
use sqlx::{Error, Sqlite, SqlitePool, sqlite::SqlitePoolOptions};

use super::LONG;

/// Everything that SQLite can do, under the name `name`: one inbox without a front, and one with a front that is full in
/// the end.
pub(crate) async fn everything_happens_to_an_inbox(name: &'static str) -> [SqliteInbox; 2] {
    let pool = SqlitePoolOptions::new().max_connections(1);
    let pool = pool.connect("sqlite::memory:").await.unwrap();
    let plain = SqliteInbox::builder(name).build().unwrap();
    plain.migrate(&pool).await.unwrap();
    order(&plain, &pool, "a").await;
    order(&plain, &pool, "a").await;
    let other = Key::new("a").fingerprint(Fingerprint::of([b"other".as_slice()]));
    assert!(plain.run(&pool, other, done).await.is_err());
    fails_first(&plain, &pool).await;

    let front = InProcessIdempotency::bounded(1, 1);
    let fronted = SqliteInbox::builder(name).front(front, LONG);
    let fronted = fronted.build().unwrap();
    order(&fronted, &pool, "b").await;
    order(&fronted, &pool, "b").await;
    for number in 0_u32.. {
        order(&fronted, &pool, &number.to_string()).await;
        if fronted.snapshot().front_errors > 0 {
            break;
        }
    }
    [plain, fronted]
}

async fn done(work: Work<Sqlite>) -> Result<Done<Sqlite, u32>, Error> {
    Ok(work.done(7))
}

async fn order(inbox: &SqliteInbox, pool: &SqlitePool, key: &str) {
    assert!(inbox.run(pool, key, done).await.is_ok());
}

/// Its connection breaks once, and the transaction is begun again.
pub(crate) async fn fails_first(inbox: &SqliteInbox, pool: &SqlitePool) {
    let mut failed = false;
    let ran = inbox.run(pool, "fails first", |work| {
        let fails = !std::mem::replace(&mut failed, true);
        async move {
            if fails {
                return Err(Error::Io(io::ErrorKind::ConnectionReset.into()));
            }
            done(work).await
        }
    });
    assert!(ran.await.is_ok());
}

#[tokio::test]
async fn an_inbox_counts_its_answers_by_who_gave_them() {
    let [plain, fronted] = everything_happens_to_an_inbox("telemetry.inbox").await;
    let counted = plain.snapshot();
    let answers = [
        counted.fresh,
        counted.replayed,
        counted.mismatched,
        counted.replayed_in_front,
        counted.busy,
    ];
    assert_eq!(answers, [3, 1, 1, 0, 0], "{counted:?}");
    assert_eq!((counted.retries, counted.front_errors), (1, 0));
    let counted = fronted.snapshot();
    assert_eq!((counted.replayed, counted.replayed_in_front), (0, 1));
    assert!(
        counted.fresh >= 2 && counted.front_errors >= 1,
        "{counted:?}"
    );
}
