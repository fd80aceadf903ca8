use proptest::prelude::*;

use super::*;

fn parse(value: &str) -> Result<String, MalformedKey> {
    let key = KeyRules::new().parse(&HeaderValue::from_str(value).unwrap());
    key.map(|key| key.as_str().to_owned())
}

#[test]
fn a_key_is_read_with_and_without_quotes() {
    for (value, key) in [
        (
            r#""8e03978e-40d5-43dd-bc93-6894a57f9324""#,
            "8e03978e-40d5-43dd-bc93-6894a57f9324",
        ),
        (
            "8e03978e-40d5-43dd-bc93-6894a57f9324",
            "8e03978e-40d5-43dd-bc93-6894a57f9324",
        ),
        ("  \"a\"\t", "a"),
        ("b64/+==", "b64/+=="),
        ("order:17", "order:17"),
        ("17", "17"),
        (r#""a \"quoted\" \\ one""#, r#"a "quoted" \ one"#),
        (r#""a";v=1;w"#, "a"),
    ] {
        assert_eq!(parse(value).as_deref(), Ok(key), "{value}");
    }
}

#[test]
fn what_is_not_one_string_is_malformed() {
    for value in [
        r#"""#,
        r#""a"#,
        r#"a""#,
        r#""a" "b""#,
        r#""a", "b""#,
        r#""a""b""#,
        r#""a\n""#,
        r#""a";"#,
        r#""a"; =1"#,
        "a b",
        "a,b",
        "a;b=1",
        "a\\b",
        "(\"a\")",
    ] {
        assert_eq!(parse(value), Err(MalformedKey::NoString), "{value}");
    }
    assert_eq!(parse(""), Err(MalformedKey::Empty));
    assert_eq!(parse("  "), Err(MalformedKey::Empty));
    assert_eq!(parse(r#""""#), Err(MalformedKey::Empty));
    let raw = |bytes: &[u8]| KeyRules::new().parse(&HeaderValue::from_bytes(bytes).unwrap());
    assert_eq!(raw(b"\"\xc3\xa9\""), Err(MalformedKey::NoString));
    assert_eq!(raw(b"\xff"), Err(MalformedKey::NoString));
}

#[test]
fn two_headers_are_no_key_and_none_is_none() {
    let mut headers = HeaderMap::new();
    assert_eq!(KeyRules::new().read(&headers), Ok(None));
    for _ in 0..2 {
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static("the-same"));
    }
    let read = KeyRules::new().read(&headers);
    assert_eq!(read, Err(MalformedKey::Repeated));
}

#[test]
fn a_key_has_a_limit_and_the_limit_has_limits() {
    let rules = KeyRules::new();
    let of = |rules: KeyRules, length: usize| {
        let value = HeaderValue::from_str(&"k".repeat(length)).unwrap();
        rules.parse(&value).map(|key| key.as_str().len())
    };
    assert_eq!(of(rules, 255), Ok(255));
    assert_eq!(of(rules, 256), Err(MalformedKey::TooLong(255)));
    assert_eq!(of(rules, 100_000), Err(MalformedKey::TooLong(255)));
    let short = rules.max_len(36).unwrap();
    assert_eq!(of(short, 37), Err(MalformedKey::TooLong(36)));
    // Escapes do not count.
    let escaped = HeaderValue::from_str(&format!("\"{}\"", "\\\"".repeat(36))).unwrap();
    assert_eq!(short.parse(&escaped).unwrap().as_str(), "\"".repeat(36));
    for wrong in [0, Key::MAX_LEN + 1] {
        let error = rules.max_len(wrong).unwrap_err();
        assert_eq!(error.field(), "max_len");
    }
    let own = Key::new("k".repeat(Key::MAX_LEN + 1));
    assert_eq!(own, Err(MalformedKey::TooLong(Key::MAX_LEN)));
}

#[test]
fn what_would_be_read_as_something_else_is_quoted_after_all() {
    let bare = |key: &str| {
        let value = Key::new(key).unwrap().header(KeyForm::Bare);
        value.to_str().unwrap().to_owned()
    };
    assert_eq!(bare("order-17"), "order-17");
    assert_eq!(bare("a b"), "\"a b\"");
    assert_eq!(bare("a\"b"), r#""a\"b""#);
}

#[cfg(feature = "client")]
#[test]
fn fresh_keys_differ_and_sort_by_when_they_were_made() {
    let keys: Vec<_> = (0..10_000).map(|_| Key::fresh()).collect();
    assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(keys[0].as_str().len(), 36);
    assert_eq!(keys[0].as_str().as_bytes()[14], b'7');
}

proptest! {
    #[test]
    fn whatever_arrives_is_a_key_or_an_error_and_no_panic(
        value in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        if let Ok(value) = HeaderValue::from_bytes(&value)
            && let Ok(key) = KeyRules::new().parse(&value)
        {
            prop_assert!((1..=255).contains(&key.as_str().len()));
            prop_assert!(Key::new(key.as_str()).is_ok());
        }
    }

    #[test]
    fn near_misses_of_a_string_are_read_as_strictly(value in "[\"\\\\a;=, (:?@%]{0,12}") {
        if let Ok(key) = parse(&value) {
            // Whatever was accepted means the same when it is written again.
            let again = Key::new(key.clone()).unwrap().header(KeyForm::Quoted);
            prop_assert_eq!(parse(again.to_str().unwrap()), Ok(key));
        }
    }

    #[test]
    fn a_key_survives_the_wire_in_either_form(key in "[ -~]{1,255}") {
        let key = Key::new(key).unwrap();
        for form in [KeyForm::Quoted, KeyForm::Bare] {
            prop_assert_eq!(KeyRules::new().parse(&key.header(form)), Ok(key.clone()));
        }
    }
}
