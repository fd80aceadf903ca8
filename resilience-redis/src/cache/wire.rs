//! Records as Redis has them, and the replies of the scripts. See `header.lua` for the form of a record.

use std::sync::{Arc, LazyLock};

use bytes::{Buf, Bytes};
use redis::Value;
use resilience_core::cache::{
    record::{Entry, Fill, Generation, Lease, Leased, SLACK_MS, Stored, TagGeneration, Token},
    store::StoreError,
};

/// First byte of a record; no text begins with it.
const MARK: u8 = 250;
/// Bytes of a record before its tags.
const HEAD: usize = 64;

const VALUE: u8 = 1;
const NO_VALUE: u8 = 2;
const SEVERAL_WRITES: u8 = 5;

/// The head of a record without a value, that a step writes or refers to: of a lease, a tombstone, or a write.
pub(super) fn head(hash: u64, kind: u8, token: Option<Token>, length_ms: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&[MARK, HEAD as u8, kind, 0]);
    head[4..12].copy_from_slice(&hash.to_le_bytes());
    if let Some(token) = token {
        head[44..52].copy_from_slice(&token.get().to_le_bytes());
    }
    head[58..].copy_from_slice(&six(length_ms));
    head
}

/// The head of a lease, and the version that is to be loaded again.
pub(super) fn lease(hash: u64, lease: &Lease) -> [u8; HEAD + 8] {
    let mut asked = [0; HEAD + 8];
    asked[..HEAD].copy_from_slice(&head(hash, 0, Some(lease.token), lease.lease_ms));
    let renew = lease.renew.map_or(0, Token::get);
    asked[HEAD..].copy_from_slice(&renew.to_le_bytes());
    asked
}

/// The record of a value; the server adds when it was stored.
pub(super) fn value(hash: u64, version: Token, fill: &Fill) -> Vec<u8> {
    let body: &[u8] = fill.body.as_deref().unwrap_or_default();
    let tags: usize = fill.tags.iter().map(|tag| tag.tag.len() + 9).sum();
    let mut record = Vec::with_capacity(HEAD + tags + body.len());
    let kind = if fill.body.is_some() { VALUE } else { NO_VALUE };
    // Sizes are checked to fit: see `validate`.
    record.extend([MARK, HEAD as u8, kind, fill.tags.len() as u8]);
    record.extend(hash.to_le_bytes());
    record.extend(version.get().to_le_bytes());
    for ms in [0, fill.fresh_ms, fill.keep_ms, fill.load_ms] {
        record.extend(six(ms));
    }
    record.resize(HEAD, 0);
    for tag in &*fill.tags {
        record.push(tag.tag.len() as u8);
        record.extend(tag.tag.as_bytes());
        record.extend(tag.generation.to_le_bytes());
    }
    record.extend(body);
    record
}

/// What a key holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A value that is kept.
    Entry(Entry),
    /// No value: nothing, a lease, a tombstone, a write, or a value that is over.
    Nothing,
    /// Not a record of this key, or in a format that this version does not know.
    Foreign,
}

/// Whether the answer to GET proves to be the record of the key with this hash. `nil` proves nothing and harms nothing: the
/// key counts as a miss, and whether it is one is found out by the script that grants leases.
pub(super) fn is_of(answer: &Value, hash: u64) -> bool {
    match answer {
        Value::Nil => true,
        Value::BulkString(record) => is_record(record, hash),
        _ => false,
    }
}

fn is_record(record: &[u8], hash: u64) -> bool {
    let [MARK, size, kind, ..] = record else {
        return false;
    };
    let is_whole = usize::from(*size) >= HEAD && record.len() >= usize::from(*size);
    is_whole && *kind <= SEVERAL_WRITES && record[4..12] == hash.to_le_bytes()
}

/// What the key with this hash holds, by the answer to GET; `now` is the server's time in milliseconds.
pub(super) fn content(answer: Value, hash: u64, now: u64) -> Option<Content> {
    match answer {
        Value::Nil => Some(Content::Nothing),
        Value::BulkString(record) if !is_record(&record, hash) => Some(Content::Foreign),
        Value::BulkString(record) if record[2] != VALUE && record[2] != NO_VALUE => {
            Some(Content::Nothing)
        }
        Value::BulkString(record) => Some(match entry(record.into(), now) {
            None => Content::Foreign,
            Some(entry) if entry.age_ms >= entry.keep_ms => Content::Nothing,
            Some(entry) => Content::Entry(entry),
        }),
        _ => None,
    }
}

/// The value of a record that has one.
fn entry(mut record: Bytes, now: u64) -> Option<Entry> {
    let (size, kind, tags) = (usize::from(record[1]), record[2], record[3]);
    let version = u64::from_le_bytes(record[12..20].try_into().ok()?);
    let [stored_at, fresh_ms, keep_ms, load_ms] =
        [20, 26, 32, 38].map(|at| moment(&record[at..at + 6]));
    record.advance(size);
    let tags = self::tags(&mut record, tags)?;
    Some(Entry {
        version: Token::new(version)?,
        body: (kind == VALUE).then_some(record),
        age_ms: if stored_at > now + SLACK_MS {
            fresh_ms
        } else {
            now.saturating_sub(stored_at)
        },
        fresh_ms,
        keep_ms,
        load_ms,
        tags,
    })
}

/// Takes a number of tags off the front.
fn tags(record: &mut Bytes, count: u8) -> Option<Arc<[TagGeneration]>> {
    /// The tag of all values.
    static ALL: LazyLock<Arc<str>> = LazyLock::new(|| "".into());
    let tag = |_| {
        let size = usize::from(record.try_get_u8().ok()?);
        if record.len() < size + 8 {
            return None;
        }
        let name = record.split_to(size);
        let generation = record.get_u64_le();
        let tag = match &name[..] {
            [] => Arc::clone(&ALL),
            name => std::str::from_utf8(name).ok()?.into(),
        };
        Some(TagGeneration { tag, generation })
    };
    (0..count).map(tag).collect()
}

fn six(ms: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = ms.to_le_bytes();
    [a, b, c, d, e, f]
}

fn moment(six: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight[..6].copy_from_slice(six);
    u64::from_le_bytes(eight)
}

/// The answer to a lease, and the time on the server's clock in microseconds.
pub(super) fn leased(answer: Value, hash: u64) -> Option<(Leased, u64)> {
    let (head, record) = match answer {
        Value::BulkString(head) => (head, Value::Nil),
        Value::Array(items) => match <[Value; 2]>::try_from(items).ok()? {
            [Value::BulkString(head), record] => (head, record),
            _ => return None,
        },
        _ => return None,
    };
    let head: &[u8; 15] = head.as_slice().try_into().ok()?;
    let left_ms = moment(&head[1..7]);
    let micros = f64::from_le_bytes(head[7..].try_into().ok()?) as u64;
    let value = match content(record, hash, micros / 1000)? {
        Content::Entry(entry) => Some(entry),
        Content::Nothing | Content::Foreign => None,
    };
    let leased = match (head[0], value) {
        (0, stale) => Leased::Granted { stale },
        (1, Some(entry)) => Leased::Fresh(entry),
        (2, stale) => Leased::Held { left_ms, stale },
        (3, None) => Leased::Refused { left_ms },
        _ => return None,
    };
    Some((leased, micros))
}

/// The answer to a step that stores a value.
pub(super) fn stored(answer: &Value) -> Option<Stored> {
    match answer {
        Value::Int(1) => Some(Stored::Stored),
        Value::Int(0) => Some(Stored::Refused),
        _ => None,
    }
}

/// The answer to a step without a result.
pub(super) fn done(answer: &Value) -> Option<()> {
    stored(answer).map(drop)
}

/// The generations of a number of tags.
pub(super) fn generations(answer: &Value, tags: usize) -> Option<Vec<Generation>> {
    let Value::Array(items) = answer else {
        return None;
    };
    let generation = |pair: &[Value]| match pair {
        [Value::Int(number), Value::Int(since)] => Some(Generation {
            number: u64::try_from(*number).ok()?,
            invalidated_ms: u64::try_from(*since).ok(),
        }),
        _ => None,
    };
    let all: Vec<Generation> = items.chunks(2).map(generation).collect::<Option<_>>()?;
    (all.len() == tags).then_some(all)
}

/// An answer that no script gives. Leaves values out: they may be confidential.
pub(super) fn unexpected(what: &str) -> StoreError {
    crate::CommandError::Unexpected(what.to_owned()).into()
}

#[cfg(test)]
mod tests;
