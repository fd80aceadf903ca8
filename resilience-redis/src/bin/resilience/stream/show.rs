//! Streams as tables and as JSON.

use resilience_core::stream::{
    ConsumerState, DeadLetter, Failure, GroupState, Pause, PendingMessage, Position, RawMessage,
    StreamState,
};
use serde_json::{Value, json};

use crate::{
    args::Global,
    output::{new_table, plain, time},
};

pub(super) fn streams(global: &Global, all: &[(String, StreamState)]) {
    if global.json {
        print_all(all.iter().map(|(name, state)| stream(name, state)));
        return;
    }
    if all.is_empty() {
        println!("{}", global.nothing("stream"));
        return;
    }
    let mut table = new_table([
        "stream", "messages", "delayed", "groups", "lag", "held", "waiting", "dead", "oldest",
    ]);
    for (name, state) in all {
        let groups = &state.groups;
        let sum = |count: fn(&GroupState) -> u64| groups.iter().map(count).sum::<u64>();
        let lag = groups.iter().map(|it| it.lag).max();
        let oldest = groups.iter().filter_map(|it| it.oldest_ms).max();
        table.add_row([
            plain(name),
            state.length.to_string(),
            state.delayed.to_string(),
            groups.len().to_string(),
            or_dash(lag.map(|it| it.to_string())),
            sum(|it| it.held).to_string(),
            sum(|it| it.waiting).to_string(),
            sum(|it| it.dead).to_string(),
            or_dash(oldest.map(time)),
        ]);
    }
    println!("{table}");
}

pub(super) fn groups(json: bool, name: &str, state: &StreamState) {
    if json {
        println!("{}", stream(name, state));
        return;
    }
    if state.groups.is_empty() {
        println!(
            "no group: {} has {} messages, and nothing reads them",
            plain(name),
            state.length
        );
        return;
    }
    print_groups(&state.groups);
    let mut table = new_table(["group", "consumer", "held", "lease", "last step"]);
    for group in &state.groups {
        for it in &group.consumers {
            table.add_row([
                plain(&group.group),
                plain(&it.consumer),
                it.held.to_string(),
                time(it.lease_ms),
                format!("{} ago", time(it.idle_ms)),
            ]);
        }
    }
    println!("{table}");
}

/// One group.
pub(super) fn group(json: bool, group: &GroupState) {
    if json {
        println!("{}", group_json(group));
    } else {
        print_groups(std::slice::from_ref(group));
    }
}

fn print_groups(groups: &[GroupState]) {
    let mut table = new_table([
        "group", "lag", "held", "waiting", "dead", "skipped", "oldest", "cursor", "paused",
    ]);
    for it in groups {
        table.add_row([
            plain(&it.group),
            it.lag.to_string(),
            it.held.to_string(),
            it.waiting.to_string(),
            it.dead.to_string(),
            it.skipped.to_string(),
            or_dash(it.oldest_ms.map(time)),
            it.cursor.to_string(),
            or_dash(it.paused.as_ref().map(pause_in_words)),
        ]);
    }
    println!("{table}");
}

fn pause_in_words(pause: &Pause) -> String {
    let left = pause.for_ms.map(|left| format!(", {} left", time(left)));
    format!(
        "by {}: {}{}",
        plain(&pause.by),
        plain(&pause.reason),
        left.unwrap_or_default()
    )
}

pub(super) fn messages(json: bool, body: bool, messages: &[(Position, RawMessage)]) {
    if json {
        print_all(messages.iter().map(|(position, it)| {
            let mut value = message(it, body);
            value["position"] = position.to_string().into();
            value
        }));
        return;
    }
    if messages.is_empty() {
        println!("no messages from there on");
        return;
    }
    let mut table = new_table(["position", "id", "type", "key", "schema", "size"]);
    for (position, it) in messages {
        let mut row = vec![position.to_string()];
        row.extend(envelope(Some(it)));
        table.add_row(row);
    }
    println!("{table}");
    if body {
        print_bodies(messages.iter().map(|(position, it)| (*position, Some(it))));
    }
}

pub(super) fn dead_letters(json: bool, body: bool, letters: &[DeadLetter]) {
    if json {
        print_all(letters.iter().map(|it| letter(it, body)));
        return;
    }
    if letters.is_empty() {
        println!("no dead letters from there on");
        return;
    }
    let mut table = new_table([
        "position",
        "id",
        "type",
        "key",
        "schema",
        "size",
        "deliveries",
        "since",
        "reason, and failures",
    ]);
    for it in letters {
        let mut row = vec![it.position.to_string()];
        row.extend(envelope(it.message.as_ref()));
        row.extend([it.deliveries.to_string(), time(it.age_ms), history(it)]);
        table.add_row(row);
    }
    println!("{table}");
    if body {
        print_bodies(letters.iter().map(|it| (it.position, it.message.as_ref())));
    }
}

/// The reason, then the failures, the oldest first.
fn history(letter: &DeadLetter) -> String {
    let failure = |it: &Failure| {
        let reason = it.reason.as_deref().unwrap_or("its lease ended");
        format!(
            "\n{}. at {}, {} ago: {}",
            it.delivery,
            plain(&it.consumer),
            time(it.ago_ms),
            plain(reason)
        )
    };
    let failures: String = letter.failures.iter().map(failure).collect();
    plain(&letter.reason) + &failures
}

pub(super) fn pending(json: bool, pending: &[PendingMessage]) {
    if json {
        print_all(pending.iter().map(|it| {
            json!({
                "position": it.position.to_string(),
                "consumer": it.consumer.as_deref(),
                "deliveries": it.deliveries,
                "left_ms": it.left_ms,
            })
        }));
        return;
    }
    if pending.is_empty() {
        println!("no message is held or waits, from there on");
        return;
    }
    let mut table = new_table(["position", "held by", "deliveries", "left"]);
    for it in pending {
        let left = match (it.left_ms, &it.consumer) {
            (0, Some(_)) => "its lease has ended".to_owned(),
            (0, None) => "due".to_owned(),
            (left, _) => time(left),
        };
        let holder = it
            .consumer
            .as_deref()
            .map_or_else(|| "(waits)".into(), plain);
        let row = [
            it.position.to_string(),
            holder,
            it.deliveries.to_string(),
            left,
        ];
        table.add_row(row);
    }
    println!("{table}");
}

/// Dead letters that were redriven or dropped.
pub(super) fn ended(json: bool, word: &str, positions: &[Position]) {
    if json {
        let positions: Vec<_> = positions.iter().map(ToString::to_string).collect();
        println!("{}", json!({ word: positions }));
    } else if positions.is_empty() {
        println!("no dead letter was {word}");
    } else {
        println!("{word}: {}", positions.len());
    }
}

pub(super) fn listed(positions: &[Position]) -> String {
    let all: Vec<_> = positions.iter().map(ToString::to_string).collect();
    all.join("`, `")
}

/// Id, type, key, schema, size of a message.
fn envelope(message: Option<&RawMessage>) -> [String; 5] {
    let Some(RawMessage { envelope, body }) = message else {
        let nothing = || "-".to_owned();
        let gone = "no longer in the stream".to_owned();
        return [gone, nothing(), nothing(), nothing(), nothing()];
    };
    let some = |text: &str| or_dash((!text.is_empty()).then(|| plain(text)));
    [
        plain(&envelope.id),
        some(&envelope.event_type),
        some(envelope.key.as_deref().unwrap_or_default()),
        envelope.schema.to_string(),
        format!("{} bytes", body.len()),
    ]
}

fn print_bodies<'a>(messages: impl Iterator<Item = (Position, Option<&'a RawMessage>)>) {
    for (position, message) in messages {
        if let Some(message) = message {
            println!(
                "{position}: {}",
                plain(&String::from_utf8_lossy(&message.body))
            );
        }
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn print_all(all: impl Iterator<Item = Value>) {
    println!("{}", Value::Array(all.collect()));
}

fn stream(name: &str, state: &StreamState) -> Value {
    json!({
        "name": name,
        "length": state.length,
        "delayed": state.delayed,
        "first": state.first.map(|it| it.to_string()),
        "last": state.last.map(|it| it.to_string()),
        "groups": state.groups.iter().map(group_json).collect::<Value>(),
    })
}

fn group_json(it: &GroupState) -> Value {
    let paused = it.paused.as_ref().map(
        |pause| json!({ "by": &*pause.by, "reason": &*pause.reason, "left_ms": pause.for_ms }),
    );
    let consumer = |it: &ConsumerState| {
        json!({
            "consumer": &*it.consumer,
            "held": it.held,
            "lease_ms": it.lease_ms,
            "idle_ms": it.idle_ms,
        })
    };
    json!({
        "group": &*it.group,
        "cursor": it.cursor.to_string(),
        "lag": it.lag,
        "held": it.held,
        "waiting": it.waiting,
        "dead": it.dead,
        "skipped": it.skipped,
        "oldest_ms": it.oldest_ms,
        "paused": paused,
        "consumers": it.consumers.iter().map(consumer).collect::<Value>(),
    })
}

/// A body that is no text is `null`.
fn message(message: &RawMessage, with_body: bool) -> Value {
    let it = &message.envelope;
    let attributes = it.attributes.iter();
    let attributes = attributes.map(|(name, value)| (name.to_string(), Value::from(&**value)));
    let mut value = json!({
        "id": &*it.id,
        "source": &*it.source,
        "type": &*it.event_type,
        "key": it.key.as_deref(),
        "schema": it.schema,
        "content_type": &*it.content_type,
        "time_ms": it.time_ms,
        "trace_parent": it.trace_parent.as_deref(),
        "trace_state": it.trace_state.as_deref(),
        "attributes": attributes.collect::<Value>(),
        "bytes": message.body.len(),
    });
    if with_body {
        value["body"] = std::str::from_utf8(&message.body).ok().into();
    }
    value
}

fn letter(it: &DeadLetter, with_body: bool) -> Value {
    let failure = |it: &Failure| {
        json!({
            "delivery": it.delivery,
            "consumer": &*it.consumer,
            "ago_ms": it.ago_ms,
            "reason": it.reason.as_deref(),
        })
    };
    json!({
        "position": it.position.to_string(),
        "deliveries": it.deliveries,
        "reason": &*it.reason,
        "age_ms": it.age_ms,
        "failures": it.failures.iter().map(failure).collect::<Value>(),
        "message": it.message.as_ref().map(|it| message(it, with_body)),
    })
}
