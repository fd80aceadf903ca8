//! The bytes of a value in a store: format and schema, then what the codec made of it, sealed.
//!
//! | bytes | content |
//! |---|---|
//! | 10 to 62 | the head of [`Sealing`] |
//! | 1 | number of the codec |
//! | 2 | schema of the application's type, little-endian |
//! | rest | the value |

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{
    codec::{Codec, CodecError},
    sealing::{Sealing, Unreadable},
};

/// Encodes and decodes the values of one cache.
pub(super) struct Envelope<V> {
    pub(super) codec: Arc<dyn Codec<V>>,
    pub(super) schema: u16,
    pub(super) sealing: Sealing,
    pub(super) max_bytes: usize,
}

/// Why a value is not stored, or not read.
#[derive(Debug)]
pub(super) enum Unusable {
    Codec(CodecError),
    Sealed(String),
    TooLarge(usize),
    /// Of another codec or schema: expected during a rollout.
    OtherFormat,
}

const HEAD: usize = 3;

impl<V: 'static> Envelope<V> {
    pub(super) fn close(&self, value: &V, associated_data: &str) -> Result<Bytes, Unusable> {
        let body = self.codec.encode(value).map_err(Unusable::Codec)?;
        if body.len() > self.max_bytes {
            return Err(Unusable::TooLarge(body.len()));
        }
        let [low, high] = self.schema.to_le_bytes();
        let plain = [&[self.codec.id(), low, high], &*body].concat();
        let sealed = self.sealing.seal(Some(&plain), 0, associated_data);
        sealed.map_err(|error| Unusable::Sealed(error.to_string()))
    }

    pub(super) fn open(&self, sealed: &Bytes, associated_data: &str) -> Result<V, Unusable> {
        let unreadable = |why: Unreadable| Unusable::Sealed(why.to_string());
        let limit = self.max_bytes + HEAD;
        let opened = self.sealing.open(sealed, associated_data, limit);
        let plain = opened.map_err(unreadable)?.plain;
        let plain = plain.ok_or(Unusable::OtherFormat)?;
        let Some(&[codec, low, high]) = plain.first_chunk::<HEAD>() else {
            return Err(Unusable::Sealed("it is cut short".into()));
        };
        if codec != self.codec.id() || u16::from_le_bytes([low, high]) != self.schema {
            return Err(Unusable::OtherFormat);
        }
        let body = plain.slice(HEAD..);
        self.codec.decode(&body).map_err(Unusable::Codec)
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codec(error) => error.fmt(f),
            Self::Sealed(why) => f.write_str(why),
            Self::TooLarge(bytes) => write!(f, "it has {bytes} bytes, more than `max_value_bytes`"),
            Self::OtherFormat => f.write_str("it is of another codec or schema"),
        }
    }
}
