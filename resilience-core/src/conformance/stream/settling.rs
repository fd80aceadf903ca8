//! The end of deliveries.

use super::{Case, HOUR, SHORT, dead, give_back, name, names, retry};
use crate::stream::{Action, Settled, Settlement, StreamBroker};

pub(super) async fn an_acknowledged_message_is_gone(it: &dyn StreamBroker) {
    let case = Case::joined(it, "ack").await;
    case.publish(&["1", "2"]).await;
    let held = case.read("a", 2).await;
    assert_eq!(case.counts().await, (2, 0, 0));
    let state = case.state().await;
    let oldest = state.groups[0].oldest_ms;
    assert!(oldest.is_some_and(|ms| ms < HOUR), "{oldest:?}");
    for delivery in &held {
        case.ack("a", delivery).await;
    }
    assert_eq!(case.counts().await, (0, 0, 0));
    let state = case.state().await;
    assert_eq!((state.groups[0].lag, state.groups[0].oldest_ms), (0, None));
    assert_eq!(state.length, 2, "the stream keeps it");
    assert_eq!(case.claim_as("a", 10).await.next_ms, None);
}

/// Whatever a consumer says that does not hold the message.
pub(super) async fn a_zombie_changes_nothing(it: &dyn StreamBroker) {
    let case = Case::joined(it, "zombie").await;
    case.join("short", SHORT).await;
    case.publish(&["1"]).await;
    let zombie = case.one("short").await;
    let second = case.claim_soon("b").await;
    let actions = [
        Action::Ack(None),
        retry(0, "no"),
        give_back(0),
        dead("never"),
    ];
    for action in &actions {
        let settled = case.settle("short", &zombie, action.clone()).await;
        assert_eq!(settled, Settled::Taken, "{action:?}");
    }
    assert_eq!(case.counts().await, (1, 0, 0));
    let settled = case.settle("b", &second, retry(HOUR, "no")).await;
    assert_eq!(settled, Settled::Done);
    for action in &actions {
        for consumer in ["short", "b", "never-joined"] {
            let settled = case.settle(consumer, &zombie, action.clone()).await;
            assert_eq!(settled, Settled::Gone, "{action:?}");
        }
    }
    assert_eq!(case.counts().await, (0, 1, 0));
    let letters = it.dead_letters(&case.stream, case.group, zombie.position, 10);
    assert_eq!(letters.await, Ok(Vec::new()));
}

pub(super) async fn a_retry_comes_when_it_is_due_and_not_before(it: &dyn StreamBroker) {
    let case = Case::joined(it, "retry").await;
    case.publish(&["soon", "never", "now"]).await;
    let held = case.read("a", 3).await;
    // In one step: between two, any time may pass.
    let waits = held.iter().zip([SHORT, HOUR, 0]);
    let settlements: Vec<_> = waits
        .map(|(delivery, after_ms)| Settlement {
            position: delivery.position,
            action: retry(after_ms, "no"),
        })
        .collect();
    let settled = case.settle_all("a", &settlements).await;
    assert_eq!(settled, [Settled::Done; 3]);
    assert!(
        case.read("b", 10).await.is_empty(),
        "it is claimed, not read"
    );
    let (held, waiting, _) = case.counts().await;
    assert_eq!(held + waiting, 3);
    let again = case.claim_many_soon("b", 2).await;
    assert_eq!(names(&again), ["now", "soon"], "in the order they are due");
    assert!(again.iter().all(|it| it.deliveries == 2), "{again:?}");
    let next = case.claim_as("b", 10).await;
    assert!(next.deliveries.is_empty());
    let next = next.next_ms.expect("one waits");
    assert!((HOUR / 2..=HOUR).contains(&next), "{next}");
    assert_eq!(case.counts().await, (2, 1, 0));
}

pub(super) async fn a_message_given_back_is_not_counted(it: &dyn StreamBroker) {
    let case = Case::joined(it, "give-back").await;
    case.publish(&["1"]).await;
    let mut held = case.one("a").await;
    for (consumer, next) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let settled = case.settle(consumer, &held, give_back(0)).await;
        assert_eq!(settled, Settled::Done);
        held = case.claim_soon(next).await;
        assert_eq!((name(&held), held.deliveries), ("1".to_owned(), 1));
    }
    let settled = case.settle("b", &held, retry(0, "no")).await;
    assert_eq!(settled, Settled::Done);
    assert_eq!(case.claim_soon("a").await.deliveries, 2);
}

pub(super) async fn many_are_settled_at_once_each_by_itself(it: &dyn StreamBroker) {
    let case = Case::joined(it, "batch").await;
    let events: Vec<_> = (0..100).map(|it| it.to_string()).collect();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    case.publish(&events).await;
    let mine = case.read("a", 50).await;
    let others = case.read("b", 50).await;
    let settlements: Vec<_> = others
        .iter()
        .chain(&mine)
        .rev()
        .enumerate()
        .map(|(number, delivery)| Settlement {
            position: delivery.position,
            action: match number % 4 {
                0 => Action::Ack(None),
                1 => retry(HOUR, "no"),
                2 => give_back(HOUR),
                _ => dead("never"),
            },
        })
        .collect();
    let settled = case.settle_all("a", &settlements).await;
    let (first, last) = settled.split_at(50);
    assert!(first.iter().all(|it| *it == Settled::Done), "{settled:?}");
    assert!(last.iter().all(|it| *it == Settled::Taken), "{settled:?}");
    // Of the 50: 13 acknowledged, 13 retried, 12 given back, 12 dead.
    assert_eq!(case.counts().await, (50, 25, 12));
    assert!(case.settle_all("a", &[]).await.is_empty());
}

pub(super) async fn a_repeated_settlement_is_gone(it: &dyn StreamBroker) {
    let case = Case::joined(it, "repeated").await;
    case.publish(&["1", "2", "3", "4"]).await;
    let held = case.read("a", 4).await;
    let actions = [
        Action::Ack(None),
        retry(HOUR, "no"),
        give_back(HOUR),
        dead("never"),
    ];
    for (delivery, action) in held.iter().zip(&actions) {
        let settled = case.settle("a", delivery, action.clone()).await;
        assert_eq!(settled, Settled::Done);
        let settled = case.settle("a", delivery, action.clone()).await;
        assert_eq!(settled, Settled::Gone);
    }
    assert_eq!(case.counts().await, (0, 2, 1));
}
