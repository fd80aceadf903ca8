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
    assert_eq!(prints[0], of(&all, "POST", "/pay", "{ }"));
}

#[test]
fn the_host_counts_wherever_it_is_named_and_its_port_does_not() {
    let all = FingerprintRules::new();
    let by = |rules: &FingerprintRules, uri: &str, host: Option<&'static str>| {
        let mut headers = json("application/json");
        if let Some(host) = host {
            headers.insert(header::HOST, HeaderValue::from_static(host));
        }
        rules.fingerprint(&Method::POST, &uri.parse().unwrap(), &headers, b"{}")
    };
    let one = by(&all, "/pay", Some("a.test"));
    for (uri, host) in [
        ("http://a.test/pay", None),
        ("https://A.test:8443/pay", Some("b.test")),
        ("/pay", Some("A.TEST")),
        ("/pay", Some("a.test:80")),
    ] {
        assert_eq!(one, by(&all, uri, host), "{uri} {host:?}");
    }
    let hosts = [
        None,
        Some("a.test"),
        Some("b.test"),
        Some("a.test.b"),
        Some("[::1]:80"),
        Some("[::2]"),
        Some(""),
    ];
    let prints = hosts.map(|host| by(&all, "/pay", host));
    for (index, print) in prints.iter().enumerate() {
        assert!(!prints[..index].contains(print), "{:?}", hosts[index]);
    }
    assert_eq!(prints[4], by(&all, "/pay", Some("[::1]")));
    let without = all.without_host();
    let prints = hosts.map(|host| by(&without, "/pay", host));
    assert!(prints.iter().all(|print| *print == prints[0]));
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

    // With a host: what the version before computed, and what this one does.
    let mut headers = json("application/json");
    headers.insert(header::HOST, HeaderValue::from_static("A.test:80"));
    let uri = Uri::from_static("/pay?x=1");
    let body = r#"{"b":1,"a":"é"}"#.as_bytes();
    let rules = FingerprintRules::new();
    let (now, former) = rules.fingerprints(&Method::POST, &uri, &headers, body);
    assert_eq!(former, print);
    parts.push(9);
    parts.extend(6_u64.to_le_bytes());
    parts.extend(b"a.test");
    let expected: [u8; 32] = Sha256::digest(&parts).into();
    assert_eq!(now.as_bytes(), &expected);
}

/// Of JSON with a long number, or a member twice, the version before compared all bytes, whatever was selected.
#[test]
fn the_fingerprint_of_the_version_before_is_known_where_it_was_another_one() {
    let uri = Uri::from_static("/pay");
    let both = |rules: &FingerprintRules, body: &str| {
        let headers = json("application/json");
        rules.fingerprints(&Method::POST, &uri, &headers, body.as_bytes())
    };
    let rest = FingerprintRules::new().without_fields(["/at"]).unwrap();
    let only = FingerprintRules::new().only_fields(["/amount"]).unwrap();
    let long = r#"{"amount":7,"at":17000000000000000001}"#;
    let bytes = both(&FingerprintRules::new().bytes(), long).0;
    for rules in [&rest, &only] {
        let (now, former) = both(rules, long);
        assert_ne!(now, former);
        assert_eq!(former, bytes);
        let (now, former) = both(rules, r#"{"amount":7,"at":1}"#);
        assert_eq!(now, former);
    }
    let (now, former) = both(&FingerprintRules::new(), long);
    assert_eq!((now, former), (bytes, bytes));
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

/// A retry with another timestamp is the same request, however long the numbers in it are.
#[test]
fn what_is_left_out_does_not_matter_in_any_form_and_what_remains_is_compared_exactly() {
    let rest = FingerprintRules::new()
        .without_fields(["/sent_at", "/trace"])
        .unwrap();
    let with = |sent_at: &str, amount: &str| {
        let text = format!(r#"{{"sent_at":{sent_at},"amount":{amount},"to":"a"}}"#);
        body(&rest, &text)
    };
    let first = with("1", "7");
    for sent_at in [
        "1700000000000000000",
        "1700000000.0000000001",
        "1e400",
        r#"{"a":1,"a":2}"#,
        r#""\ud800""#,
        r#"2,"trace":1,"trace":18446744073709551616"#,
        r#"3,"sent_at":4"#,
    ] {
        assert_eq!(with(sent_at, "7"), first, "{sent_at}");
        assert_ne!(with(sent_at, "8"), first, "{sent_at}");
    }
    // A long number in what remains.
    let long = with("1", "9007199254740993");
    assert_eq!(with("1700000000000000000", "9007199254740993"), long);
    assert_ne!(with("1", "9007199254740992"), long);
    assert_ne!(with("1", "9007199254740993.0"), long);
    // A member twice: both count, in their order.
    let twice = with("1", r#"1,"amount":2"#);
    assert_eq!(with("2", r#"1,"amount":2"#), twice);
    for other in [r#"2,"amount":1"#, "1", "2"] {
        assert_ne!(with("1", other), twice, "{other}");
    }

    let only = FingerprintRules::new().only_fields(["/amount"]).unwrap();
    let long = body(&only, r#"{"amount":9007199254740993,"at":1}"#);
    assert_eq!(
        long,
        body(
            &only,
            r#"{"at":18446744073709551616,"amount":9007199254740993}"#
        )
    );
    assert_ne!(long, body(&only, r#"{"amount":9007199254740992,"at":1}"#));
    let twice = body(&only, r#"{"amount":1,"amount":2}"#);
    assert_ne!(twice, body(&only, r#"{"amount":2}"#));
    assert_ne!(twice, body(&only, r#"{"amount":1}"#));
    assert_ne!(twice, body(&only, r#"{"amount":[1,2]}"#));
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
