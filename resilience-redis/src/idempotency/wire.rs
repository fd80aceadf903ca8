//! Arguments and replies of the scripts. Numbers are packed doubles: they are whole and below 2^53. See
//! `common.lua` for the form of a record.

use bytes::Bytes;
use redis::Value;
use resilience_core::idempotency::record::{
    Claim, Claimed, Grant, Holder, Loss, Phase, Previous, RecordView, Takeover, WriteOutcome,
};

/// First byte of a record; no text begins with it.
const MARK: u8 = 249;
/// Bytes of a record before its fingerprint.
const HEAD: usize = 51;

/// The record of a new key behind its fence, with the takeover rule of the claim, and whether its process `listens`, in
/// place of a time.
pub(super) fn claim(claim: &Claim, listens: bool) -> Vec<u8> {
    let takeover = match claim.takeover {
        Takeover::Never => 0,
        Takeover::Any => 2,
        // The default.
        _ => 1,
    };
    let manner = takeover + 4 * u64::from(listens);
    let names = [&claim.fingerprint[..], claim.owner.as_bytes()];
    let mut asked = Vec::with_capacity(HEAD + names[0].len() + names[1].len());
    asked.extend(packed([0, manner]));
    asked.extend(packed([claim.lease_ms, claim.retention_ms]));
    asked.extend(names.map(size));
    asked.push(0);
    names.iter().for_each(|name| asked.extend(*name));
    asked
}

/// The record as its holder knows it, with `bytes` for the script. `done` is the time of the completion, if any, and how long
/// its outcome is kept.
pub(super) fn record(holder: &Holder, done: Option<(u64, u64)>, bytes: &[u8]) -> Vec<u8> {
    let names = [&holder.fingerprint[..], holder.owner.as_bytes()];
    let length = HEAD + names[0].len() + names[1].len() + bytes.len();
    let mut record = Vec::with_capacity(length);
    let phase = if done.is_some() { 2 } else { 1 };
    let (since, ttl_ms) = done.unwrap_or_default();
    record.extend([MARK, phase, code(holder.previous), 0]);
    record.extend(holder.attempt.to_le_bytes());
    // The server sets `until` and the lease.
    for number in [holder.fence, since, 0, ttl_ms, holder.retention_ms] {
        record.extend((number as f64).to_le_bytes());
    }
    record.extend(names.map(size));
    // Subscribers are notified now, or known to the server.
    record.push(0);
    for part in [names[0], names[1], bytes] {
        record.extend(part);
    }
    record
}

const fn code(previous: Previous) -> u8 {
    match previous {
        Previous::Released => 1,
        Previous::Ended => 2,
        Previous::Unknown => 3,
        _ => 0,
    }
}

/// Size of an owner or fingerprint, [checked](resilience_core::idempotency::store::MAX_WORD) to be short.
const fn size(word: &[u8]) -> u8 {
    word.len() as u8
}

pub(super) fn packed(numbers: [u64; 2]) -> [u8; 16] {
    let mut packed = [0; 16];
    for (slot, number) in packed.chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&(number as f64).to_le_bytes());
    }
    packed
}

/// Parses the reply to `claim`, of a server whose clock shows `now`.
pub(super) fn claimed(answer: Value, claim: &Claim, now: u64) -> Option<Claimed> {
    let (head, quoted) = match answer {
        Value::Int(fence) => {
            return Some(Claimed::New(Grant {
                fence: fence.try_into().ok()?,
                attempt: 1,
                previous: Previous::None,
                checkpoint: None,
            }));
        }
        Value::BulkString(head) if head.first() == Some(&MARK) => return done(head, claim, now),
        Value::BulkString(head) => (head, None),
        Value::Array(items) => match <[Value; 2]>::try_from(items).ok()? {
            [Value::BulkString(head), Value::BulkString(quoted)] => (head, Some(quoted)),
            _ => return None,
        },
        _ => return None,
    };
    let (how, numbers) = head.split_first()?;
    let numbers: &[u8; 24] = numbers.try_into().ok()?;
    let nth = |n: usize| number(&numbers[8 * n..8 * (n + 1)]);
    let (first, second, third) = (nth(0)?, nth(1)?, nth(2)?);
    Some(match how {
        0 | 1 => {
            let grant = Grant {
                fence: first,
                attempt: second.try_into().ok()?,
                previous: previous(third)?,
                checkpoint: quoted.map(Into::into),
            };
            if *how == 0 {
                Claimed::New(grant)
            } else {
                Claimed::Mine(grant)
            }
        }
        2 => Claimed::Busy {
            remaining_ms: first,
        },
        4 => Claimed::Mismatch,
        5 => Claimed::Unknown {
            fence: first,
            attempt: second.try_into().ok()?,
            age_ms: third,
        },
        _ => return None,
    })
}

/// Whether an answer to `claim` is the record of work that was done after `now`, on the server's clock.
pub(super) fn is_done_after(answer: &Value, now: u64) -> bool {
    let Value::BulkString(record) = answer else {
        return false;
    };
    let since = record.get(16..24).and_then(number);
    record.first() == Some(&MARK) && since.is_some_and(|since| since > now)
}

/// The answer to `claim` when the record is done.
fn done(record: Vec<u8>, claim: &Claim, now: u64) -> Option<Claimed> {
    let head = record.get(..HEAD)?;
    let (fence, since) = (number(&head[8..16])?, number(&head[16..24])?);
    let owner = HEAD + usize::from(head[48]);
    let outcome = owner + usize::from(head[49]);
    if record.get(HEAD..owner)? != claim.fingerprint {
        return Some(Claimed::Mismatch);
    }
    let record = Bytes::from(record);
    Some(Claimed::Done {
        outcome: (outcome <= record.len()).then(|| record.slice(outcome..))?,
        age_ms: now.saturating_sub(since) / 1000,
        fence,
    })
}

/// Parses a double that is a whole number.
fn number(bytes: &[u8]) -> Option<u64> {
    let number = f64::from_le_bytes(bytes.try_into().ok()?);
    let whole = (0.0..9_007_199_254_740_992.0).contains(&number) && number.fract() == 0.0;
    whole.then_some(number as u64)
}

const fn previous(number: u64) -> Option<Previous> {
    Some(match number {
        0 => Previous::None,
        1 => Previous::Released,
        2 => Previous::Ended,
        3 => Previous::Unknown,
        _ => return None,
    })
}

/// Parses the reply to a step of the holder.
pub(super) fn kept(answer: Value) -> Option<WriteOutcome> {
    let Value::BulkString(word) = answer else {
        return None;
    };
    Some(match word.as_slice() {
        b"kept" => WriteOutcome::Kept,
        b"restored" => WriteOutcome::Restored,
        b"taken" => WriteOutcome::Lost(Loss::Taken),
        b"over" => WriteOutcome::Lost(Loss::Over),
        b"gone" => WriteOutcome::Lost(Loss::Gone),
        _ => return None,
    })
}

/// Parses the reply to `get`.
pub(super) fn view(answer: Value) -> Option<Option<RecordView>> {
    let items = match answer {
        Value::Nil => return Some(None),
        Value::Array(items) => items,
        _ => return None,
    };
    let number = |item: &Value| match item {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let items: Vec<u64> = items.iter().map(number).collect::<Option<_>>()?;
    let [
        phase,
        fence,
        attempt,
        age_ms,
        remaining_ms,
        expires_ms,
        outcome_bytes,
        checkpoint_bytes,
    ] = <[u64; 8]>::try_from(items).ok()?;
    let phase = match phase {
        0 => Phase::Released,
        1 => Phase::Running,
        2 => Phase::Done,
        3 => Phase::Unknown,
        _ => return None,
    };
    Some(Some(RecordView {
        phase,
        fence,
        attempt: attempt.try_into().ok()?,
        age_ms,
        remaining_ms,
        expires_ms,
        outcome_bytes,
        checkpoint_bytes,
    }))
}
