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

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::cache::{Json, Raw};

    const LIMIT: usize = 64;

    fn envelope<V: 'static>(codec: impl Codec<V>, schema: u16, sealing: Sealing) -> Envelope<V> {
        Envelope {
            codec: Arc::new(codec),
            schema,
            sealing,
            max_bytes: LIMIT,
        }
    }

    fn sealings() -> Vec<Sealing> {
        vec![
            Sealing::new(),
            #[cfg(feature = "compress")]
            Sealing::new().compress(3, 0),
            #[cfg(feature = "encrypt")]
            Sealing::new().encrypt(crate::sealing::Keyring::new(7, [1; 32])),
        ]
    }

    proptest! {
        #[test]
        fn whatever_a_store_holds_is_a_value_within_the_limit_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            for sealing in sealings() {
                // As it is, and as the content of a seal.
                let sealed = sealing.seal(Some(&bytes), 0, "place").unwrap();
                for bytes in [&bytes, &sealed] {
                    let raw = envelope::<Bytes>(Raw, 0, sealing.clone());
                    let opened = raw.open(bytes, "place");
                    prop_assert!(opened.map_or(0, |it| it.len()) <= LIMIT);
                    let text = envelope::<String>(Json, 0, sealing.clone());
                    let _ = text.open(bytes, "place");
                }
            }
        }

        #[test]
        fn a_value_is_opened_as_it_was_closed_and_by_its_own_codec_and_schema_only(
            value in vec(any::<u8>(), 0..=LIMIT), schema in any::<u16>(), other in any::<u16>(), at in any::<proptest::sample::Index>(),
        ) {
            for sealing in sealings() {
                let own = envelope::<Vec<u8>>(Raw, schema, sealing.clone());
                let closed = own.close(&value, "place").unwrap();
                prop_assert_eq!(&own.open(&closed, "place").unwrap(), &value);
                let cut = closed.slice(..at.index(closed.len()));
                prop_assert!(own.open(&cut, "place").map_or(true, |read| read != value));
                let newer = envelope::<Vec<u8>>(Raw, other, sealing.clone()).open(&closed, "place");
                prop_assert_eq!(newer.is_ok(), schema == other);
                let as_json = envelope::<String>(Json, schema, sealing);
                prop_assert!(matches!(as_json.open(&closed, "place"), Err(Unusable::OtherFormat)));
            }
        }
    }

    #[cfg(feature = "encrypt")]
    proptest! {
        #[test]
        fn an_encrypted_value_is_opened_under_its_own_key_only_and_unchanged_only(
            value in vec(any::<u8>(), 0..=LIMIT), at in any::<proptest::sample::Index>(), change in 1..=u8::MAX,
        ) {
            let sealing = Sealing::new().encrypt(crate::sealing::Keyring::new(7, [1; 32]));
            let own = envelope::<Vec<u8>>(Raw, 0, sealing);
            let closed = own.close(&value, "a").unwrap();
            prop_assert!(own.open(&closed, "b").is_err());
            let mut changed = closed.to_vec();
            changed[at.index(closed.len())] ^= change;
            prop_assert!(own.open(&changed.into(), "a").is_err());
        }
    }

    #[test]
    fn a_value_above_the_limit_is_not_closed() {
        let raw = envelope::<Vec<u8>>(Raw, 0, Sealing::new());
        let closed = raw.close(&vec![0; LIMIT + 1], "place");
        assert!(matches!(closed, Err(Unusable::TooLarge(65))));
    }
}
