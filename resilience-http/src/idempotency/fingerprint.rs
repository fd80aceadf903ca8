//! Whether two requests with one key are the same request.

use std::fmt;

use http::{HeaderMap, HeaderName, Method, Uri, header};
use resilience_core::InvalidConfig;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::json;

/// A digest (SHA-256) of what a request asks for. Two requests with one key and different fingerprints are two
/// different things to be done, and the second is a mistake of its sender's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The digest's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In hexadecimal.
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

/// What of a request has to be the same: its method, path, query and body, unless said otherwise.
///
/// A body that says that it is JSON (`application/json`, `.. +json`) is compared as the value that it is, in the
/// spelling of RFC 8785: spaces and the order of names do not matter. JSON that two readers may understand differently
/// (a name twice in one object, numbers of more than 15 digits) is compared byte for byte, and so is everything else.
/// A form with files in it (`multipart/form-data`) is different with every sending, because its boundary is drawn by
/// lot: say what counts by [`headers`](Self::header) there, and leave the body [out](Self::without_body).
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
/// let but_when = FingerprintRules::new().without_fields(["/sent_at"])?;
/// assert_eq!(of(&but_when, r#"{"amount":7,"sent_at":1}"#), of(&but_when, r#"{"amount":7,"sent_at":2}"#));
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
///
/// **Cost**: JSON is read and written once, and what is compared is digested once.
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
    /// Method, path, query and body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of a JSON body, nothing but these values, each by its JSON pointer (RFC 6901): `/amount`, `/lines/0/sku`.
    ///
    /// # Errors
    /// There is none, or one is no JSON pointer.
    pub fn only_fields<P: Into<String>>(
        mut self,
        pointers: impl IntoIterator<Item = P>,
    ) -> Result<Self, InvalidConfig> {
        self.body = Body::Only(checked("only_fields", pointers)?);
        Ok(self)
    }

    /// Of a JSON body, all but these values, each by its JSON pointer (RFC 6901).
    ///
    /// # Errors
    /// As [`only_fields`](Self::only_fields); and the empty pointer, which is the whole body.
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

    /// The body byte for byte, JSON or not.
    pub fn bytes(mut self) -> Self {
        self.body = Body::Bytes;
        self
    }

    /// The body does not count.
    pub fn without_body(mut self) -> Self {
        self.body = Body::Ignored;
        self
    }

    /// The query does not count. By default it does, byte for byte.
    pub const fn without_query(mut self) -> Self {
        self.ignore_query = true;
        self
    }

    /// This header counts too, with all of its values.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.headers.push(name);
        self
    }

    /// The fingerprint of a request.
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

/// Takes a value out. Of a list, it leaves an empty place, so that the others keep theirs.
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

/// A digest over parts, each with its kind and length before it, so that none can pass for another.
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
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn json(kind: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
    }

    fn of(compare: &FingerprintRules, method: &str, uri: &str, body: &str) -> Fingerprint {
        let (method, uri) = (method.parse().unwrap(), uri.parse().unwrap());
        compare.fingerprint(&method, &uri, &json("application/json"), body.as_bytes())
    }

    fn body(compare: &FingerprintRules, body: &str) -> Fingerprint {
        of(compare, "POST", "/pay", body)
    }

    #[test]
    fn every_part_counts() {
        let all = FingerprintRules::new();
        let requests = [
            ("POST", "/pay", "{}"),
            ("PUT", "/pay", "{}"),
            ("POST", "/pays", "{}"),
            ("POST", "/pay?", "{}"),
            ("POST", "/pay?a=1", "{}"),
            ("POST", "/pay?a=1", "[]"),
            ("POST", "/pay", ""),
        ];
        let prints = requests.map(|(method, uri, body)| of(&all, method, uri, body));
        for (index, print) in prints.iter().enumerate() {
            assert!(!prints[..index].contains(print), "{:?}", requests[index]);
        }
        assert_eq!(
            prints[0],
            of(&all, "POST", "http://elsewhere.test/pay", "{ }")
        );
    }

    /// Of one digest of a day, so that a new version does not change what is in the store.
    #[test]
    fn a_fingerprint_is_the_same_in_every_version() {
        let print = of(
            &FingerprintRules::new(),
            "POST",
            "/pay?x=1",
            r#"{"b":1,"a":"é"}"#,
        );
        let mut parts = Vec::new();
        for (kind, bytes) in [
            (1u8, "POST"),
            (2, "/pay"),
            (3, "x=1"),
            (7, r#"{"a":"é","b":1}"#),
        ] {
            parts.push(kind);
            parts.extend((bytes.len() as u64).to_le_bytes());
            parts.extend(bytes.as_bytes());
        }
        let expected: [u8; 32] = Sha256::digest(&parts).into();
        assert_eq!(print.as_bytes(), &expected);
        assert_eq!(print.to_string().len(), 64);
    }

    #[test]
    fn only_what_says_that_it_is_json_is_read_as_json() {
        let all = FingerprintRules::new();
        let path = Uri::from_static("/");
        for (kind, same) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/merge-patch+json", true),
            ("text/plain", false),
            ("application/jsonl", false),
        ] {
            let of =
                |body: &str| all.fingerprint(&Method::POST, &path, &json(kind), body.as_bytes());
            assert_eq!(of("{}") == of("{ }"), same, "{kind}");
        }
        assert_ne!(body(&all.clone().bytes(), "{}"), body(&all.bytes(), "{ }"));
    }

    #[test]
    fn ambiguous_json_counts_byte_for_byte() {
        let all = FingerprintRules::new();
        let twice = r#"{"amount":1,"amount":2}"#;
        assert_ne!(body(&all, twice), body(&all, r#"{"amount":2}"#));
        assert_ne!(
            body(&all, "90071992547409921"),
            body(&all, "90071992547409922")
        );
    }

    #[test]
    fn subsets_of_a_body_by_pointer() {
        let amount = FingerprintRules::new()
            .only_fields(["/amount", "/to/0"])
            .unwrap();
        let first = body(&amount, r#"{"amount":7,"to":["a","b"],"at":1}"#);
        assert_eq!(first, body(&amount, r#"{"at":2,"amount":7,"to":["a"]}"#));
        assert_ne!(first, body(&amount, r#"{"amount":8,"to":["a"]}"#));
        assert_ne!(first, body(&amount, r#"{"amount":7}"#));
        assert_ne!(body(&amount, r#"{"amount":null}"#), body(&amount, "{}"));
        // Nothing is left out of what is no JSON.
        assert_ne!(body(&amount, "{"), body(&amount, "{{"));

        let rest = FingerprintRules::new()
            .without_fields(["/at", "/lines/0/a~1b", "/to/1"])
            .unwrap();
        let first = body(
            &rest,
            r#"{"at":1,"x":1,"lines":[{"a/b":1,"c":2}],"to":[1,2,3]}"#,
        );
        assert_eq!(
            first,
            body(&rest, r#"{"x":1,"lines":[{"a/b":9,"c":2}],"to":[1,9,3]}"#)
        );
        assert_ne!(
            first,
            body(&rest, r#"{"x":1,"lines":[{"c":2}],"to":[1,3]}"#)
        );
        assert_ne!(
            first,
            body(&rest, r#"{"x":2,"lines":[{"c":2}],"to":[1,2,3]}"#)
        );
    }

    #[test]
    fn what_is_left_out_does_not_count_and_headers_do_when_they_are_named() {
        let none = FingerprintRules::new().without_body().without_query();
        assert_eq!(of(&none, "POST", "/a?b", "c"), of(&none, "POST", "/a", "d"));
        let tenant = HeaderName::from_static("x-tenant");
        let named = none.header(tenant.clone());
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(tenant.clone(), HeaderValue::from_str(value).unwrap());
            }
            named.fingerprint(&Method::POST, &Uri::from_static("/"), &headers, b"")
        };
        let all = [
            with(&[]),
            with(&[""]),
            with(&["a"]),
            with(&["a", "b"]),
            with(&["ab"]),
        ];
        for (index, print) in all.iter().enumerate() {
            assert!(!all[..index].contains(print), "{index}");
        }
    }

    #[test]
    fn a_wrong_pointer_is_refused_when_it_is_built() {
        let none: [&str; 0] = [];
        assert_eq!(
            FingerprintRules::new()
                .only_fields(none)
                .unwrap_err()
                .field(),
            "only_fields"
        );
        for wrong in ["amount", "/a~2", "/~"] {
            let error = FingerprintRules::new().only_fields([wrong]).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
            assert!(FingerprintRules::new().without_fields([wrong]).is_err());
        }
        assert!(FingerprintRules::new().without_fields([""]).is_err());
        assert!(
            FingerprintRules::new()
                .only_fields(["", "/", "/a~0b~1c"])
                .is_ok()
        );
    }

    proptest! {
        /// What stands in one part never stands for another: the sum of the bytes is the same, the parts are not.
        #[test]
        fn parts_cannot_be_shifted_into_each_other(text in "[a-z/]{2,20}", cut in 1usize..20, other in 1usize..20) {
            let (cut, other) = (cut % text.len(), other % text.len());
            let at = |cut: usize| {
                let (path, body) = text.split_at(cut);
                let uri: Uri = format!("/{path}").parse().unwrap();
                FingerprintRules::new().fingerprint(&Method::POST, &uri, &HeaderMap::new(), body.as_bytes())
            };
            prop_assert_eq!(at(cut) == at(other), cut == other);
        }

        #[test]
        fn whatever_the_body_is_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), text in "[{}\\[\\]\",:a0~/]{0,30}", pointer in "(/[a0~1]{0,3}){0,3}") {
            for body in [&bytes, text.as_bytes()] {
                let _ = of_bytes(&FingerprintRules::new(), body);
                if let Ok(compare) = FingerprintRules::new().without_fields([pointer.clone()]) {
                    let _ = of_bytes(&compare, body);
                }
                if let Ok(compare) = FingerprintRules::new().only_fields([pointer.clone()]) {
                    let _ = of_bytes(&compare, body);
                }
            }
        }
    }

    fn of_bytes(compare: &FingerprintRules, body: &[u8]) -> Fingerprint {
        compare.fingerprint(
            &Method::POST,
            &Uri::from_static("/"),
            &json("application/json"),
            body,
        )
    }
}
