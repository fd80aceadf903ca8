//! What goes to the scripts, and what their answers say. Numbers are packed doubles: they are whole and below 2^53. See
//! `common.lua` for the form of a record.

use bytes::Bytes;
use redis::Value;
use resilience_core::idempotency::record::{
    Claim, Claimed, Grant, Holder, Kept, Loss, Phase, Previous, Takeover, View,
};

/// What no text begins with.
const MARK: u8 = 249;
/// Bytes of a record before its fingerprint.
const HEAD: usize = 58;

/// The numbers of a claim; fingerprint and owner; the retention once more, as text.
pub(super) fn claim(claim: &Claim) -> [Vec<u8>; 3] {
    let takeover = match claim.takeover {
        Takeover::Never => 0,
        Takeover::Any => 2,
        // What it is by default.
        _ => 1,
    };
    let mut numbers = packed(&[claim.lease_ms, claim.retention_ms]);
    numbers.extend([takeover, size(&claim.fingerprint)]);
    let who = [&claim.fingerprint[..], claim.owner.as_bytes()].concat();
    [numbers, who, claim.retention_ms.to_string().into_bytes()]
}

/// The record as its holder knows it, with `bytes` that the script takes.
pub(super) fn record(holder: &Holder, bytes: &[u8]) -> Vec<u8> {
    let previous = match holder.previous {
        Previous::Released => 1,
        Previous::Ended => 2,
        Previous::Unknown => 3,
        _ => 0,
    };
    let (fingerprint, owner) = (&holder.fingerprint[..], holder.owner.as_bytes());
    let mut record = Vec::with_capacity(HEAD + fingerprint.len() + owner.len() + bytes.len());
    record.extend([MARK, 1, previous, 0]);
    record.extend(holder.attempt.to_le_bytes());
    // Since, until and lease are the server's to say, as is when it expires.
    for number in [holder.fence, 0, 0, 0, holder.retention_ms, 0] {
        record.extend((number as f64).to_le_bytes());
    }
    record.extend([size(fingerprint), size(owner)]);
    for part in [fingerprint, owner, bytes] {
        record.extend(part);
    }
    record
}

/// Of words, which [have been found](resilience_core::idempotency::store::MAX_WORD) to be short.
const fn size(word: &[u8]) -> u8 {
    word.len() as u8
}

pub(super) fn packed(numbers: &[u64]) -> Vec<u8> {
    let doubles = numbers.iter().map(|&number| number as f64);
    doubles.flat_map(f64::to_le_bytes).collect()
}

/// The answer to a claim.
pub(super) fn claimed(answer: Value) -> Option<Claimed> {
    let (head, quoted) = match answer {
        Value::BulkString(head) => (head, None),
        Value::Array(items) => match <[Value; 2]>::try_from(items).ok()? {
            [Value::BulkString(head), Value::BulkString(quoted)] => (head, Some(quoted)),
            _ => return None,
        },
        _ => return None,
    };
    let (how, rest) = head.split_first()?;
    let (numbers, record) = rest.split_at_checked(24)?;
    let nth = |n: usize| number(&numbers[8 * n..8 * (n + 1)]);
    let (first, second, third) = (nth(0)?, nth(1)?, nth(2)?);
    if !record.is_empty() && *how != 3 {
        return None;
    }
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
        3 => {
            let before = usize::try_from(third).ok()?.checked_add(1 + 24)?;
            let answer = Bytes::from(head);
            Claimed::Done {
                outcome: (before <= answer.len()).then(|| answer.slice(before..))?,
                age_ms: first,
                fence: second,
            }
        }
        4 => Claimed::Mismatch,
        5 => Claimed::Unknown {
            fence: first,
            attempt: second.try_into().ok()?,
            age_ms: third,
        },
        _ => return None,
    })
}

/// A double that is a whole number.
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

/// The answer to a step of the holder.
pub(super) fn kept(answer: Value) -> Option<Kept> {
    let Value::BulkString(word) = answer else {
        return None;
    };
    Some(match word.as_slice() {
        b"kept" => Kept::Kept,
        b"restored" => Kept::Restored,
        b"taken" => Kept::Lost(Loss::Taken),
        b"over" => Kept::Lost(Loss::Over),
        b"gone" => Kept::Lost(Loss::Gone),
        _ => return None,
    })
}

/// The record as it is, if there is one.
pub(super) fn view(answer: Value) -> Option<Option<View>> {
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
    Some(Some(View {
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
