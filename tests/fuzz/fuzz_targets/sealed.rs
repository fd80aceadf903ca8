//! Sealed outcomes and checkpoints: whatever lies in the store is opened within its limit, or is an error. What was
//! sealed is opened, in its place alone; one that was changed is an error where it is encrypted, and bounded elsewhere.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use resilience_core::idempotency::{Keyring, Opened, Sealing};

static PLAIN: LazyLock<[Sealing; 2]> =
    LazyLock::new(|| [Sealing::new(), Sealing::new().compress(3, 0)]);
static ENCRYPTED: LazyLock<[Sealing; 2]> = LazyLock::new(|| {
    let keyring = Keyring::new(7, [1; 32]).with(8, [2; 32]);
    PLAIN
        .clone()
        .map(|sealing| sealing.encrypt(keyring.clone()))
});

fuzz_target!(|input: (u8, u16, u64, &[u8])| {
    let (how, at, ttl_ms, bytes) = input;
    let (encrypted, which) = (how & 1 == 1, usize::from(how >> 1 & 1));
    let sealing = if encrypted {
        &ENCRYPTED[which]
    } else {
        &PLAIN[which]
    };
    let bytes = Bytes::copy_from_slice(bytes);
    let limit = usize::from(at);
    bounded(sealing, &bytes, limit);

    let sealed = sealing.seal(Some(&bytes), ttl_ms, "place").expect("sealed");
    let opened = sealing.open(&sealed, "place", bytes.len()).expect("opened");
    assert_eq!((opened.plain, opened.ttl_ms), (Some(bytes), ttl_ms));

    let mut changed = sealed.to_vec();
    let place = limit % changed.len();
    changed[place] ^= how | 1;
    let read = bounded(sealing, &changed.into(), limit);
    let cut = bounded(sealing, &sealed.slice(..place), limit);
    if encrypted {
        assert!(read.is_none() && cut.is_none());
        assert!(sealing.open(&sealed, "elsewhere", limit).is_err());
    }
});

fn bounded(sealing: &Sealing, bytes: &Bytes, limit: usize) -> Option<Opened> {
    let opened = sealing.open(bytes, "place", limit).ok()?;
    let length = opened.plain.as_ref().map_or(0, Bytes::len);
    assert!(length <= limit, "{length} bytes are more than {limit}");
    Some(opened)
}
