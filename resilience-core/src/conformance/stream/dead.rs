//! Dead letters.

use super::{Case, HOUR, SHORT, dead, message, name, names, retry};
use crate::stream::{Position, Retention, Settled, StreamBroker};

/// Makes dead letters of events.
async fn bury(case: &Case<'_>, events: &[&str]) -> Vec<Position> {
    case.publish(events).await;
    let mut positions = Vec::new();
    for delivery in case.read("a", events.len()).await {
        let settled = case.settle("a", &delivery, dead("never")).await;
        assert_eq!(settled, Settled::Done);
        positions.push(delivery.position);
    }
    positions
}

pub(super) async fn a_dead_letter_keeps_its_message_and_history(it: &dyn StreamBroker) {
    let case = Case::joined(it, "dead").await;
    case.join("short", SHORT).await;
    case.publish(&["1"]).await;
    let first = case.one("a").await;
    let settled = case.settle("a", &first, retry(0, "the first time")).await;
    assert_eq!(settled, Settled::Done);
    // Its lease ends.
    let second = case.claim_soon("short").await;
    assert_eq!(second.deliveries, 2);
    let third = case.claim_soon("b").await;
    let settled = case.settle("b", &third, dead("it makes no sense")).await;
    assert_eq!(settled, Settled::Done);

    assert_eq!(case.counts().await, (0, 0, 1));
    let letters = it.dead_letters(&case.stream, case.group, Position::START, 10);
    let letters = letters.await.expect("an answer");
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.message, Some(message("1")));
    assert_eq!((letter.position, letter.deliveries), (first.position, 3));
    assert_eq!(&*letter.reason, "it makes no sense");
    assert!(letter.age_ms < HOUR);
    let told: Vec<_> = letter
        .failures
        .iter()
        .map(|it| (it.delivery, &*it.consumer, it.reason.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            (1, "a", Some("the first time")),
            (2, "short", None),
            (3, "b", Some("it makes no sense")),
        ]
    );
    assert!(letter.failures.iter().all(|it| it.ago_ms < HOUR));
    let ago = |at: usize| letter.failures[at].ago_ms;
    assert!(ago(0) >= ago(1) && ago(1) >= ago(2), "{letter:?}");
}

pub(super) async fn a_dead_letter_is_redriven_to_its_group_only(it: &dyn StreamBroker) {
    let case = Case::joined(it, "redrive").await;
    let other = case.of_group("other");
    other.join("a", HOUR).await;
    let buried = bury(&case, &["1", "2"]).await;
    assert_eq!(other.read("a", 10).await.len(), 2);
    let missing = Position::new(1, 1);
    let positions = [buried[1], missing];
    let redriven = it.redrive(&case.stream, case.group, &positions).await;
    assert_eq!(redriven, Ok(vec![true, false]));
    let again = it.redrive(&case.stream, case.group, &buried[1..]).await;
    assert_eq!(again, Ok(vec![false]));
    // Read or claimed: either will do.
    let mut delivered = case.read("a", 10).await;
    if delivered.is_empty() {
        delivered = case.claim_many_soon("a", 1).await;
    }
    assert_eq!(names(&delivered), ["2"]);
    assert_eq!(delivered[0].deliveries, 1, "counted from zero again");
    assert!(other.read("a", 10).await.is_empty());
    assert!(other.claim("a").await.is_empty());
    let settled = case.settle("a", &delivered[0], dead("again")).await;
    assert_eq!(settled, Settled::Done);
    let letters = it.dead_letters(&case.stream, case.group, Position::START, 10);
    let letters = letters.await.expect("an answer");
    assert_eq!(letters.len(), 2);
    let second = letters.iter().find(|it| &*it.reason == "again");
    let second = second.expect("it is dead again");
    assert_eq!(second.failures.len(), 1, "the old ones are forgotten");
}

pub(super) async fn a_dead_letter_outlives_its_message(it: &dyn StreamBroker) {
    let case = Case::joined(it, "outlives").await;
    let buried = bury(&case, &["1"]).await;
    let nothing = Retention {
        max_age_ms: None,
        max_length: Some(0),
        settled: None,
        keep_ms: HOUR,
    };
    let trimmed = it.trim(&case.stream, &nothing).await.expect("an answer");
    assert_eq!(trimmed.length, 0);
    let letters = it.dead_letters(&case.stream, case.group, Position::START, 10);
    let letters = letters.await.expect("an answer");
    assert_eq!(letters[0].message, Some(message("1")));
    let redriven = it.redrive(&case.stream, case.group, &buried).await;
    assert_eq!(redriven, Ok(vec![true]));
    let mut delivered = case.read("a", 10).await;
    if delivered.is_empty() {
        delivered = case.claim_many_soon("a", 1).await;
    }
    assert_eq!(name(&delivered[0]), "1");
    case.ack("a", &delivered[0]).await;
    assert_eq!(case.counts().await, (0, 0, 0));
}

pub(super) async fn dead_letters_are_dropped_and_paged(it: &dyn StreamBroker) {
    let case = Case::joined(it, "drop").await;
    let buried = bury(&case, &["1", "2", "3", "4"]).await;
    let page = async |from, max| {
        let letters = it.dead_letters(&case.stream, case.group, from, max);
        let letters = letters.await.expect("an answer");
        letters.iter().map(|it| it.position).collect::<Vec<_>>()
    };
    assert_eq!(page(Position::START, 2).await, buried[..2]);
    assert_eq!(page(buried[1].next(), 2).await, buried[2..]);
    assert_eq!(page(buried[3].next(), 2).await, []);
    let dropped = it.drop_dead(&case.stream, case.group, &buried[1..3]).await;
    assert_eq!(dropped, Ok(vec![true, true]));
    let again = it.drop_dead(&case.stream, case.group, &buried[1..]).await;
    assert_eq!(again, Ok(vec![false, false, true]));
    assert_eq!(page(Position::START, 9).await, buried[..1]);
    assert!(case.claim("a").await.is_empty());
    let nowhere = it.drop_dead("no-such-stream", case.group, &buried[..1]);
    assert_eq!(nowhere.await, Ok(vec![false]));
}
