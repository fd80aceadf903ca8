//! Compression and encryption of values that leave the process for a store.
//!
//! Layout of a sealed value:
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version: 1 |
//! | 1 | flags: 1 compressed, 2 encrypted, 4 done but without a result |
//! | 8 | time to live in milliseconds; zero for a checkpoint |
//! | 4 + 24 | encrypted only: the number of the key, the nonce |
//! | rest | the value; compressed first, encrypted second |
//!
//! # References
//! XChaCha20-Poly1305: [draft-irtf-cfrg-xchacha](https://datatracker.ietf.org/doc/draft-irtf-cfrg-xchacha/); Zstandard:
//! [RFC 8878](https://www.rfc-editor.org/rfc/rfc8878).

use std::fmt;
#[cfg(feature = "encrypt")]
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;
#[cfg(feature = "compress")]
const COMPRESSED: u8 = 1;
const ENCRYPTED: u8 = 2;
const EMPTY: u8 = 4;

/// Size of version, flags and time to live.
const HEAD: usize = 10;

/// Upper bound of the bytes that sealing adds: the head, the number of a key, a nonce and a tag.
#[cfg(feature = "idempotency")]
pub(crate) const OVERHEAD: usize = 1024;

/// Compression and encryption of values before they leave the process. Default: neither.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Sealing {
    #[cfg(feature = "compress")]
    compress: Option<Compress>,
    #[cfg(feature = "encrypt")]
    keyring: Option<Keyring>,
}

#[cfg(feature = "compress")]
#[derive(Clone, Copy, Debug)]
struct Compress {
    level: i32,
    from: usize,
}

/// Why sealed bytes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The value is too short.
    #[error("it is cut short")]
    CutShort,
    /// Unknown version.
    #[error("it is of version {0}, which is not known here")]
    Version(u8),
    /// Unknown flags, or flags of a feature that is off.
    #[error("its flags are {0:#04x}, which are not known here")]
    Flags(u8),
    /// Encrypted with a key that the keyring does not have.
    #[error("it was encrypted with key {0}, which is not in the keyring")]
    NoSuchKey(u32),
    /// The value was changed, belongs to another record, or was encrypted with another key of that number.
    #[error("it cannot be decrypted: it was changed, or belongs elsewhere")]
    Forged,
    /// The value cannot be decompressed, or not within the limit.
    #[error("it cannot be decompressed within its limit")]
    Corrupt,
    /// The value is not encrypted, although there is a keyring.
    #[error("it is not encrypted, and should be")]
    Plain,
}

impl Sealing {
    /// Neither compression nor encryption.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compresses values of at least `from` bytes at zstd's `level` (1 is fast, 3 is usual). Values that do not get smaller
    /// are left uncompressed.
    ///
    /// Combined with encryption, the size reveals something about the content: leave compression out where an attacker
    /// controls a part of a value and must not learn the rest (CRIME, BREACH).
    #[cfg(feature = "compress")]
    pub const fn compress(mut self, level: i32, from: usize) -> Self {
        self.compress = Some(Compress { level, from });
        self
    }

    /// Encrypts with the keyring's newest key (XChaCha20-Poly1305). The value is bound to its record: what was recorded under
    /// one key cannot be passed off under another. Unencrypted values are no longer read.
    #[cfg(feature = "encrypt")]
    pub fn encrypt(mut self, keyring: Keyring) -> Self {
        self.keyring = Some(keyring);
        self
    }

    /// Seals a value that is kept for `ttl_ms` milliseconds in the record called `associated_data`; `None` stands for work that
    /// is done without a result.
    ///
    /// # Errors
    /// [`SealFailed`] if the operating system provides no randomness.
    pub fn seal(
        &self,
        plain: Option<&[u8]>,
        ttl_ms: u64,
        associated_data: &str,
    ) -> Result<Bytes, SealFailed> {
        let Some(plain) = plain else {
            return self.lock(head(EMPTY, ttl_ms), &[], associated_data);
        };
        #[cfg(feature = "compress")]
        if let Some(smaller) = self.compress.and_then(|how| how.smaller(plain)) {
            return self.lock(head(COMPRESSED, ttl_ms), &smaller, associated_data);
        }
        self.lock(head(0, ttl_ms), plain, associated_data)
    }

    /// Opens a value that was sealed for `associated_data`, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Unreadable`] if it is anything else, or its key is no longer known.
    pub fn open(
        &self,
        sealed: &Bytes,
        associated_data: &str,
        limit: usize,
    ) -> Result<Opened, Unreadable> {
        let head = sealed.first_chunk::<HEAD>().ok_or(Unreadable::CutShort)?;
        let [version, flags, ttl_ms @ ..] = *head;
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let body = sealed.slice(HEAD..);
        let body = match flags & ENCRYPTED {
            0 => self.unlocked(body)?,
            _ => self.unlock(head, &body, associated_data)?,
        };
        let plain = match flags & !ENCRYPTED {
            0 if body.len() > limit => return Err(Unreadable::Corrupt),
            0 => Some(body),
            EMPTY => None,
            #[cfg(feature = "compress")]
            COMPRESSED => Some(
                zstd::bulk::decompress(&body, limit)
                    .map_err(|_| Unreadable::Corrupt)?
                    .into(),
            ),
            _ => return Err(Unreadable::Flags(flags)),
        };
        let ttl_ms = u64::from_be_bytes(ttl_ms);
        Ok(Opened { plain, ttl_ms })
    }

    fn lock(
        &self,
        head: [u8; HEAD],
        body: &[u8],
        associated_data: &str,
    ) -> Result<Bytes, SealFailed> {
        #[cfg(feature = "encrypt")]
        if let Some(keyring) = &self.keyring {
            return keyring.lock(head, body, associated_data);
        }
        let _ = associated_data;
        let mut sealed = BytesMut::with_capacity(HEAD + body.len());
        sealed.put_slice(&head);
        sealed.put_slice(body);
        Ok(sealed.freeze())
    }

    fn unlocked(&self, body: Bytes) -> Result<Bytes, Unreadable> {
        #[cfg(feature = "encrypt")]
        if self.keyring.is_some() {
            return Err(Unreadable::Plain);
        }
        Ok(body)
    }

    #[cfg(feature = "encrypt")]
    fn unlock(
        &self,
        head: &[u8; HEAD],
        body: &[u8],
        associated_data: &str,
    ) -> Result<Bytes, Unreadable> {
        match &self.keyring {
            Some(keyring) => keyring.unlock(head, body, associated_data),
            None => Err(Unreadable::Flags(head[1])),
        }
    }

    #[cfg(not(feature = "encrypt"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    const fn unlock(&self, head: &[u8; HEAD], _: &[u8], _: &str) -> Result<Bytes, Unreadable> {
        Err(Unreadable::Flags(head[1]))
    }
}

/// An opened value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Opened {
    /// The value; `None` stands for work that is done without a result.
    pub plain: Option<Bytes>,
    /// Time to live when it was sealed, in milliseconds.
    pub ttl_ms: u64,
}

fn head(flags: u8, ttl_ms: u64) -> [u8; HEAD] {
    let mut head = [VERSION, flags, 0, 0, 0, 0, 0, 0, 0, 0];
    head[2..].copy_from_slice(&ttl_ms.to_be_bytes());
    head
}

/// A value could not be sealed, because the operating system provides no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SealFailed;

impl fmt::Display for SealFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the operating system provides no randomness")
    }
}

impl std::error::Error for SealFailed {}

#[cfg(feature = "compress")]
impl Compress {
    fn smaller(self, plain: &[u8]) -> Option<Vec<u8>> {
        if plain.len() < self.from {
            return None;
        }
        let smaller = zstd::bulk::compress(plain, self.level).ok()?;
        (smaller.len() < plain.len()).then_some(smaller)
    }
}

/// Encryption keys by number: the newest encrypts, all of them decrypt.
///
/// To replace a key, first give every instance a keyring that has the new one, then one where it is the newest; drop the old
/// one when the longest ttl has passed.
#[cfg(feature = "encrypt")]
#[derive(Clone)]
#[must_use]
pub struct Keyring {
    newest: u32,
    keys: Arc<[(u32, chacha20poly1305::XChaCha20Poly1305)]>,
}

#[cfg(feature = "encrypt")]
impl Keyring {
    /// A keyring whose newest key is `key`, with this number.
    pub fn new(number: u32, key: [u8; 32]) -> Self {
        Self {
            newest: number,
            keys: Arc::new([]),
        }
        .with(number, key)
    }

    /// Adds a key that decrypts. An existing key of this number is replaced.
    pub fn with(self, number: u32, key: [u8; 32]) -> Self {
        use chacha20poly1305::KeyInit;
        let others = self.keys.iter().filter(|(known, _)| *known != number);
        let key = chacha20poly1305::XChaCha20Poly1305::new(&key.into());
        Self {
            newest: self.newest,
            keys: others.cloned().chain([(number, key)]).collect(),
        }
    }

    fn find(&self, number: u32) -> Option<&chacha20poly1305::XChaCha20Poly1305> {
        let found = self.keys.iter().find(|(known, _)| *known == number);
        found.map(|(_, key)| key)
    }

    fn lock(
        &self,
        mut head: [u8; HEAD],
        body: &[u8],
        associated_data: &str,
    ) -> Result<Bytes, SealFailed> {
        use chacha20poly1305::{
            XNonce,
            aead::{Aead, Generate, Payload},
        };
        head[1] |= ENCRYPTED;
        let nonce = XNonce::try_generate().map_err(|_| SealFailed)?;
        let aad = bound_to(&head, self.newest, associated_data);
        let payload = Payload {
            msg: body,
            aad: &aad,
        };
        let key = self.find(self.newest).ok_or(SealFailed)?;
        let secret = key.encrypt(&nonce, payload).map_err(|_| SealFailed)?;
        let mut sealed = BytesMut::with_capacity(HEAD + 4 + 24 + secret.len());
        sealed.put_slice(&head);
        sealed.put_u32(self.newest);
        sealed.put_slice(&nonce);
        sealed.put_slice(&secret);
        Ok(sealed.freeze())
    }

    fn unlock(
        &self,
        head: &[u8; HEAD],
        body: &[u8],
        associated_data: &str,
    ) -> Result<Bytes, Unreadable> {
        use chacha20poly1305::{
            XNonce,
            aead::{Aead, Payload},
        };
        let (number, rest) = body.split_first_chunk::<4>().ok_or(Unreadable::CutShort)?;
        let (nonce, secret) = rest.split_first_chunk::<24>().ok_or(Unreadable::CutShort)?;
        let number = u32::from_be_bytes(*number);
        let key = self.find(number).ok_or(Unreadable::NoSuchKey(number))?;
        let aad = bound_to(head, number, associated_data);
        let payload = Payload {
            msg: secret,
            aad: &aad,
        };
        key.decrypt(&XNonce::from(*nonce), payload)
            .map(Bytes::from)
            .map_err(|_| Unreadable::Forged)
    }
}

#[cfg(feature = "encrypt")]
fn bound_to(head: &[u8; HEAD], number: u32, associated_data: &str) -> Vec<u8> {
    let mut aad = head.to_vec();
    aad.extend(number.to_be_bytes());
    aad.extend(associated_data.as_bytes());
    aad
}

#[cfg(feature = "encrypt")]
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<u32> = self.keys.iter().map(|(number, _)| *number).collect();
        f.debug_struct("Keyring")
            .field("newest", &self.newest)
            .field("numbers", &numbers)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[path = "sealing_tests.rs"]
mod tests;
