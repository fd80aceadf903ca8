//! Digests of header values, so that no secret becomes a key in a store.

use http::HeaderValue;
use sha2::{Digest, Sha256};

/// The first 128 bits of the SHA-256 of all values, in hexadecimal. Each value goes in with its
/// length, so that `a, b` and `ab` differ.
pub(super) fn of_values<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> String {
    let mut digest = Sha256::new();
    for value in values {
        digest.update((value.len() as u64).to_le_bytes());
        digest.update(value.as_bytes());
    }
    let digest = digest.finalize();
    let bytes = digest[..16].iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}
