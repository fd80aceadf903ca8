//! What is published, how often, and when.

use super::{Case, HOUR, SHORT, message, name, names, outgoing, stored};
use crate::{
    conformance::{eventually, stream::SOON},
    stream::{ProducerSequence, Publish, Published, StreamBroker},
};

pub(super) async fn messages_are_read_as_they_were_published(it: &dyn StreamBroker) {
    let case = Case::joined(it, "plain").await;
    let positions = case.publish(&["1", "2", "3"]).await;
    assert!(positions.is_sorted() && positions[0] < positions[2]);
    let read = case.read("a", 2).await;
    assert_eq!(names(&read), ["1", "2"]);
    assert!(read.iter().all(|it| *it.stream == *case.stream));
    assert!(read.iter().all(|it| it.deliveries == 1));
    let rest = case.read("a", 2).await;
    assert_eq!(names(&rest), ["3"]);
    let at = |it: &crate::stream::Delivery| it.position;
    let at: Vec<_> = read.iter().chain(&rest).map(at).collect();
    assert_eq!(at, positions);
    assert!(case.read("a", 2).await.is_empty());
    let peeked = it.peek(&case.stream, positions[1], 10).await;
    let peeked = peeked.expect("an answer");
    assert_eq!(
        peeked,
        [(positions[1], message("2")), (positions[2], message("3"))]
    );
}

pub(super) async fn positions_rise_over_all_publishes(it: &dyn StreamBroker) {
    let case = Case::new(it, "rise");
    let mut last = None;
    for _ in 0..20 {
        for position in case.publish(&["1", "2"]).await {
            assert!(Some(position) > last);
            last = Some(position);
        }
    }
    let state = case.state().await;
    assert_eq!((state.length, state.last), (40, last));
}

fn numbered(producer: &str, first: u64, events: &[&str], delay_ms: u64) -> Publish {
    Publish {
        messages: events.iter().map(|it| outgoing(it, delay_ms)).collect(),
        sequence: Some(ProducerSequence {
            producer: producer.into(),
            first,
            keep_ms: HOUR,
        }),
    }
}

pub(super) async fn a_repeated_publish_is_stored_once(it: &dyn StreamBroker) {
    let case = Case::joined(it, "once").await;
    let publish = async |first, events: &[&str]| {
        let publish = numbered("p", first, events, 0);
        let published = it.publish(&case.stream, &publish).await;
        published.expect("an answer")
    };
    let first = publish(1, &["1", "2"]).await;
    assert!(stored(first[0]) < stored(first[1]));
    let again = publish(1, &["1", "2"]).await;
    assert_eq!(again, [Published::Duplicate; 2]);
    // Cut at another place, and with a gap behind.
    let overlapping = publish(2, &["2", "3"]).await;
    assert_eq!(overlapping[0], Published::Duplicate);
    stored(overlapping[1]);
    stored(publish(10, &["10"]).await[0]);
    assert_eq!(publish(9, &["9"]).await, [Published::Duplicate]);
    let read = case.read("a", 10).await;
    assert_eq!(names(&read), ["1", "2", "3", "10"]);
}

pub(super) async fn producers_do_not_leak_into_each_other(it: &dyn StreamBroker) {
    let (case, other) = (Case::new(it, "producers"), Case::new(it, "producers"));
    for producer in ["p", "q", "p:q"] {
        for case in [&case, &other] {
            let publish = numbered(producer, 1, &["1"], 0);
            let published = it.publish(&case.stream, &publish).await;
            stored(published.expect("an answer")[0]);
        }
    }
    assert_eq!(case.state().await.length, 3);
}

pub(super) async fn a_delayed_message_is_not_there_before_its_time(it: &dyn StreamBroker) {
    let case = Case::joined(it, "delayed").await;
    let messages = vec![
        outgoing("never", 2 * HOUR),
        outgoing("not for an hour", HOUR),
        outgoing("later", 2 * SHORT),
        outgoing("now", 0),
        outgoing("soon", SHORT),
    ];
    let published = case.publish_as(messages).await;
    let delayed = Published::Delayed;
    assert_eq!(published[..3], [delayed; 3]);
    stored(published[3]);
    assert_eq!(published[4], delayed);
    let state = case.state().await;
    assert_eq!(state.length + state.delayed, 5);

    let mut read = Vec::new();
    for event in ["now", "soon", "later"] {
        eventually(event, SOON, || async {
            case.claim_as("a", 0).await;
            let state = case.state().await;
            state.groups[0].lag > 0
        })
        .await;
        read.push(case.one("a").await);
    }
    assert_eq!(names(&read), ["now", "soon", "later"]);
    assert!(read.is_sorted_by_key(|it| it.position), "{read:?}");
    let state = case.state().await;
    assert_eq!((state.length, state.delayed), (3, 2));
    let next = case.claim_as("a", 0).await.next_ms.expect("two are left");
    assert!((HOUR / 2..=HOUR).contains(&next), "{next}");
}

pub(super) async fn a_repeated_delayed_publish_is_stored_once(it: &dyn StreamBroker) {
    let case = Case::joined(it, "delayed-once").await;
    let publish = numbered("p", 1, &["1"], SHORT);
    let first = it.publish(&case.stream, &publish).await;
    assert_eq!(first.expect("an answer"), [Published::Delayed]);
    let again = it.publish(&case.stream, &publish).await;
    assert_eq!(again.expect("an answer"), [Published::Duplicate]);
    eventually("the message is due", SOON, || async {
        case.claim_as("a", 0).await;
        case.state().await.length > 0
    })
    .await;
    let again = it.publish(&case.stream, &publish).await;
    assert_eq!(again.expect("an answer"), [Published::Duplicate]);
    assert_eq!(name(&case.one("a").await), "1");
    assert_eq!(case.state().await.delayed, 0);
}
