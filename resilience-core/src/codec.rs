//! How values become bytes for a store or a stream, and back.

use std::fmt;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Turns values into bytes for a store or a stream, and back.
///
/// What was written by another release of the application is read too: a codec must refuse bytes that it cannot read, and
/// must not read them as something else. Formats without the names of fields (postcard, bincode) do not refuse two fields
/// that changed places; with those, raise the number of the schema, which caches and streams have a setting for, with every
/// change of the type.
pub trait Codec<V>: Send + Sync + 'static {
    /// Number of the format, stored with every cached value; another number is a miss. Those below 128 are this toolkit's.
    fn id(&self) -> u8;

    /// Media type of the format, published with every event. Default: `application/octet-stream`.
    fn content_type(&self) -> &str {
        "application/octet-stream"
    }

    /// Encodes a value.
    ///
    /// # Errors
    /// [`CodecError`] if the format cannot represent it. The value is then neither stored nor published.
    fn encode(&self, value: &V) -> Result<Vec<u8>, CodecError>;

    /// Decodes a value.
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are of something else. To a cache that is a miss, to a consumer a dead letter.
    fn decode(&self, bytes: &Bytes) -> Result<V, CodecError>;
}

/// Why a value cannot be encoded or decoded.
#[derive(Debug)]
pub struct CodecError(String);

impl CodecError {
    /// An error with a text for logs.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}

/// JSON: the default. Readable in the store by an operator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl<V: Serialize + DeserializeOwned> Codec<V> for Json {
    fn id(&self) -> u8 {
        1
    }

    fn content_type(&self) -> &str {
        "application/json"
    }

    fn encode(&self, value: &V) -> Result<Vec<u8>, CodecError> {
        serde_json::to_vec(value).map_err(CodecError::new)
    }

    fn decode(&self, bytes: &Bytes) -> Result<V, CodecError> {
        serde_json::from_slice(bytes).map_err(CodecError::new)
    }
}

/// MessagePack with the names of fields: smaller and faster than JSON, and as tolerant of added and reordered fields.
#[cfg(feature = "messagepack")]
#[derive(Clone, Copy, Debug, Default)]
pub struct MessagePack;

#[cfg(feature = "messagepack")]
impl<V: Serialize + DeserializeOwned> Codec<V> for MessagePack {
    fn id(&self) -> u8 {
        2
    }

    fn content_type(&self) -> &str {
        "application/msgpack"
    }

    fn encode(&self, value: &V) -> Result<Vec<u8>, CodecError> {
        rmp_serde::to_vec_named(value).map_err(CodecError::new)
    }

    fn decode(&self, bytes: &Bytes) -> Result<V, CodecError> {
        rmp_serde::from_slice(bytes).map_err(CodecError::new)
    }
}

/// Bytes as they are, for values that are bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    fn id(&self) -> u8 {
        3
    }

    fn encode(&self, value: &Bytes) -> Result<Vec<u8>, CodecError> {
        Ok(value.to_vec())
    }

    fn decode(&self, bytes: &Bytes) -> Result<Bytes, CodecError> {
        Ok(bytes.clone())
    }
}

impl Codec<Vec<u8>> for Raw {
    fn id(&self) -> u8 {
        3
    }

    fn encode(&self, value: &Vec<u8>) -> Result<Vec<u8>, CodecError> {
        Ok(value.clone())
    }

    fn decode(&self, bytes: &Bytes) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}
