//! What groups are given, and from where on.

use std::sync::Arc;

use super::{Case, HOUR, SOON, join, name, names};
use crate::stream::{
    Action, Join, JoinedGroup, Pause, Position, Read, Resume, Settled, Start, StreamBroker,
};

pub(super) async fn each_group_is_given_every_message_once(it: &dyn StreamBroker) {
    let one = Case::joined(it, "each").await;
    let other = one.of_group("other");
    other.join("a", HOUR).await;
    one.publish(&["1", "2"]).await;
    assert_eq!(names(&one.read("a", 10).await), ["1", "2"]);
    assert_eq!(names(&other.read("a", 10).await), ["1", "2"]);
    assert!(one.read("a", 10).await.is_empty());
    let state = one.state().await;
    let groups: Vec<_> = state.groups.iter().map(|it| &*it.group).collect();
    assert_eq!(groups, ["group", "other"]);
}

pub(super) async fn consumers_of_a_group_share_its_messages(it: &dyn StreamBroker) {
    let case = Case::joined(it, "share").await;
    case.publish(&["1", "2", "3"]).await;
    assert_eq!(names(&case.read("a", 1).await), ["1"]);
    assert_eq!(names(&case.read("b", 1).await), ["2"]);
    assert_eq!(names(&case.read("a", 9).await), ["3"]);
    assert!(case.read("b", 9).await.is_empty());
    let state = case.state().await;
    let consumers = &state.groups[0].consumers;
    let held: Vec<_> = consumers
        .iter()
        .map(|it| (&*it.consumer, it.held))
        .collect();
    assert_eq!(held, [("a", 2), ("b", 1)]);
    assert!(consumers.iter().all(|it| it.lease_ms == HOUR));
    assert!(consumers.iter().all(|it| it.idle_ms < HOUR / 2));
}

pub(super) async fn a_group_begins_where_it_is_told(it: &dyn StreamBroker) {
    let case = Case::new(it, "start");
    let positions = case.publish(&["1", "2", "3"]).await;
    for (group, start, read) in [
        ("oldest", Start::Oldest, vec!["1", "2", "3", "4"]),
        ("next", Start::Next, vec!["4"]),
        ("after", Start::After(positions[1]), vec!["3", "4"]),
        ("ago", Start::Ago(HOUR), vec!["1", "2", "3", "4"]),
    ] {
        let case = case.of_group(group);
        let join = Join { start, ..join("a") };
        let joined = case.join_as(&join).await;
        assert_eq!(joined.group, JoinedGroup::Created);
        assert_eq!(case.join_as(&join).await.group, JoinedGroup::Existing);
        if group == "next" {
            case.publish(&["4"]).await;
        }
        let expected: Vec<_> = read.into_iter().filter(|it| *it != "4").collect();
        let mut got = names(&case.read("a", 10).await);
        got.retain(|it| it != "4");
        assert_eq!(got, expected, "{group}");
    }
}

pub(super) async fn a_reader_is_woken_by_a_publish(broker: &Arc<dyn StreamBroker>) {
    let case = Case::joined(&**broker, "woken").await;
    let (stream, reader) = (case.stream.clone(), Arc::clone(broker));
    let reading = tokio::spawn(async move {
        let read = Read {
            streams: &[&stream],
            consumer: "a",
            max: 10,
            block_ms: 30_000,
        };
        reader.read("group", read).await.expect("an answer")
    });
    // Before or after the reader waits: both must do.
    case.publish(&["1"]).await;
    let read = tokio::time::timeout(SOON, reading).await;
    let read = read.expect("long before its time is over");
    assert_eq!(names(&read.expect("no panic").deliveries), ["1"]);

    let read = Read {
        streams: &[&case.stream],
        consumer: "a",
        max: 10,
        block_ms: 20,
    };
    let nothing = tokio::time::timeout(SOON, broker.read("group", read)).await;
    let nothing = nothing.expect("it waits no longer than that");
    assert!(nothing.expect("an answer").deliveries.is_empty());
}

pub(super) async fn one_read_is_over_several_streams(it: &dyn StreamBroker) {
    let one = Case::joined(it, "several").await;
    let other = Case::joined(it, "several").await;
    one.publish(&["1"]).await;
    other.publish(&["2"]).await;
    let mut got = Vec::new();
    let reading = async {
        while got.len() < 2 {
            let read = Read {
                streams: &[&one.stream, &other.stream],
                consumer: "a",
                max: 10,
                block_ms: 1000,
            };
            let batch = it.read("group", read).await.expect("an answer");
            got.extend(
                batch
                    .deliveries
                    .iter()
                    .map(|it| (it.stream.to_string(), name(it))),
            );
        }
    };
    let in_time = tokio::time::timeout(SOON, reading).await;
    assert!(in_time.is_ok(), "both streams are read");
    got.sort();
    let mut expected = [
        (one.stream.clone(), "1".to_owned()),
        (other.stream.clone(), "2".to_owned()),
    ];
    expected.sort();
    assert_eq!(got, expected);
}

pub(super) async fn a_stream_without_the_group_is_missing(it: &dyn StreamBroker) {
    let case = Case::new(it, "missing");
    let read = Read {
        streams: &[&case.stream],
        consumer: "a",
        max: 10,
        block_ms: 10_000,
    };
    let batch = tokio::time::timeout(SOON / 2, it.read("group", read)).await;
    let batch = batch.expect("it does not wait").expect("an answer");
    assert_eq!(batch.missing, [Arc::from(case.stream.as_str())]);
    assert!(batch.deliveries.is_empty());
    assert_eq!(case.claim_as("a", 10).await.incarnation, 0);
    assert_eq!(it.state(&case.stream).await, Ok(None));
    case.publish(&["1"]).await;
    let batch = it.read("group", read).await.expect("an answer");
    assert_eq!(batch.missing.len(), 1);
    assert_eq!(case.claim_as("a", 10).await.incarnation, 0);
    let joined = case.join("a", HOUR).await;
    assert_ne!(joined.incarnation, 0);
    assert_eq!(case.claim_as("a", 10).await.incarnation, joined.incarnation);
}

pub(super) async fn a_seek_moves_the_cursor_back_and_forth(it: &dyn StreamBroker) {
    let case = Case::joined(it, "seek").await;
    let positions = case.publish(&["1", "2", "3"]).await;
    let seek = async |to| it.seek(&case.stream, case.group, to).await;
    assert_eq!(seek(Start::After(positions[1])).await, Ok(true));
    let three = case.one("a").await;
    assert_eq!(name(&three), "3");
    case.ack("a", &three).await;
    assert_eq!(seek(Start::Oldest).await, Ok(true));
    let all = case.read("a", 10).await;
    assert_eq!(names(&all), ["1", "2", "3"], "what was settled too");
    for delivery in &all {
        case.ack("a", delivery).await;
    }
    assert_eq!(seek(Start::Ago(HOUR)).await, Ok(true));
    assert_eq!(names(&case.read("a", 10).await), ["1", "2", "3"]);
    case.publish(&["4"]).await;
    assert_eq!(seek(Start::Next).await, Ok(true));
    assert!(case.read("a", 10).await.is_empty());
    let state = case.state().await;
    assert_eq!(state.groups[0].lag, 0);
    let nowhere = it.seek("no-such-stream", "group", Start::Oldest).await;
    assert_eq!(nowhere, Ok(false));
}

pub(super) async fn a_seek_takes_what_is_held_after_it(it: &dyn StreamBroker) {
    let case = Case::joined(it, "seek-held").await;
    case.publish(&["1"]).await;
    let first = case.one("a").await;
    let sought = it.seek(&case.stream, case.group, Start::Oldest).await;
    assert_eq!(sought, Ok(true));
    let second = case.one("b").await;
    assert_eq!((second.position, second.deliveries), (first.position, 1));
    let zombie = case.settle("a", &first, Action::Ack(None)).await;
    assert_eq!(zombie, Settled::Taken);
    case.ack("b", &second).await;
    assert_eq!(case.counts().await, (0, 0, 0));
}

pub(super) async fn a_paused_group_is_claimed_nothing(it: &dyn StreamBroker) {
    let case = Case::joined(it, "pause").await;
    case.publish(&["1"]).await;
    let held = case.one("a").await;
    let settled = case.settle("a", &held, super::retry(0, "no")).await;
    assert_eq!(settled, Settled::Done);
    let pause = Pause {
        by: "an operator".into(),
        reason: "the database moves".into(),
        for_ms: Some(HOUR),
    };
    let paused = it.pause(&case.stream, case.group, Some(&pause)).await;
    assert_eq!(paused, Ok(true));
    let claimed = case.claim_as("a", 10).await;
    assert!(claimed.deliveries.is_empty());
    let told = claimed.paused.expect("it is paused");
    assert_eq!((&told.by, &told.reason), (&pause.by, &pause.reason));
    assert!(
        told.for_ms
            .is_some_and(|ms| (HOUR / 2..=HOUR).contains(&ms))
    );
    let other = case.of_group("other");
    other.join("a", HOUR).await;
    assert_eq!(other.claim_as("a", 10).await.paused, None);
    let state = case.state().await;
    assert!(state.groups[0].paused.is_some());
    let resumed = it.pause(&case.stream, case.group, None).await;
    assert_eq!(resumed, Ok(true));
    assert_eq!(case.claim_as("a", 10).await.deliveries.len(), 1);

    let briefly = Pause {
        for_ms: Some(super::SHORT),
        ..pause.clone()
    };
    let paused = it.pause(&case.stream, case.group, Some(&briefly)).await;
    assert_eq!(paused, Ok(true));
    crate::conformance::eventually("the pause ends", SOON, || async {
        case.claim_as("a", 10).await.paused.is_none()
    })
    .await;
    let nowhere = it.pause("no-such-stream", "group", Some(&pause)).await;
    assert_eq!(nowhere, Ok(false));
}

pub(super) async fn a_group_that_is_lost_goes_on_where_its_consumer_was(it: &dyn StreamBroker) {
    let case = Case::joined(it, "lost-group").await;
    let positions = case.publish(&["1", "2", "3"]).await;
    let incarnation = case.join("a", HOUR).await.incarnation;
    let held = case.read("a", 2).await;
    case.ack("a", &held[0]).await;
    assert_eq!(it.remove_group(&case.stream, case.group).await, Ok(true));
    assert_eq!(it.remove_group(&case.stream, case.group).await, Ok(false));
    assert_eq!(
        case.settle("a", &held[1], Action::Ack(None)).await,
        Settled::Gone
    );
    let after = positions[0];
    let resume = Some(Resume { incarnation, after });
    let again = Join {
        resume,
        start: Start::Next,
        ..join("a")
    };
    let joined = case.join_as(&again).await;
    assert_eq!(joined.incarnation, incarnation);
    assert_eq!(joined.group, JoinedGroup::Restored(after));
    assert_eq!(names(&case.read("a", 10).await), ["2", "3"]);

    assert_eq!(it.remove_group(&case.stream, case.group).await, Ok(true));
    let other = incarnation % 1000 + 1;
    assert_ne!(other, incarnation);
    let elsewhere = Join {
        resume: Some(Resume {
            incarnation: other,
            after: Position::END,
        }),
        ..again
    };
    let joined = case.join_as(&elsewhere).await;
    assert_eq!(joined.group, JoinedGroup::Recreated);
    assert_eq!(names(&case.read("a", 10).await), ["1", "2", "3"]);
}

pub(super) async fn a_consumer_leaves_only_with_nothing_in_its_hands(it: &dyn StreamBroker) {
    let case = Case::joined(it, "leave").await;
    case.publish(&["1"]).await;
    let held = case.one("a").await;
    let leave = async |consumer| it.leave(&case.stream, case.group, consumer).await;
    assert_eq!(leave("a").await, Ok(false));
    case.ack("a", &held).await;
    assert_eq!(leave("a").await, Ok(true));
    assert_eq!(leave("a").await, Ok(true), "repeated");
    assert_eq!(leave("never-joined").await, Ok(true));
    let state = case.state().await;
    let consumers = state.groups[0].consumers.iter();
    let left: Vec<_> = consumers.map(|it| &*it.consumer).collect();
    assert_eq!(left, ["b"]);
}

pub(super) async fn streams_and_groups_do_not_leak_into_each_other(it: &dyn StreamBroker) {
    let case = Case::joined(it, "leak").await;
    case.publish(&["1"]).await;
    let held = case.one("a").await;
    for stream in ["x:", "x}y", "x{y", "x y", "x%3A", "x:y", "\u{fc}"] {
        let other = Case {
            it,
            stream: format!("{}:{stream}", case.stream),
            group: "group",
        };
        other.join("a", HOUR).await;
        assert!(other.read("a", 1).await.is_empty(), "{stream}");
        other.publish(&[stream]).await;
        let own = other.one("a").await;
        assert_eq!(name(&own), stream);
        let foreign = case.settle("b", &own, Action::Ack(None)).await;
        assert_ne!(foreign, Settled::Done);
        other.ack("a", &own).await;
    }
    case.ack("a", &held).await;
}
