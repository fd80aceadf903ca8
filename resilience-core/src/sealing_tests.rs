//! Outcomes as they are kept: whole, or an error, and never a panic.

use bytes::Bytes;
use proptest::prelude::*;

use super::{Opened, Sealing, Unreadable};

const LIMIT: usize = 1 << 16;

fn opened(plain: &[u8], ttl_ms: u64) -> Opened {
    Opened {
        plain: Some(Bytes::copy_from_slice(plain)),
        ttl_ms,
    }
}

/// Every way of sealing that the features allow.
fn all() -> Vec<Sealing> {
    let all = vec![Sealing::new()];
    #[cfg(feature = "compress")]
    let all = [all, vec![Sealing::new().compress(3, 0)]].concat();
    #[cfg(feature = "encrypt")]
    let all = {
        let keyring = super::Keyring::new(7, [1; 32]);
        let encrypted: Vec<_> = all
            .iter()
            .map(|sealing| sealing.clone().encrypt(keyring.clone()))
            .collect();
        [all, encrypted].concat()
    };
    all
}

#[test]
fn done_without_a_result_is_not_an_empty_result() {
    for sealing in all() {
        let nothing = sealing.seal(None, 5, "place").unwrap();
        let empty = sealing.seal(Some(b""), 5, "place").unwrap();
        let open = |sealed| sealing.open(sealed, "place", LIMIT).unwrap();
        assert_eq!((open(&nothing).plain, open(&nothing).ttl_ms), (None, 5));
        assert_eq!(open(&empty), opened(b"", 5));
    }
}

#[test]
fn what_is_of_another_version_or_kind_is_said() {
    let sealing = Sealing::new();
    let sealed = sealing.seal(Some(b"outcome"), 5, "place").unwrap();
    let changed = |at: usize, to: u8| {
        let mut bytes = sealed.to_vec();
        bytes[at] = to;
        sealing.open(&bytes.into(), "place", LIMIT)
    };
    assert_eq!(changed(0, 2), Err(Unreadable::Version(2)));
    assert_eq!(changed(1, 0x80), Err(Unreadable::Flags(0x80)));
    assert_eq!(changed(1, 2), Err(Unreadable::Flags(2)), "no keyring");
    for short in 0..10 {
        let cut = sealing.open(&sealed.slice(..short), "place", LIMIT);
        assert_eq!(cut, Err(Unreadable::CutShort));
    }
}

#[test]
fn what_is_opened_is_bounded() {
    for sealing in all() {
        let sealed = sealing.seal(Some(&[7; 5_000]), 5, "place").unwrap();
        assert!(sealing.open(&sealed, "place", 5_000).is_ok());
        let large = sealing.open(&sealed, "place", 4_999);
        assert_eq!(large, Err(Unreadable::Corrupt));
    }
}

#[cfg(feature = "compress")]
#[test]
fn what_does_not_get_smaller_stays_as_it_is() {
    let sealing = Sealing::new().compress(3, 100);
    let size = |plain: &[u8]| sealing.seal(Some(plain), 5, "place").unwrap().len();
    assert!(size(&[7; 5_000]) < 100);
    assert_eq!(size(&[7; 99]), 99 + 10, "too small to try");
    let mut rng = fastrand::Rng::with_seed(7);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(5_000).collect();
    assert_eq!(size(&noise), 5_000 + 10);
}

#[cfg(feature = "encrypt")]
mod encrypted {
    use super::{
        super::{Keyring, Sealing, Unreadable},
        LIMIT, opened,
    };

    fn with(keyring: Keyring) -> Sealing {
        Sealing::new().encrypt(keyring)
    }

    #[test]
    fn it_cannot_be_read_without_its_key_or_in_another_place() {
        let sealing = with(Keyring::new(1, [1; 32]));
        let sealed = sealing.seal(Some(b"outcome"), 5, "a").unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"outcome"));
        assert_eq!(sealing.open(&sealed, "a", LIMIT), Ok(opened(b"outcome", 5)));
        let moved = sealing.open(&sealed, "b", LIMIT);
        assert_eq!(moved, Err(Unreadable::Forged));
        let wrong = with(Keyring::new(1, [2; 32])).open(&sealed, "a", LIMIT);
        assert_eq!(wrong, Err(Unreadable::Forged));
        let unknown = with(Keyring::new(2, [1; 32])).open(&sealed, "a", LIMIT);
        assert_eq!(unknown, Err(Unreadable::NoSuchKey(1)));
        let without = Sealing::new().open(&sealed, "a", LIMIT);
        assert!(matches!(without, Err(Unreadable::Flags(_))));
    }

    /// A writer to the store must not be able to plant an outcome.
    #[test]
    fn what_is_not_encrypted_is_not_read_when_it_should_be() {
        let plain = Sealing::new().seal(Some(b"planted"), 5, "a").unwrap();
        let read = with(Keyring::new(1, [1; 32])).open(&plain, "a", LIMIT);
        assert_eq!(read, Err(Unreadable::Plain));
    }

    #[test]
    fn a_key_is_replaced_in_two_steps() {
        let old = with(Keyring::new(1, [1; 32]));
        let knows = with(Keyring::new(1, [1; 32]).with(2, [2; 32]));
        let new = with(Keyring::new(2, [2; 32]).with(1, [1; 32]));
        let later = with(Keyring::new(2, [2; 32]));
        let by_old = old.seal(Some(b"x"), 5, "a").unwrap();
        let by_new = new.seal(Some(b"x"), 5, "a").unwrap();
        for sealing in [&knows, &new] {
            for sealed in [&by_old, &by_new] {
                assert_eq!(sealing.open(sealed, "a", LIMIT), Ok(opened(b"x", 5)));
            }
        }
        assert_eq!(later.open(&by_new, "a", LIMIT), Ok(opened(b"x", 5)));
        let gone = later.open(&by_old, "a", LIMIT);
        assert_eq!(gone, Err(Unreadable::NoSuchKey(1)));
    }

    #[test]
    fn the_same_outcome_looks_different_every_time() {
        let sealing = with(Keyring::new(1, [1; 32]));
        let seal = || sealing.seal(Some(b"outcome"), 5, "a").unwrap();
        assert_ne!(seal(), seal());
        let shown = format!("{:?}", Keyring::new(1, [77; 32]));
        assert!(!shown.contains("77"), "{shown}");
    }

    /// Time, flags and all: nothing of it can be changed unnoticed.
    #[test]
    fn a_changed_bit_anywhere_is_noticed() {
        let sealing = with(Keyring::new(1, [1; 32]));
        let sealed = sealing.seal(Some(b"outcome"), 5, "a").unwrap();
        for at in 0..sealed.len() * 8 {
            let mut changed = sealed.to_vec();
            changed[at / 8] ^= 1 << (at % 8);
            let read = sealing.open(&changed.into(), "a", LIMIT);
            assert!(read.is_err(), "bit {at}");
        }
    }
}

proptest! {
    #[test]
    fn what_was_sealed_is_opened(
        plain in prop::collection::vec(any::<u8>(), 0..2_000),
        ttl_ms in any::<u64>(),
        associated_data in ".{0,20}",
    ) {
        for sealing in all() {
            let sealed = sealing.seal(Some(&plain), ttl_ms, &associated_data).unwrap();
            prop_assert!(sealed.len() <= plain.len() + super::OVERHEAD);
            let read = sealing.open(&sealed, &associated_data, LIMIT);
            prop_assert_eq!(read, Ok(opened(&plain, ttl_ms)));
        }
    }

    /// Whatever lies in the store.
    #[test]
    fn garbage_never_panics_and_is_never_beyond_the_limit(
        garbage in prop::collection::vec(any::<u8>(), 0..300),
        flags in 0_u8..16,
        limit in 0_usize..300,
    ) {
        let mut bytes = garbage;
        if bytes.len() > 2 {
            // Beyond the version, now and then.
            bytes[0] = 1;
            bytes[1] = flags;
        }
        let bytes = Bytes::from(bytes);
        for sealing in all() {
            if let Ok(opened) = sealing.open(&bytes, "place", limit) {
                prop_assert!(opened.plain.is_none_or(|plain| plain.len() <= limit));
            }
        }
    }

    /// What was cut off or written over is an error, or what it was.
    #[test]
    fn damage_is_an_error_where_it_is_sealed_for_it(
        plain in prop::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
        cut in any::<bool>(),
    ) {
        for sealing in all() {
            let sealed = sealing.seal(Some(&plain), 5, "place").unwrap();
            let at = at.index(sealed.len());
            let damaged = if cut {
                sealed.slice(..at)
            } else {
                let mut bytes = sealed.to_vec();
                bytes[at] = to;
                bytes.into()
            };
            let read = sealing.open(&damaged, "place", LIMIT);
            #[cfg(feature = "encrypt")]
            if sealing.keyring.is_some() && damaged != sealed {
                prop_assert!(read.is_err());
            }
            let _ = read;
        }
    }
}
