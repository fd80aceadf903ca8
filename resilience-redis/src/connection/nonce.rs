//! Nonces that tie an answer to its command.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use redis::Value;

/// In base 36, for a `u64`.
const DIGITS: usize = 13;

/// A number that is sent with a script and comes back first in its answer: an answer without it belongs to another
/// command. Unique among the commands of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nonce {
    digits: [u8; DIGITS],
    from: usize,
}

/// The nonces of one connection. The first is random, so that those of consecutive connections differ too.
#[derive(Debug)]
pub(super) struct Nonces(AtomicU64);

impl Nonces {
    pub(super) fn new() -> Self {
        // Short: 36^7 fits into 37 bits.
        Self(AtomicU64::new(fastrand::u64(..1 << 36)))
    }

    pub(super) fn next(&self) -> Nonce {
        Nonce::of(self.0.fetch_add(1, Relaxed))
    }

    /// A number that changes with every nonce, and so with every command.
    pub(super) fn drawn(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Nonce {
    fn of(mut number: u64) -> Self {
        let (mut digits, mut from) = ([b'0'; DIGITS], DIGITS);
        loop {
            from -= 1;
            digits[from] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
            number /= 36;
            if number == 0 {
                return Self { digits, from };
            }
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.from..]
    }

    /// The script's own answer, if `answer` is `[nonce, answer]` with this nonce. (Redis omits a `nil` at the end.)
    pub(super) fn open(&self, answer: Value) -> Option<Value> {
        let Value::Array(mut items) = answer else {
            return None;
        };
        match &items[..] {
            [Value::BulkString(nonce)] if nonce == self.as_bytes() => Some(Value::Nil),
            [Value::BulkString(nonce), _] if nonce == self.as_bytes() => items.pop(),
            _ => None,
        }
    }

    /// Whether `answer` is that to `PING nonce`.
    pub(super) fn is_echoed(&self, answer: &Value) -> bool {
        matches!(answer, Value::BulkString(nonce) if nonce == self.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &[u8]) -> Value {
        Value::BulkString(text.to_vec())
    }

    #[test]
    fn an_answer_is_opened_by_its_own_nonce_only() {
        let (ours, other) = (Nonce::of(35), Nonce::of(36));
        assert_eq!((ours.as_bytes(), other.as_bytes()), (&b"z"[..], &b"10"[..]));
        assert_eq!(
            Nonce::of(u64::MAX).as_bytes(),
            b"3w5e11264sgsf",
            "the largest number fits"
        );
        let answer = |nonce: &Nonce| Value::Array(vec![bulk(nonce.as_bytes()), Value::Int(7)]);
        assert_eq!(ours.open(answer(&ours)), Some(Value::Int(7)));
        assert_eq!(ours.open(answer(&other)), None);
        let nothing = Value::Array(vec![bulk(b"z")]);
        assert_eq!(ours.open(nothing), Some(Value::Nil));
        for malformed in [
            Value::Nil,
            Value::Okay,
            Value::Int(7),
            bulk(b"z"),
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(7), bulk(b"z")]),
            Value::Array(vec![bulk(b"z"), Value::Int(7), Value::Int(7)]),
        ] {
            assert_eq!(ours.open(malformed.clone()), None, "{malformed:?}");
        }
    }

    #[test]
    fn a_ping_is_answered_by_its_own_echo_only() {
        let ours = Nonce::of(35);
        assert!(ours.is_echoed(&bulk(b"z")));
        for other in [
            bulk(b"y"),
            Value::SimpleString("PONG".into()),
            Value::Nil,
            Value::Array(vec![bulk(b"z")]),
        ] {
            assert!(!ours.is_echoed(&other), "{other:?}");
        }
    }

    #[test]
    fn no_two_commands_of_a_connection_have_the_same_nonce() {
        let nonces = Nonces::new();
        let one = nonces.next();
        assert!((0..100).all(|_| nonces.next().as_bytes() != one.as_bytes()));
    }
}
