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

/// A fixed digest, so that a new version still matches the records in the store.
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
        let of = |body: &str| all.fingerprint(&Method::POST, &path, &json(kind), body.as_bytes());
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
    // Nothing is left out of a body that is not JSON.
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
    /// The same bytes, split differently between the parts, never yield the same fingerprint.
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
