//! Cached values: whatever lies in the store is a value within the limit, or an error. What was closed is opened, by the
//! codec and the schema that closed it alone; one that was changed, or lies under another key, is an error where it is
//! encrypted.
#![no_main]

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use resilience_core::{
    cache::{Codec, Json, Raw},
    idempotency::{Keyring, Sealing},
};

use self::envelope::Envelope;

// Not part of the crate's interface.
#[path = "../../../resilience-core/src/cache/envelope.rs"]
mod envelope;

// For the module above.
mod codec {
    pub use resilience_core::cache::{Codec, CodecError};
}
mod sealing {
    pub use resilience_core::idempotency::{Sealing, Unreadable};
}

static SEALINGS: LazyLock<[Sealing; 3]> = LazyLock::new(|| {
    let encrypted = Sealing::new().encrypt(Keyring::new(7, [1; 32]));
    [Sealing::new(), Sealing::new().compress(3, 0), encrypted]
});

fn envelope<V>(codec: impl Codec<V>, schema: u16, which: usize, max_bytes: usize) -> Envelope<V> {
    Envelope {
        codec: Arc::new(codec),
        schema,
        sealing: SEALINGS[which].clone(),
        max_bytes,
    }
}

fuzz_target!(|input: (u8, u16, u16, u16, &[u8])| {
    let (which, at, schema, other, bytes) = input;
    let which = usize::from(which) % SEALINGS.len();
    let bytes = Bytes::copy_from_slice(bytes);
    let limit = usize::from(at);
    if let Ok(read) = envelope::<Bytes>(Raw, schema, which, limit).open(&bytes, "place") {
        assert!(read.len() <= limit);
    }
    let _ = envelope::<String>(Json, schema, which, limit).open(&bytes, "place");

    let limit = bytes.len();
    let own = envelope::<Bytes>(Raw, schema, which, limit);
    let closed = own.close(&bytes, "place").expect("closed");
    assert_eq!(own.open(&closed, "place").expect("opened"), bytes);
    assert!(envelope::<String>(Json, schema, which, limit).open(&closed, "place").is_err());
    let newer = envelope::<Bytes>(Raw, other, which, limit).open(&closed, "place");
    assert_eq!(newer.is_ok(), schema == other);
    let mut changed = closed.to_vec();
    let place = usize::from(at) % changed.len();
    changed[place] ^= which as u8 + 1;
    let read = own.open(&changed.into(), "place");
    if which == 2 {
        assert!(read.is_err() && own.open(&closed, "elsewhere").is_err());
    }
});
