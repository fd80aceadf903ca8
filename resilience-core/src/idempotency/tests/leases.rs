//! Leases that are renewed, and lost.

use std::{io, time::Duration};

use super::{
    Effects, Idempotency, LEASE, SECOND, builder, fresh, handle, refused, repeating, replayed,
    shaky::Shaky,
};
use crate::{
    error::{Error, Reason},
    fleet::FleetOptions,
    idempotency::{
        Attempt, Fingerprint, IdempotencyStore, InProcessIdempotency, Key,
        record::{Claim, Claimed, Holder, Phase, Previous, Takeover},
    },
};

/// The claim of another process, under the key that the handles here use.
async fn rival(store: &dyn IdempotencyStore, key: &str, lease: Duration) -> Holder {
    let claim = Claim {
        owner: "rival".into(),
        fingerprint: Fingerprint::default().bytes().clone(),
        lease_ms: u64::try_from(lease.as_millis()).unwrap(),
        retention_ms: 86_400_000,
        takeover: Takeover::Ended,
    };
    match store.claim("test", &Key::new(key).stored(), &claim).await {
        Ok(Claimed::New(grant)) => Holder::new(&claim, &grant),
        other => panic!("not granted: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_for_as_long_as_the_work_takes() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (one, other) = (handle(&store), handle(&store));
    let working = effects.begin(&one, "k", 5 * LEASE).await;
    for _ in 0..9 {
        tokio::time::sleep(LEASE / 2).await;
        let (reason, left) = refused(effects.once(&other, "k").await);
        assert_eq!(reason, Reason::InFlight);
        assert!(left.unwrap() >= LEASE / 2 && left.unwrap() <= LEASE);
    }
    assert_eq!(fresh(working.await.unwrap()), 1);
    assert!(one.snapshot().renewed >= 14);
    assert_eq!(one.snapshot().leases_lost, 0);
    assert_eq!(replayed(effects.once(&other, "k").await), 1);
}

/// Work that never yields does not cost it its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_lease_is_renewed_while_the_work_keeps_its_thread() {
    let store = InProcessIdempotency::new();
    let handle = builder(&store)
        .lease(Duration::from_millis(400))
        .fleet(FleetOptions::new().budget(Duration::from_millis(300)))
        .build()
        .unwrap();
    let run = handle.run("k", |attempt| async move {
        std::thread::sleep(Duration::from_millis(1_000));
        Ok::<_, io::Error>(attempt.is_lost())
    });
    assert!(!run.await.unwrap().value);
    assert!(handle.snapshot().renewed >= 3);
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_taken_over_after_its_lease_with_what_it_left() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = repeating(&store);
    let crashed = rival(&store, "k", 3 * SECOND).await;
    let (reason, left) = refused(effects.once(&handle, "k").await);
    assert_eq!((reason, left), (Reason::InFlight, Some(3 * SECOND)));
    tokio::time::advance(3 * SECOND).await;
    let run = handle.run("k", |attempt| async move {
        Ok::<_, io::Error>((
            attempt.fence(),
            attempt.number(),
            attempt.previous() == Previous::Ended,
        ))
    });
    let (fence, number, ended) = run.await.unwrap().value;
    assert!(fence > crashed.fence && number == 2 && ended);
}

#[tokio::test(start_paused = true)]
async fn a_zombie_is_told_and_its_outcome_is_refused() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    let zombie = effects.begin(&handle, "k", 5 * LEASE).await;
    // The record is lost, and another claim comes before the next heartbeat.
    store.flush();
    let holder = rival(&store, "k", 3600 * SECOND).await;
    let result = zombie.await.unwrap();
    assert_eq!(refused(result).0, Reason::Superseded);
    let snapshot = handle.snapshot();
    assert_eq!(
        (snapshot.leases_lost, snapshot.lost, snapshot.recorded),
        (1, 1, 0)
    );
    let view = handle.get("k").await.unwrap().unwrap();
    assert_eq!((view.phase, view.fence), (Phase::Running, holder.fence));
}

#[tokio::test(start_paused = true)]
async fn the_work_hears_that_its_lease_is_lost() {
    let store = InProcessIdempotency::new();
    let handle = handle(&store);
    let waits = handle.clone();
    let working = tokio::spawn(async move {
        let run = waits.run("k", |attempt| async move {
            assert!(!attempt.is_lost());
            attempt.lost().await;
            let saved = attempt.save_checkpoint("x").await;
            assert!(attempt.is_lost() && saved.is_err());
            Err::<u32, _>(io::Error::other("stopped"))
        });
        run.await
    });
    while handle.snapshot().granted == 0 {
        tokio::task::yield_now().await;
    }
    store.flush();
    rival(&store, "k", 3600 * SECOND).await;
    let stopped = tokio::time::timeout(LEASE / 2, working).await.unwrap();
    assert!(matches!(stopped.unwrap(), Err(Error::Service(_))));
}

/// A store that forgets is no reason to lose the lease, or what was left for the next attempt.
#[tokio::test(start_paused = true)]
async fn a_lost_record_comes_back_with_the_next_sign_of_life() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (one, other) = (handle(&store), handle(&store));
    let works = one.clone();
    let working = tokio::spawn(async move {
        let run = works.run("k", |attempt| async move {
            attempt.save_checkpoint("half").await.unwrap();
            tokio::time::sleep(2 * LEASE).await;
            Ok::<_, io::Error>(7)
        });
        run.await
    });
    tokio::time::sleep(SECOND).await;
    store.flush();
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(refused(effects.once(&other, "k").await).0, Reason::InFlight);
    let view = other.get("k").await.unwrap().unwrap();
    assert!(view.checkpoint_bytes > 0);
    store.flush();
    assert_eq!(fresh(working.await.unwrap()), 7);
    assert_eq!(replayed(effects.once(&other, "k").await), 7);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_costs_the_lease_by_our_own_clock() {
    let store = Shaky::default();
    let handle = Idempotency::builder("test")
        .store(store.clone())
        .build()
        .unwrap();
    let down = store.clone();
    let start = tokio::time::Instant::now();
    let run = handle.run("k", move |attempt| async move {
        down.down(true);
        attempt.lost().await;
        let waited = start.elapsed();
        assert!(waited <= LEASE, "{waited:?}");
        down.down(false);
        Ok::<_, io::Error>(waited)
    });
    // No other attempt took over, so the outcome counts.
    assert_eq!(run.await.unwrap().value, LEASE);
    assert_eq!(handle.snapshot().recorded, 1);
    // And tried more often than a third of a lease would have it.
    assert!(handle.snapshot().store_errors > 5);
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_end_at_the_ceiling() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let one = builder(&store)
        .max_lease_time(2 * LEASE)
        .cancel_at_max_lease_time(false)
        .build()
        .unwrap();
    let other = repeating(&store);
    let hung = effects.begin(&one, "k", 10 * LEASE).await;
    tokio::time::sleep(2 * LEASE - SECOND).await;
    assert_eq!(refused(effects.once(&other, "k").await).0, Reason::InFlight);
    tokio::time::sleep(LEASE + SECOND).await;
    assert_eq!(fresh(effects.once(&other, "k").await), 1);
    assert_eq!(refused(hung.await.unwrap()).0, Reason::Superseded);
    assert_eq!(one.snapshot().leases_lost, 1);
    assert_eq!(replayed(effects.once(&one, "k").await), 1);
}

#[tokio::test(start_paused = true)]
async fn work_may_be_cancelled_at_the_ceiling() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).max_lease_time(2 * LEASE).build().unwrap();
    let start = tokio::time::Instant::now();
    let cancelled = effects.taking(&handle, "k", 10 * LEASE).await;
    assert_eq!(refused(cancelled).0, Reason::TimedOut);
    assert_eq!(start.elapsed(), 2 * LEASE);
    tokio::time::sleep(20 * LEASE).await;
    assert_eq!(effects.count(), 0);
    let blocked = effects.once(&handle, "k").await;
    assert_eq!(refused(blocked).0, Reason::OutcomeUnknown);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_running_when_the_work_is_done() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    for number in 0..20 {
        let _ = effects.once(&handle, &number.to_string()).await;
        let failed: Result<_, Error<io::Error>> = handle
            .run("f", |_: Attempt| async {
                Err::<u32, _>(io::Error::other("no"))
            })
            .await;
        assert!(failed.is_err());
    }
    tokio::task::yield_now().await;
    assert_eq!(handle.snapshot().running, 0);
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert_eq!(tasks, 0);
}
