//! The answers of the scripts, and entries as they are stored.

use std::sync::Arc;

use bytes::Bytes;
use redis::Value;
use resilience_core::write_behind::record::{
    Head, RawDead, RawEntry, ShardState, Taken, TakenBatch, TakenEntry, WriteOutcome, Written,
};

fn list(answer: Value) -> Option<Vec<Value>> {
    match answer {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

fn text(value: Value) -> Option<Arc<str>> {
    String::from_utf8(bytes(value)?.into()).ok().map(Into::into)
}

pub(super) fn written(answer: Value) -> Option<Written> {
    let answer = list(answer)?;
    let numbers: Vec<u64> = answer.iter().map(number).collect::<Option<_>>()?;
    let [incarnation, version, entries, what, it] = <[u64; 5]>::try_from(numbers).ok()?;
    Some(Written {
        before: Head {
            incarnation,
            version,
            entries,
        },
        outcome: match what {
            1 | 2 => WriteOutcome::Stored {
                first: it,
                is_full: what == 2,
            },
            3 => WriteOutcome::Repeated { first: it },
            4 => WriteOutcome::Late,
            5 => WriteOutcome::Full { oldest_ms: it },
            6 => WriteOutcome::Resharded {
                shards: it.try_into().ok()?,
            },
            _ => return None,
        },
    })
}

pub(super) fn taken(answer: Value) -> Option<Taken> {
    let mut answer = list(answer)?;
    if answer.len() < 8 {
        return None;
    }
    let entries = answer.split_off(8);
    let numbers: Vec<u64> = answer.iter().map(number).collect::<Option<_>>()?;
    let [
        incarnation,
        version,
        many,
        oldest_ms,
        dead,
        what,
        one,
        other,
    ] = <[u64; 8]>::try_from(numbers).ok()?;
    Some(Taken {
        before: Head {
            incarnation,
            version,
            entries: many,
        },
        oldest_ms,
        dead,
        batch: match what {
            0 => TakenBatch::Idle,
            1 => TakenBatch::NotDue {
                in_ms: one,
                is_paused: other == 1,
            },
            2 => TakenBatch::Busy { for_ms: one },
            3 => TakenBatch::Batch {
                fence: one,
                pauses: other,
                entries: pairs(entries, |key, raw| {
                    let stored = stored(&raw)?;
                    Some(TakenEntry {
                        key,
                        version: stored.version,
                        attempts: stored.attempts,
                        value: stored.value,
                    })
                })?,
            },
            _ => return None,
        },
    })
}

fn pairs<T>(items: Vec<Value>, read: impl Fn(Arc<str>, Bytes) -> Option<T>) -> Option<Vec<T>> {
    let mut items = items.into_iter();
    let mut all = Vec::with_capacity(items.len() / 2);
    while let Some(key) = items.next() {
        all.push(read(text(key)?, bytes(items.next()?)?)?);
    }
    Some(all)
}

/// An entry as it is stored.
struct Stored {
    version: u64,
    attempts: u32,
    value: Option<Bytes>,
}

/// `1:version:at:since:attempts:kind:value`
fn stored(raw: &Bytes) -> Option<Stored> {
    let ([format, version, _, _, attempts, kind], value) = split(raw)?;
    if format != "1" {
        return None;
    }
    Some(Stored {
        version: version.parse().ok()?,
        attempts: attempts.parse().ok()?,
        value: of_kind(kind, value)?,
    })
}

fn of_kind(kind: &str, value: Bytes) -> Option<Option<Bytes>> {
    match kind {
        "v" => Some(Some(value)),
        "d" => Some(None),
        _ => None,
    }
}

/// The first words, each with a `:` behind it, and what follows.
fn split<const N: usize>(raw: &Bytes) -> Option<([&str; N], Bytes)> {
    let mut words = [""; N];
    let mut at = 0;
    for word in &mut words {
        let end = at + raw[at..].iter().position(|it| *it == b':')?;
        *word = std::str::from_utf8(&raw[at..end]).ok()?;
        at = end + 1;
    }
    Some((words, raw.slice(at..)))
}

pub(super) fn entry(answer: Value) -> Option<Option<RawEntry>> {
    if answer == Value::Nil {
        return Some(None);
    }
    let stored = stored(&bytes(answer)?)?;
    Some(Some(RawEntry {
        version: stored.version,
        value: stored.value,
    }))
}

pub(super) fn state(answer: Value) -> Option<ShardState> {
    if answer == Value::Nil {
        return Some(ShardState::default());
    }
    let items = <[Value; 9]>::try_from(list(answer)?).ok()?;
    let [
        incarnation,
        version,
        entries,
        now_ms,
        oldest,
        dead,
        holder,
        lease,
        pause,
    ] = items;
    let oldest_since_ms = match oldest {
        Value::Int(-1) => None,
        other => Some(number(&other)?),
    };
    let (holder, lease) = (text(holder)?, number(&lease)?);
    Some(ShardState {
        head: Head {
            incarnation: number(&incarnation)?,
            version: number(&version)?,
            entries: number(&entries)?,
        },
        now_ms: number(&now_ms)?,
        oldest_since_ms,
        dead: number(&dead)?,
        lease: (lease > 0).then_some((holder, lease)),
        pause_ms: number(&pause)?,
    })
}

pub(super) fn dead(answer: Value) -> Option<Vec<RawDead>> {
    let mut items = list(answer)?;
    if items.is_empty() {
        return None;
    }
    let letters = items.split_off(1);
    let now = number(&items[0])?;
    pairs(letters, |key, raw| {
        let ([format, version, at, attempts, kind, size], rest) = split(&raw)?;
        let size: usize = size.parse().ok()?;
        if format != "1" || size > rest.len() {
            return None;
        }
        Some(RawDead {
            key,
            version: version.parse().ok()?,
            attempts: attempts.parse().ok()?,
            age_ms: now.saturating_sub(at.parse().ok()?),
            reason: String::from_utf8_lossy(&rest[..size]).into_owned(),
            value: of_kind(kind, rest.slice(size..))?,
        })
    })
}

pub(super) fn flag(answer: &Value) -> Option<bool> {
    match number(answer)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

pub(super) fn count(answer: &Value) -> Option<u64> {
    number(answer)
}
