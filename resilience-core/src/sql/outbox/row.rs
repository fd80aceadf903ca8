//! An event as a row.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::stream::{Envelope, RawMessage};

/// The version of the format that is written, and the highest one that is read.
pub(super) const FORMAT: i32 = 1;

/// A row to insert.
#[derive(Debug)]
pub struct NewRow {
    pub(super) id: Arc<str>,
    pub(super) key: Option<Arc<str>>,
    pub(super) envelope: String,
    pub(super) body: Vec<u8>,
}

/// A row as it was read.
#[derive(Clone, Debug)]
pub struct StoredRow {
    pub(super) sequence: i64,
    pub(super) format: i32,
    pub(super) id: String,
    pub(super) stream: String,
    pub(super) key: Option<String>,
    pub(super) envelope: String,
    pub(super) body: Vec<u8>,
    pub(super) attempts: i32,
    pub(super) created_ms: i64,
}

/// The part of an envelope that has no column of its own. Fields may be added: an older version ignores them.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Rest {
    source: Arc<str>,
    #[serde(rename = "type")]
    event_type: Arc<str>,
    schema: u32,
    content_type: Arc<str>,
    /// Zero: when the row was written.
    time_ms: u64,
    trace_parent: Option<Arc<str>>,
    trace_state: Option<Arc<str>>,
    attributes: Vec<(Arc<str>, Arc<str>)>,
}

impl NewRow {
    pub(super) fn new(envelope: &Envelope, body: Vec<u8>) -> Result<Self, serde_json::Error> {
        let rest = Rest {
            source: Arc::clone(&envelope.source),
            event_type: Arc::clone(&envelope.event_type),
            schema: envelope.schema,
            content_type: Arc::clone(&envelope.content_type),
            time_ms: envelope.time_ms,
            trace_parent: envelope.trace_parent.clone(),
            trace_state: envelope.trace_state.clone(),
            attributes: envelope.attributes.to_vec(),
        };
        Ok(Self {
            id: Arc::clone(&envelope.id),
            key: envelope.key.clone().filter(|it| !it.is_empty()),
            envelope: serde_json::to_string(&rest)?,
            body,
        })
    }
}

impl StoredRow {
    /// The message, or why there is none.
    pub(super) fn message(self) -> Result<RawMessage, String> {
        let rest: Rest = serde_json::from_str(&self.envelope)
            .map_err(|error| format!("the envelope cannot be read: {error}"))?;
        let written = self.created_ms.max(0).cast_unsigned();
        let envelope = Envelope {
            id: self.id.into(),
            source: rest.source,
            event_type: rest.event_type,
            key: self.key.map(Into::into),
            schema: rest.schema,
            content_type: rest.content_type,
            time_ms: if rest.time_ms == 0 {
                written
            } else {
                rest.time_ms
            },
            trace_parent: rest.trace_parent,
            trace_state: rest.trace_state,
            attributes: rest.attributes.into(),
        };
        Ok(RawMessage {
            envelope,
            body: Bytes::from(self.body),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn stored(new: NewRow) -> StoredRow {
        StoredRow {
            sequence: 1,
            format: FORMAT,
            id: new.id.to_string(),
            stream: "s".to_owned(),
            key: new.key.map(|it| it.to_string()),
            envelope: new.envelope,
            body: new.body,
            attempts: 0,
            created_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn an_event_comes_out_of_its_row_as_it_went_in() {
        let envelope = Envelope {
            id: "1".into(),
            source: "/shop".into(),
            event_type: "placed".into(),
            key: Some("k".into()),
            schema: 3,
            content_type: "application/json".into(),
            time_ms: 7,
            trace_parent: Some("00-a".into()),
            trace_state: Some("b=c".into()),
            attributes: [("tenant".into(), "\0\u{1F600}\"".into())].into(),
        };
        let row = NewRow::new(&envelope, vec![0, 255]).unwrap();
        let message = stored(row).message().unwrap();
        assert_eq!(message.envelope, envelope);
        assert_eq!(&message.body[..], [0, 255]);
    }

    #[test]
    fn a_row_tells_when_it_was_written_and_the_empty_key_is_none() {
        let envelope = Envelope {
            id: "1".into(),
            key: Some("".into()),
            ..Envelope::default()
        };
        let message = stored(NewRow::new(&envelope, Vec::new()).unwrap())
            .message()
            .unwrap();
        assert_eq!(message.envelope.time_ms, 1_700_000_000_000);
        assert_eq!(message.envelope.key, None);
    }

    #[test]
    fn rows_with_fields_of_a_later_version_and_without_optional_ones_are_read() {
        let mut row = stored(NewRow::new(&Envelope::default(), Vec::new()).unwrap());
        row.envelope = r#"{"type":"placed","later":1}"#.to_owned();
        assert_eq!(
            &*row.clone().message().unwrap().envelope.event_type,
            "placed"
        );
        row.envelope = "[".to_owned();
        assert!(row.message().is_err());
    }
}
