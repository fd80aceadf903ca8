//! What HTTP adds to idempotency keys: the header, the fingerprint of a request, and the response as it is kept.
//!
//! | | for whom |
//! |---|---|
//! | [`Key`] | both sides: what `Idempotency-Key` holds, strictly read, and written |
#![cfg_attr(
    feature = "server",
    doc = "| [`Fingerprint`] | the server: whether two requests with one key are the same request |"
)]
#![cfg_attr(
    feature = "server",
    doc = "| [`Recorded`] | the server: a response in bytes, to be given again |"
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
