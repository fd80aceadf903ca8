//! One suite for every store of shared breakers: what the record of a breaker must do, asked through the trait.
//!
//! Each check takes a fresh name, so that all can run on one server. Times are real: bounds are generous where the
//! clock only has to have moved on, and exact where it must not have.

use std::{sync::Arc, time::Duration};

use crate::{
    breaker::fleet::{
        BreakerStore, BreakerView, Change, Counts, FleetOverride, FleetState, LeaseAnswer,
        OverrideKind, Report,
    },
    fleet::Pushed,
};

use crate::conformance::eventually;

mod log;
mod members;
mod probes;

const SOON: Duration = Duration::from_secs(5);

/// Runs every check on `store`.
pub async fn all(store: &dyn BreakerStore) {
    an_unknown_breaker_is_closed_and_knows_nothing(store).await;
    reports_add_up_and_a_repeated_one_counts_once(store).await;
    a_report_of_another_epoch_counts_nothing_but_shows_life(store).await;
    what_is_too_old_leaves_the_window_and_the_silent_are_no_longer_live(store).await;
    instances_that_differ_in_their_window_are_counted_together(store).await;
    one_change_wins_and_starts_afresh(store).await;
    the_epoch_only_goes_up(store).await;
    what_was_lost_is_restored_and_what_is_known_better_is_not(store).await;
    an_open_state_that_was_over_when_it_was_lost_is_over_when_it_is_restored(store).await;
    probes::never_more_probes_than_the_budget(store).await;
    probes::an_expired_lease_makes_room_and_settles_nothing(store).await;
    probes::a_probe_of_an_older_epoch_settles_nothing(store).await;
    an_instance_that_comes_back_under_its_name_has_one_vote(store).await;
    probes::no_probe_while_open_or_under_an_order(store).await;
    an_order_is_seen_by_all_until_it_expires_or_is_lifted(store).await;
    a_reset_forgets_all_but_the_epoch(store).await;
    changes_are_pushed_with_the_whole_view(store).await;
    names_do_not_leak_into_each_other(store).await;
}

/// Runs the checks of what operators see, [`members`](BreakerStore::members) and [`log`](BreakerStore::log), which a store
/// need not keep.
pub async fn for_operators(store: &dyn BreakerStore) {
    members::all(store).await;
    log::all(store).await;
}

fn report(instance: &str, sequence: u64, epoch: u64, success: u64, failure: u64) -> Report {
    Report {
        instance: instance.into(),
        voter: instance.into(),
        sequence,
        epoch,
        counts: Counts {
            success,
            failure,
            slow: 0,
        },
        failing: failure > 0,
        bucket_ms: 1_000,
        live_ms: 60_000,
        state: None,
    }
}

fn to(expected: u64, to: FleetState, lasting_ms: u64) -> Change {
    Change {
        expected,
        to,
        lasting_ms,
        trips: 1,
        by: "tester".into(),
        cause: "a test".into(),
    }
}

async fn enter(
    store: &dyn BreakerStore,
    name: &str,
    state: FleetState,
    lasting_ms: u64,
) -> BreakerView {
    let before = store.view(name).await.expect("a view");
    let (won, view) = store
        .change(name, &to(before.epoch, state, lasting_ms))
        .await
        .expect("a change");
    assert!(won);
    view
}

/// Opens for a moment and takes the first probe, which makes it half-open.
async fn half_open(store: &dyn BreakerStore, name: &str, budget: u32) -> (Arc<str>, u64) {
    enter(store, name, FleetState::Open, 1).await;
    let lease: Arc<str> = "first".into();
    let granted = std::sync::Mutex::new(0);
    eventually("the first probe is granted", SOON, || async {
        let (answer, _) = store
            .lease(name, &lease, budget, 60_000)
            .await
            .expect("an answer");
        match answer {
            LeaseAnswer::Granted { epoch } => {
                *granted.lock().expect("not poisoned") = epoch;
                true
            }
            _ => false,
        }
    })
    .await;
    let epoch = *granted.lock().expect("not poisoned");
    (lease, epoch)
}

async fn lease(
    store: &dyn BreakerStore,
    name: &str,
    id: &str,
    budget: u32,
    ms: u64,
) -> LeaseAnswer {
    store
        .lease(name, &id.into(), budget, ms)
        .await
        .expect("an answer")
        .0
}

async fn an_unknown_breaker_is_closed_and_knows_nothing(store: &dyn BreakerStore) {
    let view = store.view("unknown").await.expect("a view");
    assert_eq!(
        view,
        BreakerView {
            age_ms: view.age_ms,
            ..BreakerView::default()
        }
    );
}

/// One bad instance that crashes again and again is still one.
async fn an_instance_that_comes_back_under_its_name_has_one_vote(store: &dyn BreakerStore) {
    let name = "comes back";
    let of = |instance: &str, voter: &str, failure| Report {
        voter: voter.into(),
        ..report(instance, 1, 0, 0, failure)
    };
    for (instance, voter, failing) in [("a-1", "a", 1), ("a-2", "a", 1), ("b-1", "b", 2)] {
        let told = of(instance, voter, 5);
        let view = store.report(name, &told).await.expect("merged");
        assert_eq!(view.failing, failing, "{instance}");
    }
    let well_again = of("a-3", "a", 0);
    let view = store.report(name, &well_again).await.expect("merged");
    assert_eq!((view.live, view.failing), (4, 1));
    assert_eq!(view.window.failure, 15, "what each has seen counts");
}

async fn reports_add_up_and_a_repeated_one_counts_once(store: &dyn BreakerStore) {
    let name = "adds up";
    store
        .report(name, &report("a", 1, 0, 10, 2))
        .await
        .expect("merged");
    let repeated = store
        .report(name, &report("a", 1, 0, 10, 2))
        .await
        .expect("merged");
    assert_eq!(
        repeated.window,
        Counts {
            success: 10,
            failure: 2,
            slow: 0
        }
    );
    store
        .report(name, &report("a", 2, 0, 1, 0))
        .await
        .expect("merged");
    let slow = Report {
        counts: Counts {
            success: 3,
            failure: 0,
            slow: 2,
        },
        ..report("b", 1, 0, 0, 0)
    };
    let view = store.report(name, &slow).await.expect("merged");
    assert_eq!(
        view.window,
        Counts {
            success: 14,
            failure: 2,
            slow: 2
        }
    );
    assert_eq!(
        (view.live, view.failing),
        (2, 0),
        "a's newest report says that it is well"
    );
    let late = store
        .report(name, &report("a", 1, 0, 5, 5))
        .await
        .expect("merged");
    assert_eq!(
        late.window.total(),
        16,
        "a late older report counts nothing"
    );
}

async fn a_report_of_another_epoch_counts_nothing_but_shows_life(store: &dyn BreakerStore) {
    let name = "older epoch";
    let view = enter(store, name, FleetState::Closed, 0).await;
    let seen = store
        .report(name, &report("a", 1, view.epoch - 1, 5, 5))
        .await
        .expect("merged");
    assert_eq!((seen.window.total(), seen.live, seen.failing), (0, 1, 0));
    let seen = store
        .report(name, &report("a", 2, view.epoch, 5, 5))
        .await
        .expect("merged");
    assert_eq!((seen.window.total(), seen.live, seen.failing), (10, 1, 1));
}

async fn what_is_too_old_leaves_the_window_and_the_silent_are_no_longer_live(
    store: &dyn BreakerStore,
) {
    let name = "old";
    let brief = Report {
        bucket_ms: 10,
        live_ms: 100,
        ..report("a", 1, 0, 3, 3)
    };
    let seen = store.report(name, &brief).await.expect("merged");
    assert_eq!((seen.window.total(), seen.live, seen.failing), (6, 1, 1));
    eventually(
        "the window slides past the report, and its sender falls silent",
        SOON,
        || async {
            let view = store.view(name).await.expect("a view");
            (view.window.total(), view.live, view.failing) == (0, 0, 0)
        },
    )
    .await;
}

async fn instances_that_differ_in_their_window_are_counted_together(store: &dyn BreakerStore) {
    let name = "rollout";
    for sequence in 1..=20 {
        for (instance, bucket_ms) in [("old", 1_000), ("new", 1_700), ("other", 6_000)] {
            let report = Report {
                bucket_ms,
                ..report(instance, sequence, 0, 2, 1)
            };
            store.report(name, &report).await.expect("merged");
        }
    }
    let view = store.view(name).await.expect("a view");
    assert_eq!((view.window.success, view.window.failure), (120, 60));
    assert_eq!((view.live, view.failing), (3, 3));
}

async fn one_change_wins_and_starts_afresh(store: &dyn BreakerStore) {
    let name = "one wins";
    let before = store
        .report(name, &report("a", 1, 0, 0, 9))
        .await
        .expect("merged");
    let change = to(before.epoch, FleetState::Open, 60_000);
    let (won, opened) = store.change(name, &change).await.expect("an answer");
    assert!(won);
    assert_eq!(
        (opened.state, opened.trips, opened.failing),
        (FleetState::Open, 1, 0)
    );
    assert_eq!(
        (opened.by.as_str(), opened.cause.as_str()),
        ("tester", "a test")
    );
    assert_eq!(opened.window, Counts::default());
    assert!(opened.remaining_ms > 50_000 && opened.remaining_ms <= 60_000);
    let (won, seen) = store.change(name, &change).await.expect("an answer");
    assert!(!won);
    assert_eq!((seen.state, seen.epoch), (FleetState::Open, opened.epoch));
}

async fn the_epoch_only_goes_up(store: &dyn BreakerStore) {
    let name = "upwards";
    let mut last = store.view(name).await.expect("a view").epoch;
    for round in 0..20 {
        let view = match round % 4 {
            0 => enter(store, name, FleetState::Open, 1).await,
            1 => store
                .set_override(name, Some(disable()), "ops")
                .await
                .expect("ordered"),
            2 => store.set_override(name, None, "ops").await.expect("lifted"),
            _ => store.reset(name, "ops", "again").await.expect("reset"),
        };
        assert!(view.epoch > last, "{} after {last}", view.epoch);
        last = view.epoch;
    }
}

async fn what_was_lost_is_restored_and_what_is_known_better_is_not(store: &dyn BreakerStore) {
    let known = BreakerView {
        epoch: 1 << 52,
        state: FleetState::Open,
        remaining_ms: 40_000,
        age_ms: 2_000,
        trips: 3,
        by: "b".into(),
        cause: "c".into(),
        active_override: Some(FleetOverride {
            expires_ms: Some(30_000),
            ..disable()
        }),
        ..BreakerView::default()
    };
    let name = "lost";
    let (done, view) = store.restore(name, &known).await.expect("an answer");
    assert!(done);
    assert_eq!(
        (view.epoch, view.state, view.trips),
        (known.epoch, FleetState::Open, 3)
    );
    assert!(view.remaining_ms > 30_000 && view.remaining_ms <= 40_000 && view.age_ms >= 2_000);
    assert!(
        view.active_override
            .expect("the order too")
            .expires_ms
            .expect("an end")
            <= 30_000
    );
    let older = BreakerView {
        epoch: known.epoch - 1,
        state: FleetState::Closed,
        ..known
    };
    let (done, view) = store.restore(name, &older).await.expect("an answer");
    assert!(!done);
    assert_eq!(view.state, FleetState::Open);
}

/// With "nothing left" taken for "without end", no instance would ever probe again.
async fn an_open_state_that_was_over_when_it_was_lost_is_over_when_it_is_restored(
    store: &dyn BreakerStore,
) {
    let name = "lost when over";
    let known = BreakerView {
        epoch: 1 << 51,
        state: FleetState::Open,
        age_ms: 5_000,
        trips: 1,
        ..BreakerView::default()
    };
    assert!(store.restore(name, &known).await.expect("an answer").0);
    let (answer, view) = store
        .lease(name, &"p".into(), 1, 60_000)
        .await
        .expect("an answer");
    assert_eq!(view.state, FleetState::HalfOpen);
    assert_eq!(answer, LeaseAnswer::Granted { epoch: view.epoch });
    assert!(view.epoch > known.epoch);
}

fn disable() -> FleetOverride {
    FleetOverride {
        kind: OverrideKind::Disable,
        reason: "drill".into(),
        by: "ops".into(),
        expires_ms: None,
    }
}

async fn an_order_is_seen_by_all_until_it_expires_or_is_lifted(store: &dyn BreakerStore) {
    let name = "orders";
    let kinds = [
        OverrideKind::ForceOpen,
        OverrideKind::ForceClosed,
        OverrideKind::Disable,
        OverrideKind::MetricsOnly,
    ];
    for kind in kinds {
        let active_override = FleetOverride { kind, ..disable() };
        store
            .set_override(name, Some(active_override.clone()), "ops")
            .await
            .expect("ordered");
        assert_eq!(
            store.view(name).await.expect("a view").active_override,
            Some(active_override)
        );
    }
    assert_eq!(
        store
            .set_override(name, None, "ops")
            .await
            .expect("lifted")
            .active_override,
        None
    );
    let brief = FleetOverride {
        expires_ms: Some(20),
        ..disable()
    };
    let view = store
        .set_override(name, Some(brief), "ops")
        .await
        .expect("ordered");
    assert!(
        view.active_override
            .is_some_and(|active_override| active_override
                .expires_ms
                .is_some_and(|left| left <= 20))
    );
    eventually("the order ends by itself", SOON, || async {
        store
            .view(name)
            .await
            .expect("a view")
            .active_override
            .is_none()
    })
    .await;
}

async fn a_reset_forgets_all_but_the_epoch(store: &dyn BreakerStore) {
    let name = "reset";
    let opened = enter(store, name, FleetState::Open, 60_000).await;
    store
        .set_override(name, Some(disable()), "ops")
        .await
        .expect("ordered");
    let view = store
        .reset(name, "ops", "all is well")
        .await
        .expect("reset");
    assert!(view.epoch > opened.epoch);
    assert_eq!(
        (
            view.state,
            view.trips,
            view.active_override,
            view.remaining_ms
        ),
        (FleetState::Closed, 0, None, 0)
    );
    assert_eq!(
        (view.by.as_str(), view.cause.as_str()),
        ("ops", "all is well")
    );
}

async fn changes_are_pushed_with_the_whole_view(store: &dyn BreakerStore) {
    let name = "pushed: größe %\n";
    let mut pushes = store.subscribe(name);
    // A store may first say that the subscription stands.
    let opened = loop {
        let view = enter(store, name, FleetState::Open, 60_000).await;
        let pushed = tokio::time::timeout(Duration::from_millis(200), pushes.next()).await;
        match pushed {
            Ok(Pushed::Value(pushed)) if pushed.epoch == view.epoch => break (pushed, view),
            _ => {}
        }
    };
    let (pushed, view) = opened;
    assert_eq!(
        *pushed,
        BreakerView {
            remaining_ms: pushed.remaining_ms,
            age_ms: pushed.age_ms,
            ..view
        }
    );
}

async fn names_do_not_leak_into_each_other(store: &dyn BreakerStore) {
    for (name, other) in [("x:y", "x"), ("x}y", "x"), ("{x}", "x"), ("X", "x")] {
        store
            .report(name, &report("a", 1, 0, 1, 0))
            .await
            .expect("merged");
        assert_eq!(
            store.view(other).await.expect("a view").window,
            Counts::default()
        );
    }
}
