//! Messages of streams in Redis: each one that a producer may publish is read as it was written, whatever its texts contain, and
//! however its body looks. Positions are read as they are displayed.
#![no_main]
#![allow(dead_code, reason = "answers of scripts are read by another target")]

use std::sync::Arc;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use redis::Value;
use resilience_core::stream::{Envelope, Outgoing, Position, RawMessage, broker::validate};

// Not part of the crate's interface.
#[path = "../../../resilience-redis/src/stream/message.rs"]
mod message;
#[path = "../../../resilience-redis/src/stream/wire.rs"]
mod wire;

#[path = "../words.rs"]
mod words;

/// A text behind a byte with its length.
fn text(bytes: &mut &[u8]) -> Arc<str> {
    let many = bytes.split_off_first().map_or(0, |&it| usize::from(it));
    let taken = bytes.split_off(..many.min(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(taken).into()
}

/// One that may be absent, by the byte in front.
fn maybe_text(bytes: &mut &[u8]) -> Option<Arc<str>> {
    let is_there = bytes.split_off_first().is_some_and(|&it| it % 2 == 1);
    is_there.then(|| text(bytes))
}

fuzz_target!(|input: (u32, u64, u8, &[u8])| {
    let (schema, time_ms, attributes, bytes) = input;
    let bytes = &mut &*bytes;
    let envelope = Envelope {
        id: text(bytes),
        source: text(bytes),
        event_type: text(bytes),
        key: maybe_text(bytes),
        schema,
        content_type: text(bytes),
        time_ms,
        trace_parent: maybe_text(bytes),
        trace_state: maybe_text(bytes),
        attributes: (0..attributes % 40)
            .map(|_| (text(bytes), text(bytes)))
            .collect(),
    };
    if let Ok(position) = envelope.id.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    let message = RawMessage {
        envelope,
        body: Bytes::copy_from_slice(bytes),
    };
    let is_valid = validate::message(&message).is_ok();
    let mut words = words::Words::default();
    let outgoing = Outgoing {
        message: message.clone(),
        delay_ms: time_ms,
    };
    message::outgoing(&outgoing, &mut words);
    let mut words = words.0;
    let fields = words.split_off(2);
    assert_eq!(words[0], time_ms.to_string().as_bytes());
    assert_eq!(words[1], fields.len().to_string().as_bytes());
    let fields = fields.into_iter().map(Value::BulkString).collect();
    // Other fields than a producer's are read as well: another program may have written them.
    let read = message::message(Position::new(7, 1), fields).expect("names and values");
    if is_valid {
        assert_eq!(read, message);
    }
});
