//! Keys, their scope, and the fingerprint of the work.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::store::MAX_KEY;

/// Identity of a request: a key, within a scope, for work with a fingerprint.
///
/// ```
/// use resilience_core::idempotency::{Fingerprint, Key};
///
/// let key = Key::new("order-7").scope("tenant-3").fingerprint(Fingerprint::of([b"charge", b"20.00 EUR".as_slice()]));
/// assert_ne!(key, Key::new("order-7").scope("tenant-4"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Key {
    key: String,
    scope: Option<String>,
    fingerprint: Fingerprint,
    former: Option<Fingerprint>,
}

impl Key {
    /// A key as the caller gave it, of any length, without scope or fingerprint. One that is too long for a store is kept as
    /// its digest.
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            scope: None,
            fingerprint: Fingerprint::default(),
            former: None,
        }
    }

    /// Sets the scope (a tenant, a route, a queue): the same key in another scope is another key. Set one wherever callers
    /// that must not see each other's outcomes choose their own keys.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// Sets the fingerprint of the work. The same key with another fingerprint is rejected
    /// ([`Reason::KeyReused`](crate::Reason::KeyReused)), unless nothing was done under it
    /// ([`Disposition::Release`](super::Disposition::Release)).
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// Accepts a record with this fingerprint too: the one that the program's last version computes for the same work, so
    /// that work that is requested again after an upgrade is not rejected. New records have the
    /// [`fingerprint`](Self::fingerprint). Costs nothing but a second claim where the fingerprints differ.
    pub fn or_fingerprint(mut self, former: Fingerprint) -> Self {
        self.former = Some(former);
        self
    }

    pub(crate) const fn print(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The other fingerprint that a record may have.
    pub(super) fn former(&self) -> Option<&Fingerprint> {
        self.former
            .as_ref()
            .filter(|former| **former != self.fingerprint)
    }

    /// The key as a store keeps it; different for every scope and key.
    pub(crate) fn stored(&self) -> String {
        let stored = match &self.scope {
            None => format!("/{}", self.key),
            Some(scope) => format!("{}:{scope}/{}", scope.len(), self.key),
        };
        if stored.len() <= MAX_KEY {
            stored
        } else {
            format!("#{}", hex(&Sha256::digest(stored)))
        }
    }
}

impl<T: Into<String>> From<T> for Key {
    fn from(key: T) -> Self {
        Self::new(key)
    }
}

/// A digest of the work's input. Default: empty.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint(Bytes);

impl Fingerprint {
    /// The SHA-256 digest of `parts`, each prefixed with its length, so that no other parts have the same digest.
    #[must_use]
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self(Bytes::copy_from_slice(&digest(parts)))
    }

    /// A fingerprint made elsewhere: `bytes`, or their digest if they are more than
    /// [`MAX_WORD`](super::store::MAX_WORD).
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.len() <= super::store::MAX_WORD {
            Self(bytes)
        } else {
            Self::of([&*bytes])
        }
    }

    /// The bytes of the fingerprint.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", hex(&self.0))
    }
}

/// Derives a key for a call that the work makes, in the form of a UUID (version 8): the same in every attempt, different for
/// every label and every parent.
pub(crate) fn child(name: &str, stored: &str, label: &str) -> String {
    let mut bytes = digest([name, stored, label].map(str::as_bytes));
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes[..16]);
    format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A key of one tenant must never be taken for another's.
    #[test]
    fn no_two_keys_are_stored_alike() {
        let long = "k".repeat(2 * MAX_KEY);
        let keys = [
            Key::new("a"),
            Key::new(""),
            Key::new("a").scope(""),
            Key::new("a").scope("t"),
            Key::new("b/a").scope("t"),
            Key::new("a").scope("t/b"),
            Key::new("1:t/a"),
            Key::new("/a"),
            Key::new(&*long),
            Key::new(format!("{long}!")),
            Key::new(&*long).scope("t"),
        ];
        let mut stored: Vec<_> = keys.iter().map(Key::stored).collect();
        assert!(stored.iter().all(|key| (1..=MAX_KEY).contains(&key.len())));
        stored.sort();
        stored.dedup();
        assert_eq!(stored.len(), keys.len());
    }

    #[test]
    fn a_fingerprint_is_of_the_parts_and_not_of_their_sum() {
        let prints = [
            Fingerprint::of([b"ab".as_slice(), b"c"]),
            Fingerprint::of([b"a".as_slice(), b"bc"]),
            Fingerprint::of([b"abc".as_slice()]),
            Fingerprint::default(),
        ];
        for (at, print) in prints.iter().enumerate() {
            assert!(!prints[..at].contains(print));
        }
        assert_eq!(Fingerprint::from_bytes(vec![7; 999]).bytes().len(), 32);
    }

    #[test]
    fn a_child_key_is_a_uuid_that_depends_on_all_of_its_parents() {
        let key = child("orders", "/7", "charge");
        assert_eq!(key, child("orders", "/7", "charge"));
        assert_eq!((key.len(), &key[14..15]), (36, "8"));
        for (name, stored, label) in [
            ("orders/", "7", "charge"),
            ("orders", "/7c", "harge"),
            ("orders", "/7", "refund"),
        ] {
            assert_ne!(key, child(name, stored, label));
        }
    }
}
