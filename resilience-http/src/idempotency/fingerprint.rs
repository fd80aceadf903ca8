//! Fingerprints of requests: whether two requests with the same key are equal.

use std::fmt;

use http::{HeaderMap, HeaderName, Method, Uri, header};
use resilience_core::InvalidConfig;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::json;

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

/// Selection of the parts of a request that its fingerprint covers. By default: method, path, query
/// and body.
///
/// A body of type JSON (`application/json`, `.. +json`) is compared by value, in the canonical form
/// of RFC 8785: whitespace and the order of members do not matter. JSON that parsers may read
/// differently (a member twice in one object, numbers of more than 15 digits) is compared byte for
/// byte, as is any other body. A form with files (`multipart/form-data`) differs each time it is
/// sent, because its boundary is random: select [headers](Self::header) there, and leave the body
/// [out](Self::without_body).
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
/// assert_eq!(of(&rest, r#"{"amount":7,"sent_at":1}"#), of(&rest, r#"{"amount":7,"sent_at":2}"#));
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
    /// Creates the default: method, path, query and body.
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

    /// Computes the fingerprint of a request.
    #[must_use]
    pub fn fingerprint(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Fingerprint {
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
        self.body.add(headers, body, &mut digest);
        Fingerprint(digest.0.finalize().into())
    }
}

impl Body {
    fn add(&self, headers: &HeaderMap, body: &[u8], digest: &mut Parts) {
        if matches!(self, Self::Ignored) {
            return;
        }
        let json = !matches!(self, Self::Bytes) && says_json(headers);
        let value = if json { json::exact(body) } else { None };
        match (self, value) {
            (_, None) => digest.add(Part::Bytes, body),
            (Self::Only(pointers), Some(value)) => {
                for pointer in pointers {
                    digest.add(Part::Pointer, pointer.as_bytes());
                    if let Some(found) = value.pointer(pointer) {
                        digest.add(Part::Json, &json::canonical(found));
                    }
                }
            }
            (Self::Without(pointers), Some(mut value)) => {
                pointers
                    .iter()
                    .for_each(|pointer| remove(&mut value, pointer));
                digest.add(Part::Json, &json::canonical(&value));
            }
            (_, Some(value)) => digest.add(Part::Json, &json::canonical(&value)),
        }
    }
}

/// Removes a value. In an array it leaves a null, so that the other elements keep their index.
fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, name)) = pointer.rsplit_once('/') else {
        return;
    };
    match value.pointer_mut(parent) {
        Some(Value::Object(members)) => {
            members.remove(&name.replace("~1", "/").replace("~0", "~"));
        }
        Some(Value::Array(_)) => {
            if let Some(item) = value.pointer_mut(pointer) {
                *item = Value::Null;
            }
        }
        _ => {}
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
}

impl Parts {
    fn add(&mut self, part: Part, bytes: &[u8]) {
        self.0.update([part as u8]);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests;
