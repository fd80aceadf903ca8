use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The canonical form of a value that all parsers read alike.
fn spelled(body: &str) -> Option<String> {
    let value = parse(body.as_bytes()).filter(Json::is_exact)?;
    Some(String::from_utf8(value.canonical()).unwrap())
}

/// The canonical form of any value.
fn written(body: &str) -> String {
    let value = parse(body.as_bytes()).unwrap();
    String::from_utf8(value.canonical()).unwrap()
}

#[test]
fn all_spellings_of_a_value_are_one() {
    let one = spelled(r#"{"amount":10.0,"to":"é","list":[1,2]}"#);
    let other = "{ \"list\" : [1e0, 2.00],\n\"to\":\"\\u00e9\", \"amount\": 1e1 }";
    assert_eq!(one, spelled(other));
    assert_eq!(
        one.as_deref(),
        Some(r#"{"amount":10,"list":[1,2],"to":"é"}"#)
    );
}

#[test]
fn what_readers_may_understand_differently_is_not_taken() {
    for body in [
        r#"{"amount":1,"amount":2}"#,
        r#"{"a":{"b":1,"b":1}}"#,
        "9007199254740993",
        "0.1000000000000000055",
        "1e400",
        "-1e-400",
        "1e99999999999",
        r#"["\ud800"]"#,
        "[\"\n\"]",
        "{",
        "",
        "1 2",
        "\u{feff}1",
        "[1,]",
        "{\"a\" 1}",
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e",
        "nul",
        "nulls",
        "'a'",
        "{a:1}",
        "\"a",
    ] {
        assert_eq!(spelled(body), None, "{body}");
    }
    // Digits in strings are not numbers.
    let text = r#"{"iban":"DE 89370400440532013000 \" 12345678901234567890","n":1}"#;
    assert!(spelled(text).is_some());
    assert_eq!(parse(b"\xff"), None);
    assert_eq!(parse("[".repeat(100_000).as_bytes()), None);
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(spelled(&nested(127)).is_some());
    assert_eq!(spelled(&nested(128)), None);
}

#[test]
fn what_readers_may_understand_differently_is_kept_as_it_is_written() {
    assert_eq!(
        written(r#"{"b": 9007199254740993, "a":1.0, "b": [1e400, "\ud800"]}"#),
        r#"{"a":1,"b":9007199254740993,"b":[1e400,"\ud800"]}"#
    );
    assert_ne!(written("90071992547409921"), written("90071992547409922"));
    assert_ne!(
        written("1.0000000000000000"),
        written("1.00000000000000000")
    );
    assert_ne!(written(r#"{"a":1,"a":2}"#), written(r#"{"a":2,"a":1}"#));
    assert_ne!(written(r#"{"a":1,"a":2}"#), written(r#"{"a":2}"#));
}

#[test]
fn a_pointer_finds_and_removes_what_is_there_all_of_it() {
    let body = r#"{"a":{"b":[1,2,{"c/d":3}]},"x":1,"x":{"y":2},"":0}"#;
    let value = parse(body.as_bytes()).unwrap();
    let found = |pointer: &str| -> Vec<String> {
        let found = value.find(pointer).into_iter();
        found
            .map(|value| String::from_utf8(value.canonical()).unwrap())
            .collect()
    };
    assert_eq!(found("/a/b/2/c~1d"), ["3"]);
    assert_eq!(found("/x"), ["1", r#"{"y":2}"#]);
    assert_eq!(found("/x/y"), ["2"]);
    assert_eq!(found("/"), ["0"]);
    for nothing in ["/a/b/3", "/a/b/02", "/a/b/+1", "/a/b/-", "/z", "/a/b/0/c"] {
        assert_eq!(found(nothing), [""; 0], "{nothing}");
    }
    let without = |pointer: &str| {
        let mut value = value.clone();
        value.remove(pointer);
        String::from_utf8(value.canonical()).unwrap()
    };
    assert_eq!(without("/x"), r#"{"":0,"a":{"b":[1,2,{"c/d":3}]}}"#);
    assert_eq!(
        without("/a/b/1"),
        r#"{"":0,"a":{"b":[1,null,{"c/d":3}]},"x":1,"x":{"y":2}}"#
    );
    assert_eq!(
        without("/a/b/2/c~1d"),
        r#"{"":0,"a":{"b":[1,2,{}]},"x":1,"x":{"y":2}}"#
    );
    assert_eq!(
        without("/x/y"),
        r#"{"":0,"a":{"b":[1,2,{"c/d":3}]},"x":1,"x":{}}"#
    );
    for nothing in ["", "/z", "/a/b/7", "/a/b/0/c"] {
        assert_eq!(without(nothing).as_bytes(), value.canonical(), "{nothing}");
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-999_999_999_999_999_i64..=999_999_999_999_999).prop_map(|n| json!(n)),
        (-1_000_000_i64..1_000_000).prop_map(|n| json!(n as f64 / 1000.0)),
        any::<String>().prop_map(Value::String),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::hash_map(any::<String>(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// The form is the one that the version before wrote, byte for byte: the fingerprints in the store
    /// are of that one.
    #[test]
    fn a_value_is_read_as_it_was_written_however_it_is_spelled(value in values()) {
        let canonical = serde_json_canonicalizer::to_string(&value).unwrap();
        let plain = spelled(&serde_json::to_string(&value).unwrap()).unwrap();
        let pretty = spelled(&serde_json::to_string_pretty(&value).unwrap()).unwrap();
        prop_assert_eq!(&plain, &canonical);
        prop_assert_eq!(&pretty, &canonical);
        // And the canonical form keeps the value: parsed again, it is the same value.
        prop_assert_eq!(spelled(&canonical), Some(canonical));
    }

    #[test]
    fn numbers_that_differ_stay_different(one in "-?[1-9][0-9]{0,7}\\.[0-9]{1,7}", other in "-?[1-9][0-9]{0,7}\\.[0-9]{1,7}") {
        let same = decimal(&one) == decimal(&other);
        prop_assert_eq!(spelled(&one) == spelled(&other), same, "{} {}", one, other);
    }

    /// What serde_json reads, this parser reads, and the other way round for what all parsers read alike.
    #[test]
    fn it_reads_what_serde_json_reads(text in "[{}\\[\\]\",:0-9eE.+\\\\ua -]{0,12}|(-?[0-9.eE+]{0,8})") {
        let read = parse(text.as_bytes());
        let theirs = serde_json::from_str::<Value>(&text);
        if theirs.is_ok() {
            prop_assert!(read.is_some(), "{}", text);
        }
        if read.is_some_and(|value| value.is_exact()) {
            prop_assert!(theirs.is_ok(), "{}", text);
        }
    }

    #[test]
    fn whatever_arrives_nothing_panics(body in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\",:0-9eE.+\\\\-]{0,40}", pointer in "(/[a0~1]{0,3}){0,3}") {
        for body in [&body, text.as_bytes()] {
            if let Some(mut value) = parse(body) {
                let again = value.canonical();
                // Unambiguous: it is read as what it was written from.
                prop_assert_eq!(parse(&again).map(|value| value.canonical()), Some(again));
                let _ = value.find(&pointer);
                value.remove(&pointer);
            }
        }
    }
}

/// In ten-millionths.
fn decimal(text: &str) -> i128 {
    let (whole, part) = text.split_once('.').unwrap();
    let part = format!("{part:0<7}");
    format!("{whole}{part}").parse().unwrap()
}
