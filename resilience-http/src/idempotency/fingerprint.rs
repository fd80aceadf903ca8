//! Fingerprints of requests: whether two requests with the same key are equal.

use std::fmt;

use http::{HeaderMap, HeaderName, Method, Uri, header};
use resilience_core::InvalidConfig;
use sha2::{Digest, Sha256};

use super::json::{self, Json};

/// Digest (SHA-256) of a request. Two requests with the same key and different fingerprints are
/// different requests, and the second one is a client's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns the bytes of the digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Selection of the parts of a request that its fingerprint covers. By default: method, host, path,
/// query and body.
///
/// The host is that of the URI, or else of `Host`, in lower case and without its port: instances of a
/// server may listen on several. The path is the one that the client sent, which routers that nest
/// others shorten (see [`IdempotentRequests`](crate::server::IdempotentRequests#identity)).
///
/// A body of type JSON (`application/json`, `.. +json`) is compared by value, in the canonical form
/// of RFC 8785: whitespace and the order of members do not matter. JSON that parsers may read
/// differently (a member twice in one object, numbers of more than 15 digits) is compared byte for
/// byte, as is any other body. Where fields are [selected](Self::only_fields) or [left
/// out](Self::without_fields), that holds for what remains: a long number counts as it is written, a
/// member that is there twice with both of its values, and what is left out does not matter in any
/// form. A form with files (`multipart/form-data`) differs each time it is sent, because its boundary
/// is random: select [headers](Self::header) there, and leave the body [out](Self::without_body).
///
/// ```
/// use http::{HeaderMap, HeaderValue, Method, Uri, header};
/// use resilience_http::idempotency::FingerprintRules;
///
/// let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
/// let path = Uri::from_static("/pay");
/// let of = |compare: &FingerprintRules, body: &str| compare.fingerprint(&Method::POST, &path, &headers, body.as_bytes());
///
/// let all = FingerprintRules::new();
/// assert_eq!(of(&all, r#"{"to":"a","amount":7}"#), of(&all, r#"{ "amount": 7.0, "to": "a" }"#));
/// let rest = FingerprintRules::new().without_fields(["/sent_at"])?;
/// let later = r#"{"amount":7,"sent_at":17000000000000000002}"#;
/// assert_eq!(of(&rest, r#"{"amount":7,"sent_at":17000000000000000001}"#), of(&rest, later));
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
///
/// **Cost**: JSON is parsed and written once, and the selected parts are hashed once.
///
/// # References
/// RFC 8785 (canonical JSON); RFC 6901 (JSON pointers).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct FingerprintRules {
    body: Body,
    ignore_host: bool,
    ignore_query: bool,
    headers: Vec<HeaderName>,
}

#[derive(Clone, Debug, Default)]
enum Body {
    #[default]
    Json,
    Only(Vec<String>),
    Without(Vec<String>),
    Bytes,
    Ignored,
}

impl FingerprintRules {
    /// Creates the default: method, host, path, query and body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Restricts a JSON body to these values, each given by a JSON pointer (RFC 6901): `/amount`,
    /// `/lines/0/sku`.
    ///
    /// # Errors
    /// If there is none, or one is not a JSON pointer.
    pub fn only_fields<P: Into<String>>(
        mut self,
        pointers: impl IntoIterator<Item = P>,
    ) -> Result<Self, InvalidConfig> {
        self.body = Body::Only(checked("only_fields", pointers)?);
        Ok(self)
    }

    /// Leaves these values out of a JSON body, each given by a JSON pointer (RFC 6901).
    ///
    /// # Errors
    /// As for [`only_fields`](Self::only_fields), and for the empty pointer, which is the whole
    /// body.
    pub fn without_fields<P: Into<String>>(
        mut self,
        pointers: impl IntoIterator<Item = P>,
    ) -> Result<Self, InvalidConfig> {
        let pointers = checked("without_fields", pointers)?;
        if pointers.iter().any(String::is_empty) {
            let rule = "must not name the whole body: see without_body";
            return Err(InvalidConfig::new("without_fields", "", rule));
        }
        self.body = Body::Without(pointers);
        Ok(self)
    }

    /// Compares the body byte for byte, JSON or not.
    pub fn bytes(mut self) -> Self {
        self.body = Body::Bytes;
        self
    }

    /// Leaves the body out.
    pub fn without_body(mut self) -> Self {
        self.body = Body::Ignored;
        self
    }

    /// Leaves the host out: for a service that one client reaches by several names, such as a name for
    /// each of its instances.
    pub const fn without_host(mut self) -> Self {
        self.ignore_host = true;
        self
    }

    /// Leaves the query out. By default it is compared byte for byte.
    pub const fn without_query(mut self) -> Self {
        self.ignore_query = true;
        self
    }

    /// Adds a header, with all of its values.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.headers.push(name);
        self
    }

    /// Computes the fingerprint of a request, whose `uri` is the one that the client sent.
    #[must_use]
    pub fn fingerprint(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Fingerprint {
        self.fingerprints(method, uri, headers, body).0
    }

    /// The fingerprint, and the one that the version before computed: without the host, and of JSON that
    /// parsers may read differently always byte for byte.
    pub(crate) fn fingerprints(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> (Fingerprint, Fingerprint) {
        let mut digest = Parts(Sha256::new());
        digest.add(Part::Method, method.as_str().as_bytes());
        digest.add(Part::Path, uri.path().as_bytes());
        if let Some(query) = uri.query().filter(|_| !self.ignore_query) {
            digest.add(Part::Query, query.as_bytes());
        }
        for name in &self.headers {
            digest.add(Part::Header, name.as_str().as_bytes());
            for value in headers.get_all(name) {
                digest.add(Part::Value, value.as_bytes());
            }
        }
        let mut former = digest.clone();
        match self.body.add(headers, body, &mut digest) {
            Added::AsBefore => former = digest.clone(),
            Added::Selected => former.add(Part::Bytes, body),
        }
        // Last, so that the digest up to here is also the former one.
        if let Some(host) = host(uri, headers).filter(|_| !self.ignore_host) {
            digest.add(Part::Host, &host);
        }
        (digest.end(), former.end())
    }
}

/// The host that a request is for, in lower case.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<Vec<u8>> {
    let host = match uri.host() {
        Some(host) => host.as_bytes(),
        None => without_port(headers.get(header::HOST)?.as_bytes()),
    };
    Some(host.to_ascii_lowercase())
}

fn without_port(authority: &[u8]) -> &[u8] {
    let Some(at) = authority.iter().rposition(|byte| *byte == b':') else {
        return authority;
    };
    let is_port = authority[at + 1..].iter().all(u8::is_ascii_digit);
    // Otherwise it is in an IPv6 address.
    if is_port { &authority[..at] } else { authority }
}

/// How a body went into the digest.
enum Added {
    /// As the version before did it.
    AsBefore,
    /// What was selected of JSON that parsers may read differently, which the version before compared
    /// as a whole.
    Selected,
}

impl Body {
    fn add(&self, headers: &HeaderMap, body: &[u8], digest: &mut Parts) -> Added {
        if matches!(self, Self::Ignored) {
            return Added::AsBefore;
        }
        let is_json = !matches!(self, Self::Bytes) && says_json(headers);
        let Some(mut value) = is_json.then(|| json::parse(body)).flatten() else {
            digest.add(Part::Bytes, body);
            return Added::AsBefore;
        };
        let is_exact = value.is_exact();
        match self {
            Self::Only(pointers) => {
                for pointer in pointers {
                    digest.add(Part::Pointer, pointer.as_bytes());
                    let found = value.find(pointer).into_iter();
                    found.for_each(|value| digest.json(value));
                }
            }
            Self::Without(pointers) => {
                pointers.iter().for_each(|pointer| value.remove(pointer));
                digest.json(&value);
            }
            _ if is_exact => digest.json(&value),
            _ => {
                digest.add(Part::Bytes, body);
                return Added::AsBefore;
            }
        }
        if is_exact {
            Added::AsBefore
        } else {
            Added::Selected
        }
    }
}

fn says_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let Some(kind) = value.and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
        || kind
            .rsplit_once('+')
            .is_some_and(|(_, suffix)| suffix.eq_ignore_ascii_case("json"))
}

fn checked<P: Into<String>>(
    field: &'static str,
    pointers: impl IntoIterator<Item = P>,
) -> Result<Vec<String>, InvalidConfig> {
    let pointers: Vec<String> = pointers.into_iter().map(Into::into).collect();
    if pointers.is_empty() {
        let rule = "must name one value at least";
        return Err(InvalidConfig::new(field, pointers, rule));
    }
    if let Some(wrong) = pointers.iter().find(|pointer| !is_pointer(pointer)) {
        let rule = "must be JSON pointers (RFC 6901), like /amount";
        return Err(InvalidConfig::new(field, wrong, rule));
    }
    Ok(pointers)
}

fn is_pointer(text: &str) -> bool {
    let escapes = text.split('~').skip(1);
    (text.is_empty() || text.starts_with('/'))
        && escapes.into_iter().all(|rest| rest.starts_with(['0', '1']))
}

/// A digest over parts. Each is preceded by its kind and length, so that different parts cannot
/// yield the same bytes.
#[derive(Clone)]
struct Parts(Sha256);

#[derive(Clone, Copy)]
enum Part {
    Method = 1,
    Path,
    Query,
    Header,
    Value,
    Pointer,
    Json,
    Bytes,
    Host,
}

impl Parts {
    fn add(&mut self, part: Part, bytes: &[u8]) {
        self.0.update([part as u8]);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn json(&mut self, value: &Json<'_>) {
        self.add(Part::Json, &value.canonical());
    }

    fn end(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests;
