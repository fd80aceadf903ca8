//! What happens to idempotency keys.

use std::{io, time::Duration};

use resilience_core::{
    fleet::{FleetOptions, OnOutage},
    idempotency::{
        Attempt, Disposition, Fingerprint, Idempotency, IdempotencyStore, InProcessIdempotency,
        Json, Key,
        record::{Claim, Takeover},
    },
};
use resilience_tests::until::eventually;

use super::{LONG, MOMENT};

/// Everything that is counted, under the name `name`; what it returns keeps it so.
pub(crate) async fn everything_happens_to_keys(name: &'static str) -> Vec<Idempotency> {
    let store = InProcessIdempotency::new();
    let handle = Idempotency::builder(name)
        .store(store.clone())
        .lease(Duration::from_secs(3))
        .wait(1, LONG)
        .build()
        .unwrap();
    answers(&handle).await;
    loses_its_lease(&handle, &store, name).await;
    waits(&handle).await;
    vec![handle, unguarded(name).await]
}

async fn seven(_: Attempt) -> Result<u32, io::Error> {
    Ok(7)
}

async fn fail(_: Attempt) -> Result<u32, io::Error> {
    Err(io::Error::other("failed"))
}

async fn answers(handle: &Idempotency) {
    assert!(handle.run("done", seven).await.is_ok());
    assert!(handle.run("done", seven).await.is_ok());
    let other = Key::new("done").fingerprint(Fingerprint::of([b"other".as_slice()]));
    assert!(handle.run(other, seven).await.is_err());
    assert!(handle.run("failed", fail).await.is_err());
    let unknown = Json::new().on_error(|_: &io::Error| Disposition::Unknown);
    assert!(handle.run_with("unknown", unknown, fail).await.is_ok());
    assert!(handle.run("unknown", seven).await.is_err());
}

/// After it was renewed.
async fn loses_its_lease(handle: &Idempotency, store: &InProcessIdempotency, name: &str) {
    let renewed = handle.clone();
    let (flushed, group) = (store.clone(), name.to_owned());
    let lost = handle.run("lost", move |attempt| async move {
        eventually("a lease is renewed", LONG, || async {
            renewed.snapshot().renewed > 0
        })
        .await;
        flushed.flush();
        let rival = Claim {
            owner: "rival".into(),
            fingerprint: Fingerprint::default().bytes().clone(),
            lease_ms: 3_600_000,
            retention_ms: 3_600_000,
            takeover: Takeover::Ended,
        };
        assert!(flushed.claim(&group, "/lost", &rival).await.is_ok());
        attempt.lost().await;
        Ok::<_, io::Error>(7)
    });
    assert!(lost.await.is_err());
}

/// One works, one waits.
async fn waits(handle: &Idempotency) {
    for _ in 0..2 {
        let handle = handle.clone();
        tokio::spawn(async move {
            let hung = |_| async {
                tokio::time::sleep(LONG).await;
                Ok::<_, io::Error>(7)
            };
            handle.run("hung", hung).await
        });
    }
    eventually("one works and one waits", LONG, || async {
        let snapshot = handle.snapshot();
        (snapshot.running, snapshot.waiting) == (1, 1)
    })
    .await;
}

/// A store that is full gives no answer.
async fn unguarded(name: &'static str) -> Idempotency {
    let handle = Idempotency::builder(name)
        .store(InProcessIdempotency::bounded(1, 1))
        .fleet(
            FleetOptions::new()
                .on_outage(OnOutage::FailOpen)
                .budget(MOMENT * 1000),
        )
        .ttl(LONG)
        .build()
        .unwrap();
    for number in 0_u32.. {
        assert!(handle.run(number.to_string(), seven).await.is_ok());
        if handle.snapshot().unguarded > 0 {
            break;
        }
    }
    handle
}
