//! The log of changes.

use crate::breaker::fleet::{BreakerLogEntry, LOG_ENTRIES, LOG_TEXT, LogAction};

use super::*;

pub(super) async fn all(store: &dyn BreakerStore) {
    changes_and_commands_are_logged_with_author_and_reason(store).await;
    what_changes_nothing_is_not_logged(store).await;
    what_was_restored_is_logged(store).await;
    the_log_is_bounded(store).await;
}

async fn log(store: &dyn BreakerStore, name: &str) -> Vec<BreakerLogEntry> {
    store.log(name, LOG_ENTRIES).await.expect("the log")
}

async fn changes_and_commands_are_logged_with_author_and_reason(store: &dyn BreakerStore) {
    let name = "logged";
    assert_eq!(log(store, name).await, []);
    let opened = enter(store, name, FleetState::Open, 1).await;
    let (_, half_open) = half_open_by(store, name, "probe-1").await;
    let ramping = enter(store, name, FleetState::RampUp(1), 40_000).await;
    let drill = FleetOverride {
        expires_ms: Some(60_000),
        ..disable()
    };
    let set = store
        .set_override(name, Some(drill), "ann")
        .await
        .expect("set");
    let cleared = store.set_override(name, None, "bo").await.expect("cleared");
    let reset = store
        .reset(name, "ops", "größe: \"quoted\"")
        .await
        .expect("reset");

    let entries = log(store, name).await;
    let tester = ("tester", "a test");
    let expected = [
        (
            reset.epoch,
            LogAction::Reset,
            FleetState::RampUp(1),
            FleetState::Closed,
            ("ops", "größe: \"quoted\""),
            None,
        ),
        (
            cleared.epoch,
            LogAction::Cleared,
            FleetState::RampUp(1),
            FleetState::RampUp(1),
            ("bo", ""),
            None,
        ),
        (
            set.epoch,
            LogAction::Overridden(OverrideKind::Disable),
            FleetState::RampUp(1),
            FleetState::RampUp(1),
            ("ann", "drill"),
            Some(60_000),
        ),
        (
            ramping.epoch,
            LogAction::Changed,
            FleetState::HalfOpen,
            FleetState::RampUp(1),
            tester,
            Some(40_000),
        ),
        (
            half_open,
            LogAction::Changed,
            FleetState::Open,
            FleetState::HalfOpen,
            ("probe-1", "the open time is over"),
            None,
        ),
        (
            opened.epoch,
            LogAction::Changed,
            FleetState::Closed,
            FleetState::Open,
            tester,
            Some(1),
        ),
    ];
    for (entry, expected) in entries.iter().zip(&expected) {
        let said = (&*entry.by, &*entry.why);
        let seen = (
            entry.epoch,
            entry.action,
            entry.from,
            entry.to,
            said,
            entry.lasting_ms,
        );
        assert_eq!(seen, *expected);
        assert!(entry.age_ms < 30_000, "{entry:?}");
    }
    assert_eq!(entries.len(), expected.len());
    assert!(
        entries.is_sorted_by_key(|entry| entry.age_ms),
        "newest first"
    );
    let newest = store.log(name, 2).await.expect("the log");
    let epochs: Vec<_> = newest.iter().map(|entry| entry.epoch).collect();
    assert_eq!(epochs, [reset.epoch, cleared.epoch]);
    assert_eq!(store.log(name, 0).await.expect("the log"), []);
}

/// Waits until the open state has ended with this probe.
async fn half_open_by(store: &dyn BreakerStore, name: &str, probe: &str) -> (Arc<str>, u64) {
    let probe: Arc<str> = probe.into();
    loop {
        let (answer, _) = store.lease(name, &probe, 3, 60_000).await.expect("ok");
        if let LeaseAnswer::Granted { epoch } = answer {
            return (probe, epoch);
        }
        tokio::task::yield_now().await;
    }
}

async fn what_changes_nothing_is_not_logged(store: &dyn BreakerStore) {
    let name = "not logged";
    let (probe, epoch) = half_open(store, name, 3).await;
    let before = log(store, name).await.len();
    for sequence in 1..10 {
        let report = report("a", sequence, epoch, 1, 1);
        store.report(name, &report).await.expect("merged");
    }
    lease(store, name, "second", 3, 60_000).await;
    store
        .settle(name, &probe, epoch, Some(true))
        .await
        .expect("settled");
    store.probe(name).await.expect("well");
    let late = to(epoch - 1, FleetState::Closed, 0);
    assert!(!store.change(name, &late).await.expect("an answer").0);
    let known = store.view(name).await.expect("a view");
    assert!(!store.restore(name, &known).await.expect("an answer").0);
    assert_eq!(log(store, name).await.len(), before);
}

async fn what_was_restored_is_logged(store: &dyn BreakerStore) {
    let name = "restored and logged";
    let known = BreakerView {
        epoch: 1 << 52,
        state: FleetState::Open,
        remaining_ms: 40_000,
        by: "b".into(),
        cause: "c".into(),
        ..BreakerView::default()
    };
    assert!(store.restore(name, &known).await.expect("an answer").0);
    let [entry] = &log(store, name).await[..] else {
        panic!("one entry");
    };
    assert_eq!(
        (entry.epoch, entry.action),
        (known.epoch, LogAction::Restored)
    );
    assert_eq!(
        (&*entry.by, &*entry.why, entry.lasting_ms),
        ("b", "c", Some(40_000))
    );
    assert_eq!(
        (entry.from, entry.to),
        (FleetState::Closed, FleetState::Open)
    );
}

async fn the_log_is_bounded(store: &dyn BreakerStore) {
    let name = "a long log";
    let long = "x".repeat(LOG_TEXT + 10);
    for _ in 0..LOG_ENTRIES + 20 {
        store.reset(name, "ops", &long).await.expect("reset");
    }
    let newest = store.view(name).await.expect("a view").epoch;
    let entries = store.log(name, LOG_ENTRIES * 2).await.expect("the log");
    assert_eq!(entries.len(), LOG_ENTRIES);
    assert_eq!(entries[0].epoch, newest);
    assert!(entries.iter().all(|entry| entry.why.len() == LOG_TEXT));
}
