//! Idempotency keys in HTTP: the header, the fingerprint of a request, and the recorded response.
//!
//! | item | side |
//! |---|---|
//! | [`Key`] | both: the value of `Idempotency-Key`, parsed strictly and formatted |
#![cfg_attr(
    feature = "server",
    doc = "| [`Fingerprint`] | server: a digest that tells whether two requests are equal |"
)]
#![cfg_attr(
    feature = "server",
    doc = "| [`Recorded`] | server: a response, recorded for replays |"
)]
//!
//! ```
//! use http::{HeaderMap, HeaderValue};
//! use resilience_http::{headers, idempotency::{Key, KeyForm, KeyRules}};
//!
//! let key = Key::new("order-17")?;
//! let sent = HeaderMap::from_iter([(headers::IDEMPOTENCY_KEY, key.header(KeyForm::Quoted))]);
//! assert_eq!(sent[headers::IDEMPOTENCY_KEY], "\"order-17\"");
//! assert_eq!(KeyRules::new().read(&sent)?, Some(key));
//! # Ok::<_, resilience_http::idempotency::MalformedKey>(())
//! ```
//!
//! # References
//! draft-ietf-httpapi-idempotency-key-header-07; RFC 9651 (structured fields); RFC 8785 (canonical
//! JSON).

#[cfg(feature = "server")]
mod fingerprint;
#[cfg(feature = "server")]
mod json;
mod key;
#[cfg(feature = "server")]
mod recorded;

pub use self::key::{Key, KeyForm, KeyRules, MalformedKey};
#[cfg(feature = "server")]
pub use self::{
    fingerprint::{Fingerprint, FingerprintRules},
    recorded::{Recorded, RecordedHeaders, Unreadable},
};
