//! Messages as fields of entries.

use std::sync::Arc;

use bytes::Bytes;
use redis::{Cmd, Value};
use resilience_core::stream::{Outgoing, Position, RawMessage};

use super::{wire, words::Words};

/// The format of entries.
const FORMAT: &str = "1";

/// The words of a message for the script that publishes: delay, number of fields and values, and those.
pub(super) fn outgoing(outgoing: &Outgoing, words: &mut Words) {
    let mut many = 0;
    fields(&outgoing.message, |_, _| many += 2);
    words.text(&outgoing.delay_ms).text(&many);
    fields(&outgoing.message, |name, value| {
        words.bytes(name).bytes(value);
    });
}

/// The command that adds a message to a stream that exists.
pub(super) fn add(key: &str, message: &RawMessage) -> Cmd {
    let mut cmd = Cmd::with_capacity(24, message.body.len() + 512);
    cmd.arg("XADD").arg(key).arg("NOMKSTREAM").arg("*");
    fields(message, |name, value| {
        cmd.arg(name).arg(value);
    });
    cmd
}

/// The fields of an entry: what is absent or empty has none.
fn fields(message: &RawMessage, mut field: impl FnMut(&str, &[u8])) {
    let it = &message.envelope;
    field("v", FORMAT.as_bytes());
    field("id", it.id.as_bytes());
    let texts = [
        ("source", &it.source),
        ("type", &it.event_type),
        ("datacontenttype", &it.content_type),
    ];
    for (name, text) in texts {
        if !text.is_empty() {
            field(name, text.as_bytes());
        }
    }
    let texts = [
        ("partitionkey", &it.key),
        ("traceparent", &it.trace_parent),
        ("tracestate", &it.trace_state),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            field(name, text.as_bytes());
        }
    }
    let numbers = [
        ("schemaversion", u64::from(it.schema)),
        ("time", it.time_ms),
    ];
    for (name, number) in numbers {
        if number != 0 {
            field(name, number.to_string().as_bytes());
        }
    }
    for (name, value) in &*it.attributes {
        field(name, value.as_bytes());
    }
    field("data", &message.body);
}

/// The message of an entry. One that another program has written is read as far as it can be: its id is its position, unless it
/// has one, and fields that are no text are left out.
pub(super) fn message(position: Position, fields: Vec<Value>) -> Option<RawMessage> {
    let mut message = RawMessage::default();
    let it = &mut message.envelope;
    let mut attributes = Vec::new();
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let (name, value) = (wire::bytes(name)?, wire::bytes(value)?);
        if name == b"data" {
            message.body = Bytes::from(value);
            continue;
        }
        let Ok(value) = String::from_utf8(value) else {
            continue;
        };
        match &name[..] {
            b"v" => {}
            b"id" => it.id = value.into(),
            b"source" => it.source = value.into(),
            b"type" => it.event_type = value.into(),
            b"datacontenttype" => it.content_type = value.into(),
            b"partitionkey" => it.key = Some(value.into()),
            b"traceparent" => it.trace_parent = Some(value.into()),
            b"tracestate" => it.trace_state = Some(value.into()),
            b"schemaversion" => it.schema = value.parse().unwrap_or(0),
            b"time" => it.time_ms = value.parse().unwrap_or(0),
            _ => {
                let Ok(name) = String::from_utf8(name) else {
                    continue;
                };
                attributes.push((Arc::from(name), Arc::from(value)));
            }
        }
    }
    if it.id.is_empty() {
        it.id = position.to_string().into();
    }
    it.attributes = attributes.into();
    Some(message)
}
