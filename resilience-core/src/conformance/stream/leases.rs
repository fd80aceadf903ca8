//! Leases: how long a message is a consumer's own, and who is given it then.

use std::{collections::HashSet, sync::Arc};

use tokio::task::JoinSet;

use super::{Case, HOUR, SHORT, SOON, give_back, name, names};
use crate::{
    conformance::eventually,
    stream::{Action, Claim, Held, Settled, StreamBroker},
};

pub(super) async fn a_message_whose_lease_ends_is_claimed_once(it: &dyn StreamBroker) {
    let case = Case::joined(it, "lease").await;
    case.join("short", SHORT).await;
    case.publish(&["1"]).await;
    let first = case.one("short").await;
    let claimed = case.claim_as("short", 0).await;
    assert!(claimed.next_ms.is_some_and(|ms| ms <= SHORT), "{claimed:?}");
    let second = case.claim_soon("b").await;
    assert_eq!(second.position, first.position);
    assert_eq!((name(&second), second.deliveries), ("1".to_owned(), 2));
    assert!(case.claim("a").await.is_empty(), "it is held");
    let extended = case.extend("short", first.position);
    assert_eq!(extended.await, Held::Taken);
    let pending = it
        .pending(&case.stream, case.group, first.position, 10)
        .await;
    let pending = pending.expect("an answer");
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].consumer.as_deref(), Some("b"));
    assert_eq!(pending[0].deliveries, 2);
    assert!(pending[0].left_ms > HOUR / 2);
    case.ack("b", &second).await;
    let gone = case.extend("b", first.position);
    assert_eq!(gone.await, Held::Gone);
}

pub(super) async fn a_lease_that_is_extended_does_not_end(it: &dyn StreamBroker) {
    let case = Case::joined(it, "extend").await;
    let lease_ms = 8 * SHORT;
    case.join("short", lease_ms).await;
    case.publish(&["1", "2"]).await;
    let held = case.read("short", 2).await;
    // The lease of the other one has ended when it is claimed: by then the first one would have too.
    let mut other = None;
    let extending = async {
        while other.is_none() {
            assert_eq!(case.extend("short", held[0].position).await, Held::Held);
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            // One, the longest over: both have ended if that took longer than a lease.
            other = case.claim_as("b", 1).await.deliveries.into_iter().next();
        }
    };
    let in_time = tokio::time::timeout(SOON, extending).await;
    assert!(in_time.is_ok(), "the other lease ends");
    let other = other.expect("it was claimed");
    assert_eq!((name(&other), other.deliveries), ("2".to_owned(), 2));
    case.ack("short", &held[0]).await;
    let taken = case.settle("short", &held[1], Action::Ack(None)).await;
    assert_eq!(taken, Settled::Taken);
}

pub(super) async fn a_lease_is_that_of_its_holder(it: &dyn StreamBroker) {
    let case = Case::joined(it, "whose-lease").await;
    case.join("short", SHORT).await;
    case.publish(&["long", "short"]).await;
    let long = case.one("a").await;
    let short = case.one("short").await;
    // A consumer with a short lease takes from another one with a short lease, and not from one with a long one.
    let claimed = case.claim_soon("short").await;
    assert_eq!(claimed.position, short.position);
    assert_eq!(claimed.deliveries, 2, "its own ended lease is one as well");
    case.ack("short", &claimed).await;
    assert!(case.claim("short").await.is_empty());
    case.ack("a", &long).await;
}

pub(super) async fn a_holder_whose_lease_ended_may_still_settle(it: &dyn StreamBroker) {
    let case = Case::joined(it, "late").await;
    case.join("short", SHORT).await;
    case.publish(&["1", "2"]).await;
    let held = case.read("short", 2).await;
    eventually("the leases end", SOON, || async {
        let claimed = case.claim_as("a", 0).await;
        claimed.next_ms == Some(0)
    })
    .await;
    case.ack("short", &held[0]).await;
    let extended = case.extend("short", held[1].position);
    assert_eq!(extended.await, Held::Held);
}

pub(super) async fn reading_again_does_not_count_as_a_delivery(it: &dyn StreamBroker) {
    let case = Case::joined(it, "count").await;
    case.publish(&["1"]).await;
    let held = case.one("a").await;
    for _ in 0..3 {
        assert!(case.read("a", 10).await.is_empty());
        case.join("a", HOUR).await;
        let extended = case.extend("a", held.position);
        assert_eq!(extended.await, Held::Held);
    }
    let pending = it
        .pending(&case.stream, case.group, held.position, 10)
        .await;
    assert_eq!(pending.expect("an answer")[0].deliveries, 1);
}

pub(super) async fn old_leases_are_found_behind_many_fresh_ones(it: &dyn StreamBroker) {
    let case = Case::joined(it, "behind").await;
    case.join("short", SHORT).await;
    let events: Vec<_> = (0..300).map(|it| it.to_string()).collect();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    case.publish(&events).await;
    let fresh = case.read("a", 299).await;
    assert_eq!(fresh.len(), 299);
    let last = case.one("short").await;
    let claimed = case.claim_soon("b").await;
    assert_eq!(claimed.position, last.position);
}

pub(super) async fn a_crowd_claims_each_message_once(broker: &Arc<dyn StreamBroker>) {
    let case = Case::joined(&**broker, "crowd").await;
    let events: Vec<_> = (0..200).map(|it| it.to_string()).collect();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    case.publish(&events).await;
    for delivery in case.read("a", 200).await {
        let settled = case.settle("a", &delivery, give_back(0)).await;
        assert_eq!(settled, Settled::Done);
    }
    let mut crowd = JoinSet::new();
    for number in 0..8 {
        let (broker, stream) = (Arc::clone(broker), case.stream.clone());
        let consumer = format!("crowd-{number}");
        case.join(&consumer, HOUR).await;
        crowd.spawn(async move {
            let mut claimed = Vec::new();
            loop {
                let claim = Claim {
                    consumer: &consumer,
                    max: 7,
                };
                let more = broker.claim(&stream, "group", claim).await;
                let more = more.expect("an answer").deliveries;
                if more.is_empty() {
                    return claimed;
                }
                claimed.extend(names(&more));
            }
        });
    }
    let claimed: Vec<_> = crowd.join_all().await.into_iter().flatten().collect();
    let distinct: HashSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (200, 200));
}
