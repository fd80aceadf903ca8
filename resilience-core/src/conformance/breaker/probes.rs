//! Probes of a half-open breaker.

use super::{
    BreakerStore, Counts, FleetState, LeaseAnswer, SOON, disable, enter, eventually, half_open,
    lease,
};

pub(super) async fn never_more_probes_than_the_budget(store: &dyn BreakerStore) {
    let name = "budget";
    let (first, epoch) = half_open(store, name, 3).await;
    assert_eq!(
        lease(store, name, &first, 3, 60_000).await,
        LeaseAnswer::Granted { epoch },
        "it is mine"
    );
    for id in ["second", "third"] {
        assert_eq!(
            lease(store, name, id, 3, 60_000).await,
            LeaseAnswer::Granted { epoch }
        );
    }
    assert_eq!(
        lease(store, name, "fourth", 3, 60_000).await,
        LeaseAnswer::Denied
    );
    let (done, _) = store
        .settle(name, &first, epoch, Some(true))
        .await
        .expect("settled");
    assert!(done);
    assert_eq!(
        lease(store, name, "fourth", 3, 60_000).await,
        LeaseAnswer::Denied,
        "a judged probe is spent"
    );
    store
        .settle(name, "second", epoch, None)
        .await
        .expect("given back");
    assert_eq!(
        lease(store, name, "fourth", 3, 60_000).await,
        LeaseAnswer::Granted { epoch }
    );
    let (done, view) = store
        .settle(name, &first, epoch, Some(true))
        .await
        .expect("an answer");
    assert!(!done, "a probe is settled once");
    assert_eq!(
        (view.probes.success, view.probes.failure, view.leased),
        (1, 0, 2)
    );
}

pub(super) async fn an_expired_lease_makes_room_and_settles_nothing(store: &dyn BreakerStore) {
    let name = "expires";
    let (first, epoch) = half_open(store, name, 2).await;
    assert_eq!(
        lease(store, name, "brief", 2, 1).await,
        LeaseAnswer::Granted { epoch }
    );
    eventually("the brief lease's place is free", SOON, || async {
        lease(store, name, "next", 2, 60_000).await == LeaseAnswer::Granted { epoch }
    })
    .await;
    let (done, view) = store
        .settle(name, "brief", epoch, Some(false))
        .await
        .expect("an answer");
    assert!(!done);
    assert_eq!(view.probes, Counts::default());
    assert!(
        store
            .settle(name, &first, epoch, Some(false))
            .await
            .expect("settled")
            .0
    );
}

pub(super) async fn a_probe_of_an_older_epoch_settles_nothing(store: &dyn BreakerStore) {
    let name = "fenced";
    let (first, epoch) = half_open(store, name, 2).await;
    enter(store, name, FleetState::Open, 1).await;
    let (again, newer) = half_open(store, name, 2).await;
    assert_eq!(first, again, "the same id, another epoch");
    let (done, view) = store
        .settle(name, &first, epoch, Some(true))
        .await
        .expect("an answer");
    assert!(!done);
    assert_eq!(view.probes, Counts::default());
    assert!(
        store
            .settle(name, &first, newer, Some(true))
            .await
            .expect("settled")
            .0
    );
}

pub(super) async fn no_probe_while_open_or_under_an_order(store: &dyn BreakerStore) {
    assert_eq!(
        lease(store, "closed", "p", 5, 1_000).await,
        LeaseAnswer::Denied
    );
    enter(store, "opened", FleetState::Open, 60_000).await;
    assert_eq!(
        lease(store, "opened", "p", 5, 1_000).await,
        LeaseAnswer::Denied
    );
    half_open(store, "ordered", 5).await;
    store
        .set_override("ordered", Some(disable()), "ops")
        .await
        .expect("ordered");
    assert_eq!(
        lease(store, "ordered", "p", 5, 1_000).await,
        LeaseAnswer::Denied
    );
}
