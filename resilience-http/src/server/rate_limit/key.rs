//! The key that a request is counted under.

use std::{fmt, sync::Arc};

use super::super::{
    address::{ClientAddress, customer},
    digest,
};
use http::{HeaderName, request::Parts};

/// Key that a request is counted under: a header, a client's address, a path, or the result of a
/// closure over the request's head.
///
/// ```
/// use resilience_http::{LimitKey, server::ClientAddress};
///
/// let per_customer_and_method = LimitKey::address(ClientAddress::new().trust(["10.0.0.0/8"])?)
///     .and(LimitKey::by(|head| Some(head.method.to_string())));
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct LimitKey(Arc<KeyOf>);

type KeyOf = dyn Fn(&Parts) -> Option<String> + Send + Sync;

/// How requests without a key are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingKey {
    /// All of them share one bucket: leaving out a header does not evade the limit.
    #[default]
    Share,
    /// They pass without being counted.
    Pass,
    /// They get a 400.
    Refuse,
}

impl LimitKey {
    /// Creates a key with one bucket for all requests.
    pub fn whole() -> Self {
        Self::by(|_| Some("all".into()))
    }

    /// Creates a key of the value of a header, such as a token or a tenant. Stored as a digest,
    /// since it is often a secret. If the header was sent more than once, all values count.
    ///
    /// # Panics
    ///
    /// If `name` is a text that is not the name of a header.
    pub fn header<N>(name: N) -> Self
    where
        N: TryInto<HeaderName, Error: fmt::Debug>,
    {
        let name = name.try_into().expect("the name of a header");
        Self::by(move |head| {
            let mut values = head.headers.get_all(&name).iter().peekable();
            values.peek()?;
            Some(digest::of_values(values))
        })
    }

    /// Creates a key of the client's address. Of an IPv6 address only the first 64 bits count: one
    /// customer usually has at least that network. Clients behind a translator (NAT64) have a bucket
    /// for each IPv4 address: see [`ClientAddress::nat64`].
    pub fn address(address: ClientAddress) -> Self {
        Self::by(move |head| address.of(head).map(customer))
    }

    /// Creates a key of the matched route (`/orders/{id}`), so that there is one bucket per route
    /// and not one per order. The layer must be inside a router: on a route, or by `Router::layer`.
    #[cfg(feature = "axum")]
    pub fn matched_path() -> Self {
        Self::by(|head| {
            let path = head.extensions.get::<axum::extract::MatchedPath>()?;
            Some(path.as_str().to_owned())
        })
    }

    /// Creates a key from a closure over the request's head, which returns `None` if there is no
    /// key in it. Each value has a bucket of its own: it should have few values, or values that a
    /// client cannot make up for free.
    pub fn by(key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(key))
    }

    /// Combines two keys: one bucket per pair, and no key if one of them is missing.
    pub fn and(self, other: Self) -> Self {
        Self::by(move |head| {
            let (one, other) = (self.of(head)?, other.of(head)?);
            // The length makes pairs unambiguous.
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
        let named = LimitKey::header("authorization");
        assert_eq!(
            named.of(&head(&["a"])),
            LimitKey::header(header::AUTHORIZATION).of(&head(&["a"]))
        );
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
