//! Canonical JSON, where the canonical form loses nothing.
//!
//! # References
//! RFC 8785 (JSON canonicalization scheme).

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses a body as a JSON value that RFC 8785 can express without loss. `None` if it is not one.
///
/// JSON that parsers may read differently is rejected: a member twice in one object, and numbers
/// with more digits than a double holds exactly. Bodies that differ there must not count as equal.
pub(super) fn exact(body: &[u8]) -> Option<Value> {
    if !numbers_are_exact(body) {
        return None;
    }
    let value: Strict = serde_json::from_slice(body).ok()?;
    Some(value.0)
}

/// The canonical form of a value (RFC 8785).
pub(super) fn canonical(value: &Value) -> Vec<u8> {
    // Serializing fails for map keys that are not strings or that repeat: a `Value` has
    // neither.
    serde_json_canonicalizer::to_vec(value).unwrap_or_default()
}

/// A double holds any number of up to fifteen digits within these powers of ten.
fn numbers_are_exact(body: &[u8]) -> bool {
    let mut rest = body;
    while let Some((&first, tail)) = rest.split_first() {
        rest = match first {
            b'"' => after_string(tail),
            b'-' | b'0'..=b'9' => {
                let part =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let length = rest.iter().take_while(|byte| part(byte)).count();
                let (number, tail) = rest.split_at(length);
                if !is_exact(number) {
                    return false;
                }
                tail
            }
            _ => tail,
        };
    }
    true
}

fn after_string(mut rest: &[u8]) -> &[u8] {
    loop {
        rest = match rest {
            [b'"', tail @ ..] => return tail,
            [b'\\', _, tail @ ..] | [_, tail @ ..] => tail,
            [] => return rest,
        };
    }
}

fn is_exact(number: &[u8]) -> bool {
    let mut parts = number.splitn(2, |byte| matches!(byte, b'e' | b'E'));
    let mantissa = parts.next().unwrap_or_default();
    let digits = mantissa.iter().filter(|byte| byte.is_ascii_digit());
    let digits = digits.skip_while(|digit| **digit == b'0').count();
    let exponent = parts.next().unwrap_or_default();
    let exponent = std::str::from_utf8(exponent).unwrap_or_default();
    let small = exponent.is_empty()
        || exponent
            .parse::<i32>()
            .is_ok_and(|exponent| exponent.abs() < 250);
    digits <= 15 && mantissa.len() < 40 && small
}

/// A value whose objects have no member twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON with every name once")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).map(Value::Number);
        number.ok_or_else(|| E::custom("a number without end"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, Strict>()? {
            if all.insert(name, value).is_some() {
                return Err(de::Error::custom("a name twice"));
            }
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn spelled(body: &str) -> Option<String> {
        let value = exact(body.as_bytes())?;
        Some(String::from_utf8(canonical(&value)).unwrap())
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
            "{",
            "",
            "1 2",
            "\u{feff}1",
        ] {
            assert_eq!(exact(body.as_bytes()), None, "{body}");
        }
        // Digits in strings are not numbers.
        let text = r#"{"iban":"DE 89370400440532013000 \" 12345678901234567890","n":1}"#;
        assert!(exact(text.as_bytes()).is_some());
        assert_eq!(exact(b"\xff"), None);
        assert_eq!(exact("[".repeat(100_000).as_bytes()), None);
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
        #[test]
        fn a_value_is_read_as_it_was_written_however_it_is_spelled(value in values()) {
            let plain = exact(serde_json::to_string(&value).unwrap().as_bytes()).unwrap();
            let pretty = exact(serde_json::to_string_pretty(&value).unwrap().as_bytes()).unwrap();
            prop_assert_eq!(canonical(&plain), canonical(&value));
            prop_assert_eq!(canonical(&pretty), canonical(&value));
            // And the canonical form keeps the value: parsed again, it is the same value.
            let again = exact(&canonical(&value)).unwrap();
            prop_assert_eq!(canonical(&again), canonical(&value));
        }

        #[test]
        fn numbers_that_differ_stay_different(one in "-?[1-9][0-9]{0,7}\\.[0-9]{1,7}", other in "-?[1-9][0-9]{0,7}\\.[0-9]{1,7}") {
            let same = decimal(&one) == decimal(&other);
            prop_assert_eq!(spelled(&one) == spelled(&other), same, "{} {}", one, other);
        }

        #[test]
        fn whatever_arrives_nothing_panics(body in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\",:0-9eE.+\\\\-]{0,40}") {
            let _ = exact(&body);
            let _ = exact(text.as_bytes());
        }
    }

    /// In ten-millionths.
    fn decimal(text: &str) -> i128 {
        let (whole, part) = text.split_once('.').unwrap();
        let part = format!("{part:0<7}");
        format!("{whole}{part}").parse().unwrap()
    }
}
