//! What goes to the scripts, and what their answers say.

use bytes::Bytes;
use redis::Value;
use resilience_core::idempotency::record::{
    Claimed, Grant, Holder, Kept, Loss, Phase, Previous, Takeover, View,
};

/// The arguments of a script: the channel, and then what it takes.
#[derive(Debug)]
pub(super) struct Args<'a> {
    words: Vec<Word<'a>>,
}

#[derive(Debug)]
enum Word<'a> {
    Lent(&'a [u8]),
    Number(String),
}

impl<'a> Args<'a> {
    pub(super) fn new(channel: &'a str) -> Self {
        Self {
            words: vec![Word::Lent(channel.as_bytes())],
        }
    }

    pub(super) fn bytes(mut self, bytes: &'a [u8]) -> Self {
        self.words.push(Word::Lent(bytes));
        self
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.words.push(Word::Number(number.to_string()));
        self
    }

    /// What a holder says of itself, in the order of `step` in `common.lua`.
    pub(super) fn holder(self, holder: &'a Holder) -> Self {
        self.bytes(holder.owner.as_bytes())
            .number(holder.fence)
            .number(holder.attempt.into())
            .bytes(previous_word(holder.previous).as_bytes())
            .bytes(&holder.fingerprint)
            .number(holder.retention_ms)
    }

    pub(super) fn slices(&self) -> Vec<&[u8]> {
        let slice = |word| match word {
            &Word::Lent(bytes) => bytes,
            Word::Number(text) => text.as_bytes(),
        };
        self.words.iter().map(slice).collect()
    }
}

pub(super) const fn takeover_word(takeover: Takeover) -> &'static str {
    match takeover {
        Takeover::Never => "never",
        Takeover::Any => "any",
        // What it is by default.
        _ => "ended",
    }
}

const fn previous_word(previous: Previous) -> &'static str {
    match previous {
        Previous::Released => "released",
        Previous::Ended => "ended",
        Previous::Unknown => "unknown",
        _ => "none",
    }
}

/// The answer to a claim.
pub(super) fn claimed(answer: Value) -> Option<Claimed> {
    let mut items = Items::of(answer)?;
    Some(match items.word()?.as_slice() {
        b"new" => Claimed::New(grant(&mut items)?),
        b"mine" => Claimed::Mine(grant(&mut items)?),
        b"busy" => Claimed::Busy {
            remaining_ms: items.number()?,
        },
        b"done" => Claimed::Done {
            outcome: items.word()?.into(),
            age_ms: items.number()?,
            fence: items.number()?,
        },
        b"mismatch" => Claimed::Mismatch,
        b"unknown" => Claimed::Unknown {
            fence: items.number()?,
            attempt: items.number()?.try_into().ok()?,
            age_ms: items.number()?,
        },
        _ => return None,
    })
}

fn grant(items: &mut Items) -> Option<Grant> {
    Some(Grant {
        fence: items.number()?,
        attempt: items.number()?.try_into().ok()?,
        previous: match items.word()?.as_slice() {
            b"none" => Previous::None,
            b"released" => Previous::Released,
            b"ended" => Previous::Ended,
            b"unknown" => Previous::Unknown,
            _ => return None,
        },
        checkpoint: items.maybe()?.map(Bytes::from),
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
    if answer == Value::Nil {
        return Some(None);
    }
    let mut items = Items::of(answer)?;
    Some(Some(View {
        phase: match items.word()?.as_slice() {
            b"released" => Phase::Released,
            b"running" => Phase::Running,
            b"done" => Phase::Done,
            b"unknown" => Phase::Unknown,
            _ => return None,
        },
        fence: items.number()?,
        attempt: items.number()?.try_into().ok()?,
        age_ms: items.number()?,
        remaining_ms: items.number()?,
        expires_ms: items.number()?,
        outcome_bytes: items.number()?,
        checkpoint_bytes: items.number()?,
    }))
}

/// The items of a list, one after the other. Outcomes are not copied.
struct Items(std::vec::IntoIter<Value>);

impl Items {
    fn of(answer: Value) -> Option<Self> {
        match answer {
            Value::Array(items) => Some(Self(items.into_iter())),
            _ => None,
        }
    }

    fn word(&mut self) -> Option<Vec<u8>> {
        self.maybe()?
    }

    fn maybe(&mut self) -> Option<Option<Vec<u8>>> {
        match self.0.next()? {
            Value::BulkString(bytes) => Some(Some(bytes)),
            Value::Nil => Some(None),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        match self.0.next()? {
            Value::Int(number) => number.try_into().ok(),
            _ => None,
        }
    }
}
