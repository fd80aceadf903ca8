//! Whom a request is charged to.

use std::{fmt, sync::Arc};

use http::{HeaderName, request::Parts};
use sha2::{Digest, Sha256};

use super::super::{
    address::{ClientAddress, customer},
    hex,
};

/// Whom a request is charged to: a header, an address, a path, or what a closure makes of the request's head.
///
/// ```
/// use resilience_http::server::{ClientAddress, LimitKey};
///
/// let per_customer_and_method = LimitKey::address(ClientAddress::new().trust(["10.0.0.0/8"])?)
///     .and(LimitKey::by(|head| Some(head.method.to_string())));
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct LimitKey(Arc<KeyOf>);

type KeyOf = dyn Fn(&Parts) -> Option<String> + Send + Sync;

/// What becomes of requests that have no key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingKey {
    /// All of them share one bucket: nobody escapes a limit by leaving out a header.
    #[default]
    Share,
    /// They pass, without limit.
    Pass,
    /// They are answered 400.
    Refuse,
}

impl LimitKey {
    /// One bucket for all.
    pub fn whole() -> Self {
        Self::by(|_| Some("all".into()))
    }

    /// The value of a header: a token, a tenant. It is kept as a digest, because it is a secret more often than not.
    /// All of its values count, if it was sent more than once.
    pub fn header(name: HeaderName) -> Self {
        Self::by(move |head| {
            let mut values = head.headers.get_all(&name).iter().peekable();
            values.peek()?;
            let mut digest = Sha256::new();
            for value in values {
                digest.update((value.len() as u64).to_le_bytes());
                digest.update(value.as_bytes());
            }
            Some(hex(&digest.finalize()[..16]))
        })
    }

    /// The client's address; of IPv6, its first 64 bits, which one customer has to himself.
    pub fn address(address: ClientAddress) -> Self {
        Self::by(move |head| address.of(head).map(customer))
    }

    /// The path as the router has it (`/orders/{id}`), so that there is one bucket for a route and not one for each
    /// order. The layer has to be within a router: on a route, or by `Router::layer`.
    #[cfg(feature = "axum")]
    pub fn matched_path() -> Self {
        Self::by(|head| {
            let path = head.extensions.get::<axum::extract::MatchedPath>()?;
            Some(path.as_str().to_owned())
        })
    }

    /// What a closure makes of the request's head; `None` if there is no key in it. It should have few values, or
    /// values that cost their sender something: each has a bucket.
    pub fn by(key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(key))
    }

    /// Both: a bucket for each pair. No key if one of them is missing.
    pub fn and(self, other: Self) -> Self {
        Self::by(move |head| {
            let (one, other) = (self.of(head)?, other.of(head)?);
            // The length keeps a pair from being taken for another.
            Some(format!("{}:{one}{other}", one.len()))
        })
    }

    pub(super) fn of(&self, head: &Parts) -> Option<String> {
        (self.0)(head)
    }
}

impl fmt::Debug for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, header};

    use super::*;

    fn head(values: &[&str]) -> Parts {
        let mut request = Request::get("/a");
        for value in values {
            request = request.header(header::AUTHORIZATION, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_header_is_a_key_and_no_secret_in_the_store() {
        let key = LimitKey::header(header::AUTHORIZATION);
        let of = |values: &[&str]| key.of(&head(values));
        let one = of(&["Bearer secret"]).unwrap();
        assert!(!one.contains("secret") && one.len() == 32, "{one}");
        assert_eq!(of(&["Bearer secret"]), Some(one.clone()));
        assert_ne!(of(&["Bearer other"]), Some(one));
        assert_ne!(of(&["a", "b"]), of(&["ab"]));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn pairs_are_not_taken_for_each_other() {
        let pair = |one: &'static str, other: &'static str| {
            let key = LimitKey::by(move |_| Some(one.into()));
            key.and(LimitKey::by(move |_| Some(other.into())))
                .of(&head(&[]))
        };
        assert_ne!(pair("a", "bc"), pair("ab", "c"));
        assert_ne!(pair("1:a", "b"), pair("1", ":ab"));
        let none = LimitKey::whole().and(LimitKey::by(|_| None));
        assert_eq!(none.of(&head(&[])), None);
    }
}
