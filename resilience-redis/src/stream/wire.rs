//! The answers of the scripts.

use std::sync::Arc;

use redis::Value;
use resilience_core::stream::{
    Begun, Claimed, ConsumerState, DeadLetter, Delivery, Failure, GroupState, Held, Joined,
    JoinedGroup, Pause, PendingMessage, Position, Published, RawMessage, Settled, StreamState,
    Trimmed, broker::StoreError,
};

use super::message::message;

pub(super) fn unexpected(what: &str) -> StoreError {
    StoreError::new(format!("unexpected answer from Redis: {what}"), false)
}

/// Zero: it is no longer in the stream.
fn maybe_message(position: Position, fields: Value) -> Option<Option<RawMessage>> {
    match fields {
        Value::Int(0) => Some(None),
        fields => Some(Some(message(position, list(fields)?)?)),
    }
}

/// Entries of a stream.
pub(super) fn entries(answer: Value) -> Option<Vec<(Position, RawMessage)>> {
    let entry = |entry| {
        let [position, fields] = items(entry)?;
        let position = self::position(position)?;
        Some((position, message(position, list(fields)?)?))
    };
    each(answer, entry)
}

/// Entries that were delivered for the first time. Redis answers with nothing for one that was removed while it was delivered.
pub(super) fn first_deliveries(stream: &Arc<str>, answer: Value) -> Option<Vec<Delivery>> {
    let delivery = |(position, message)| Delivery {
        stream: Arc::clone(stream),
        position,
        deliveries: 1,
        message: Some(message),
    };
    Some(entries(answer)?.into_iter().map(delivery).collect())
}

/// The answer to XREADGROUP: entries by key; a map, or before RESP3 a list of pairs.
pub(super) fn by_key(answer: Value) -> Option<Vec<(Vec<u8>, Value)>> {
    match answer {
        Value::Nil => Some(Vec::new()),
        Value::Map(pairs) => pairs
            .into_iter()
            .map(|(key, entries)| Some((bytes(key)?, entries)))
            .collect(),
        answer => each(answer, |pair| {
            let [key, entries] = items(pair)?;
            Some((bytes(key)?, entries))
        }),
    }
}

pub(super) fn published(answer: Value) -> Option<Vec<Published>> {
    each(answer, |it| {
        Some(match it {
            Value::Int(0) => Published::Delayed,
            Value::Int(1) => Published::Duplicate,
            it => Published::Stored(position(it)?),
        })
    })
}

pub(super) fn joined(answer: Value) -> Option<Joined> {
    let [incarnation, how, after] = items(answer)?;
    let group = match number(&how)? {
        0 => JoinedGroup::Existing,
        1 => JoinedGroup::Created,
        2 => JoinedGroup::Restored(position(after)?),
        3 => JoinedGroup::Recreated,
        _ => return None,
    };
    Some(Joined {
        incarnation: number(&incarnation)?,
        group,
    })
}

pub(super) fn claimed(stream: &str, answer: Value) -> Option<Claimed> {
    if answer == Value::Nil {
        return Some(Claimed::default());
    }
    let [incarnation, next, skipped, paused, deliveries] = items(answer)?;
    let stream: Arc<str> = Arc::from(stream);
    let delivery = |it| {
        let [at, deliveries, fields] = items(it)?;
        let position = position(at)?;
        Some(Delivery {
            stream: Arc::clone(&stream),
            position,
            deliveries: number(&deliveries)?.try_into().ok()?,
            message: maybe_message(position, fields)?,
        })
    };
    Some(Claimed {
        deliveries: each(deliveries, delivery)?,
        next_ms: maybe_number(&next)?,
        paused: pause(paused)?,
        incarnation: number(&incarnation)?,
        skipped: number(&skipped)?,
    })
}

/// Zero: it is not paused.
fn pause(answer: Value) -> Option<Option<Pause>> {
    if answer == Value::Int(0) {
        return Some(None);
    }
    let [left, by, reason] = items(answer)?;
    Some(Some(Pause {
        by: text(by)?,
        reason: text(reason)?,
        for_ms: maybe_number(&left)?,
    }))
}

pub(super) fn held(answer: Value) -> Option<Vec<Held>> {
    each(answer, |it| one_held(&it))
}

fn one_held(answer: &Value) -> Option<Held> {
    match number(answer)? {
        0 => Some(Held::Held),
        1 => Some(Held::Taken),
        2 => Some(Held::Gone),
        _ => None,
    }
}

/// Zero: all of `many` are done.
pub(super) fn settled(answer: Value, many: usize) -> Option<Vec<Settled>> {
    if answer == Value::Int(0) {
        return Some(vec![Settled::Done; many]);
    }
    each(answer, |it| match number(&it)? {
        0 => Some(Settled::Done),
        1 => Some(Settled::Taken),
        2 => Some(Settled::Gone),
        _ => None,
    })
}

/// A number: the fence of all of `many`, which are first attempts.
pub(super) fn begun(answer: Value, many: usize) -> Option<Vec<Begun>> {
    if let Value::Int(_) = answer {
        let fence = number(&answer)?;
        return Some(vec![Begun::Run { fence, attempt: 1 }; many]);
    }
    each(answer, |it| {
        let mut it = list(it)?.into_iter();
        let how = number(&it.next()?)?;
        Some(match how {
            0 => Begun::Run {
                fence: number(&it.next()?)?,
                attempt: number(&it.next()?)?.try_into().ok()?,
            },
            1 => Begun::Done {
                outcome: bytes(it.next()?)?.into(),
            },
            2 => Begun::Busy,
            3 => Begun::Lost(one_held(&it.next()?)?),
            _ => return None,
        })
    })
}

pub(super) fn trimmed(answer: Value) -> Option<Trimmed> {
    if answer == Value::Nil {
        return Some(Trimmed::default());
    }
    let [removed, undelivered, length] = items(answer)?;
    Some(Trimmed {
        removed: number(&removed)?,
        undelivered: number(&undelivered)?,
        length: number(&length)?,
    })
}

pub(super) fn flag(answer: &Value) -> Option<bool> {
    match answer {
        Value::Int(0) => Some(false),
        Value::Int(1) => Some(true),
        _ => None,
    }
}

pub(super) fn flags(answer: Value) -> Option<Vec<bool>> {
    each(answer, |it| flag(&it))
}

pub(super) fn state(answer: Value) -> Option<Option<StreamState>> {
    if answer == Value::Nil {
        return Some(None);
    }
    let [length, delayed, first, last, incarnation, groups] = items(answer)?;
    let mut groups = each(groups, group)?;
    groups.sort_by(|a, b| a.group.cmp(&b.group));
    Some(Some(StreamState {
        length: number(&length)?,
        delayed: number(&delayed)?,
        first: maybe_position(first)?,
        last: maybe_position(last)?,
        incarnation: number(&incarnation)?,
        groups,
    }))
}

fn group(answer: Value) -> Option<GroupState> {
    let [
        name,
        cursor,
        lag,
        held,
        waiting,
        dead,
        skipped,
        oldest,
        paused,
        consumers,
    ] = items(answer)?;
    let name = text(name)?;
    let mut consumers = each(consumers, |it| {
        let [name, held, lease, idle] = items(it)?;
        Some(ConsumerState {
            consumer: text(name)?,
            held: number(&held)?,
            lease_ms: number(&lease)?,
            idle_ms: number(&idle)?,
        })
    })?;
    consumers.sort_by(|a, b| a.consumer.cmp(&b.consumer));
    Some(GroupState {
        group: match name.strip_prefix('~') {
            Some(name) => name.into(),
            None => name,
        },
        cursor: position(cursor)?,
        lag: number(&lag)?,
        held: number(&held)?,
        waiting: number(&waiting)?,
        dead: number(&dead)?,
        skipped: number(&skipped)?,
        oldest_ms: maybe_number(&oldest)?,
        paused: pause(paused)?,
        consumers,
    })
}

pub(super) fn pending(answer: Value) -> Option<Vec<PendingMessage>> {
    each(answer, |it| {
        let [at, consumer, deliveries, left] = items(it)?;
        let consumer = text(consumer)?;
        Some(PendingMessage {
            position: position(at)?,
            consumer: (!consumer.is_empty()).then_some(consumer),
            deliveries: number(&deliveries)?.try_into().ok()?,
            left_ms: number(&left)?,
        })
    })
}

pub(super) fn dead_letters(answer: Value) -> Option<Vec<DeadLetter>> {
    let failure = |it| {
        let [delivery, consumer, ago, reason] = items(it)?;
        Some(Failure {
            delivery: number(&delivery)?.try_into().ok()?,
            consumer: text(consumer)?,
            ago_ms: number(&ago)?,
            reason: match reason {
                Value::Int(0) => None,
                reason => Some(text(reason)?),
            },
        })
    };
    each(answer, |it| {
        let [at, deliveries, reason, age, failures, fields] = items(it)?;
        let position = position(at)?;
        Some(DeadLetter {
            position,
            message: maybe_message(position, fields)?,
            deliveries: number(&deliveries)?.try_into().ok()?,
            reason: text(reason)?,
            age_ms: number(&age)?,
            failures: each(failures, failure)?,
        })
    })
}

pub(super) fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

fn items<const N: usize>(value: Value) -> Option<[Value; N]> {
    list(value)?.try_into().ok()
}

fn each<T>(value: Value, read: impl FnMut(Value) -> Option<T>) -> Option<Vec<T>> {
    list(value)?.into_iter().map(read).collect()
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// A name of another program may be no text.
pub(super) fn text(value: Value) -> Option<Arc<str>> {
    Some(String::from_utf8_lossy(&bytes(value)?).into())
}

pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => (*number).try_into().ok(),
        _ => None,
    }
}

/// Below zero: none.
fn maybe_number(value: &Value) -> Option<Option<u64>> {
    match value {
        Value::Int(number) => Some((*number).try_into().ok()),
        _ => None,
    }
}

pub(super) fn position(value: Value) -> Option<Position> {
    let digits = bytes(value)?;
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

/// Zero: none.
fn maybe_position(value: Value) -> Option<Option<Position>> {
    match value {
        Value::Int(0) => Some(None),
        value => Some(Some(position(value)?)),
    }
}
