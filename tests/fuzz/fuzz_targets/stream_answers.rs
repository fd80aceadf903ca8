//! Streams in Redis: whatever a script or a command answers is read without a panic, as what was asked for or not at all. The
//! records of a stream may have been written by any program.
#![no_main]
#![allow(dead_code, reason = "what writes messages is not used here")]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use redis::Value;
use resilience_core::stream::{Position, RawMessage};

// Not part of the crate's interface.
#[path = "../../../resilience-redis/src/stream/message.rs"]
mod message;
#[path = "../../../resilience-redis/src/stream/wire.rs"]
mod wire;

#[path = "../words.rs"]
mod words;

/// How deep lists are nested: deeper than any answer.
const DEPTH: usize = 8;

/// A value, by its first byte: nothing, a number, bytes, a list.
fn value(bytes: &mut &[u8], depth: usize) -> Value {
    let mut next = || {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        Some(usize::from(first))
    };
    match next().map(|kind| kind % 5) {
        Some(1) => Value::Int(next().unwrap_or(0) as i64 - 2),
        Some(2) => {
            let digits = take(bytes, 8);
            let digits = digits.try_into().map(i64::from_le_bytes);
            Value::Int(digits.unwrap_or(i64::MAX))
        }
        Some(3) => {
            let many = next().unwrap_or(0);
            Value::BulkString(take(bytes, many).to_vec())
        }
        Some(4) if depth > 0 => {
            let many = next().unwrap_or(0) % 16;
            Value::Array((0..many).map(|_| value(bytes, depth - 1)).collect())
        }
        _ => Value::Nil,
    }
}

fn take<'a>(bytes: &mut &'a [u8], many: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(many.min(bytes.len()));
    *bytes = rest;
    taken
}

fn length(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.len(),
        _ => 0,
    }
}

fn check(position: Position, message: Option<&RawMessage>, bytes: usize) {
    assert_eq!(position.to_string().parse(), Ok(position));
    let Some(message) = message else {
        return;
    };
    assert!(!message.envelope.id.is_empty());
    assert!(message.body.len() <= bytes);
}

fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    let size = bytes.len();
    let answer = value(&mut &*bytes, DEPTH);
    let many = length(&answer);
    match which % 12 {
        0 => {
            for (position, message) in wire::entries(answer).unwrap_or_default() {
                check(position, Some(&message), size);
            }
        }
        1 => {
            for (_, entries) in wire::by_key(answer).unwrap_or_default() {
                let read = wire::first_deliveries(&Arc::from("orders"), entries);
                for it in read.unwrap_or_default() {
                    assert_eq!((&*it.stream, it.deliveries), ("orders", 1));
                    check(it.position, it.message.as_ref(), size);
                }
            }
        }
        2 => {
            if let Some(read) = wire::published(answer) {
                assert_eq!(read.len(), many);
            }
        }
        3 => {
            let _ = wire::joined(answer);
        }
        4 => {
            for it in wire::claimed("orders", answer)
                .unwrap_or_default()
                .deliveries
            {
                check(it.position, it.message.as_ref(), size);
            }
        }
        5 => {
            let done = answer == Value::Int(0);
            if let Some(read) = wire::settled(answer, 7) {
                assert_eq!(read.len(), if done { 7 } else { many });
            }
        }
        6 => {
            if let Some(read) = wire::begun(answer) {
                assert_eq!(read.len(), many);
            }
        }
        7 => {
            let flags = (
                wire::flag(&answer),
                wire::flags(answer.clone()),
                wire::held(answer.clone()),
            );
            assert!(flags.0.is_none() || (flags.1.is_none() && flags.2.is_none()));
            let _ = wire::trimmed(answer);
        }
        8 => {
            if let Some(Some(state)) = wire::state(answer) {
                assert!(state.groups.is_sorted_by(|a, b| a.group <= b.group));
                for group in state.groups {
                    check(group.cursor, None, size);
                    assert!(
                        group
                            .consumers
                            .is_sorted_by(|a, b| a.consumer <= b.consumer)
                    );
                }
            }
        }
        9 => {
            for it in wire::pending(answer).unwrap_or_default() {
                check(it.position, None, size);
                assert!(it.consumer.is_none_or(|it| !it.is_empty()));
            }
        }
        10 => {
            for it in wire::dead_letters(answer).unwrap_or_default() {
                check(it.position, it.message.as_ref(), size);
            }
        }
        _ => {
            let fields = wire::list(answer).unwrap_or_default();
            if let Some(message) = message::message(Position::new(7, 1), fields) {
                check(Position::new(7, 1), Some(&message), size);
            }
        }
    }
});
