//! The scope of a key: the caller that may find its record.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use http::{HeaderName, HeaderValue, header, request::Parts};
use resilience_core::Pattern;

use super::super::digest;

/// How requests without credentials are treated, where the scope of a key is made of credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingCredentials {
    /// All of them share one scope, so that the key of one finds the response to another. The first one
    /// is reported by an event.
    #[default]
    Share,
    /// Those with a key get a 400.
    Refuse,
}

/// Where the scope of a key comes from.
#[derive(Clone)]
pub(super) enum Scope {
    /// A closure over the request's head.
    By(Arc<dyn Fn(&Parts) -> String + Send + Sync>),
    Credentials(Arc<Credentials>),
}

/// Headers that tell callers from each other.
pub(super) struct Credentials {
    names: Vec<HeaderName>,
    /// Counts where none of the others is there: it holds more than credentials, which changes.
    last: Option<HeaderName>,
    missing_was_told: AtomicBool,
    renewable_was_told: AtomicBool,
}

/// Names of headers that hold a credential.
const USUAL: [&str; 6] = [
    "authorization",
    "x-api-key",
    "api-key",
    "apikey",
    "x-auth-token",
    "x-access-token",
];

impl Scope {
    /// The headers that usually hold credentials.
    pub(super) fn usual() -> Self {
        let names = USUAL.map(HeaderName::from_static).to_vec();
        Self::of(names, Some(header::COOKIE))
    }

    pub(super) fn headers(names: Vec<HeaderName>) -> Self {
        Self::of(names, None)
    }

    fn of(names: Vec<HeaderName>, last: Option<HeaderName>) -> Self {
        Self::Credentials(Arc::new(Credentials {
            names,
            last,
            missing_was_told: AtomicBool::new(false),
            renewable_was_told: AtomicBool::new(false),
        }))
    }

    /// The scope of a request; `None` if it has no credentials, and must. `handle` is the name in events.
    pub(super) fn find(
        &self,
        head: &Parts,
        missing: MissingCredentials,
        handle: &str,
    ) -> Option<String> {
        let credentials = match self {
            Self::By(scope) => return Some(scope(head)),
            Self::Credentials(credentials) => credentials,
        };
        let found = credentials.find(head);
        if found.is_empty() {
            if missing == MissingCredentials::Refuse {
                return None;
            }
            if !credentials.missing_was_told.swap(true, Relaxed) {
                tell(
                    handle,
                    "requests without credentials share the scope of their idempotency keys",
                );
            }
        } else if found.iter().any(|(name, value)| is_renewable(name, value))
            && !credentials.renewable_was_told.swap(true, Relaxed)
        {
            tell(
                handle,
                "idempotency keys are scoped by a credential that changes when it is renewed",
            );
        }
        Some(digest_of(&found))
    }
}

impl Credentials {
    fn find<'a>(&'a self, head: &'a Parts) -> Vec<(&'a HeaderName, &'a HeaderValue)> {
        let headers = &head.headers;
        let of = move |name: &'a HeaderName| {
            let values = headers.get_all(name).iter();
            values.map(move |value| (name, value))
        };
        let found: Vec<_> = self.names.iter().flat_map(of).collect();
        if found.is_empty() {
            self.last.iter().flat_map(of).collect()
        } else {
            found
        }
    }
}

/// A digest, because credentials are secrets. That of `Authorization` alone, or of nothing, is the one
/// of the version before.
fn digest_of(found: &[(&HeaderName, &HeaderValue)]) -> String {
    if found
        .iter()
        .all(|(name, _)| **name == header::AUTHORIZATION)
    {
        return digest::of_values(found.iter().map(|(_, value)| *value));
    }
    let pairs = found.iter();
    let words =
        pairs.flat_map(|(name, value)| [HeaderValue::from((*name).clone()), (*value).clone()]);
    let words: Vec<_> = words.collect();
    format!("+{}", digest::of_values(words.iter()))
}

/// Whether the same caller may have another one the next time: any but a password or an API key.
fn is_renewable(name: &HeaderName, value: &HeaderValue) -> bool {
    let basic = |value: &[u8]| {
        value
            .get(..6)
            .is_some_and(|kind| kind.eq_ignore_ascii_case(b"basic "))
    };
    if *name == header::AUTHORIZATION {
        return !basic(value.as_bytes());
    }
    *name == header::COOKIE || name.as_str().ends_with("-token")
}

fn tell(name: &str, what: &'static str) {
    tracing::warn!(
        target: "resilience",
        pattern = Pattern::Idempotency.as_str(),
        name,
        "{what}: set a scope"
    );
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(pairs: &[(&str, &str)]) -> Parts {
        let mut request = Request::post("/pay");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn scope(pairs: &[(&str, &str)]) -> String {
        let found = Scope::usual().find(&head(pairs), MissingCredentials::Share, "test");
        found.unwrap()
    }

    /// Two callers share a scope if and only if all that tells them apart is the same.
    #[test]
    fn every_usual_credential_is_a_scope_of_its_own() {
        let callers: [&[(&str, &str)]; 14] = [
            &[],
            &[("authorization", "Bearer a")],
            &[("authorization", "Bearer b")],
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            &[("authorization", "Bearer a"), ("x-api-key", "a")],
            &[("x-api-key", "a")],
            &[("x-api-key", "b")],
            &[("api-key", "a")],
            &[("apikey", "a")],
            &[("x-auth-token", "a")],
            &[("x-access-token", "a")],
            &[("cookie", "a")],
            &[("cookie", "b")],
            &[("authorization", "x-api-key"), ("authorization", "a")],
        ];
        let scopes = callers.map(scope);
        for (at, of) in scopes.iter().enumerate() {
            assert!(!scopes[..at].contains(of), "{:?}", callers[at]);
            assert_eq!(*of, scope(callers[at]));
            assert!(!of.contains("Bearer"), "{of}");
        }
        // Cookies hold more than credentials: with one of those they do not matter.
        let with_cookie = [("x-api-key", "a"), ("cookie", "_ga=1")];
        assert_eq!(scope(&with_cookie), scope(&[("x-api-key", "a")]));
    }

    /// The records in the store are under the scope that the version before computed.
    #[test]
    fn the_scope_by_authorization_is_the_same_in_every_version() {
        let value = HeaderValue::from_static("Bearer a");
        let before = digest::of_values([&value].into_iter());
        assert_eq!(scope(&[("authorization", "Bearer a")]), before);
        assert_eq!(scope(&[]), digest::of_values([].into_iter()));
        let only = Scope::headers(vec![header::AUTHORIZATION]);
        let both = head(&[("authorization", "Bearer a"), ("x-api-key", "k")]);
        let found = only.find(&both, MissingCredentials::Refuse, "test");
        assert_eq!(found, Some(before));
    }

    #[test]
    fn a_request_without_credentials_is_refused_where_they_are_asked_for() {
        let usual = Scope::usual();
        let of =
            |pairs: &[(&str, &str)]| usual.find(&head(pairs), MissingCredentials::Refuse, "test");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("x-other", "a")]), None);
        assert!(of(&[("cookie", "a")]).is_some());
        let by = Scope::By(Arc::new(|_| String::new()));
        let found = by.find(&head(&[]), MissingCredentials::Refuse, "test");
        assert_eq!(found.as_deref(), Some(""));
    }

    #[test]
    fn passwords_and_api_keys_stay_and_tokens_are_renewed() {
        let is = |name: &'static str, value| {
            is_renewable(
                &HeaderName::from_static(name),
                &HeaderValue::from_static(value),
            )
        };
        for (name, value) in [
            ("authorization", "Bearer a"),
            ("authorization", "DPoP a"),
            ("cookie", "session=a"),
            ("x-auth-token", "a"),
        ] {
            assert!(is(name, value), "{name}: {value}");
        }
        assert!(!is("authorization", "Basic YTpi") && !is("x-api-key", "a"));
        assert!(!is("authorization", "basic YTpi") && !is("api-key", "a"));
    }
}
