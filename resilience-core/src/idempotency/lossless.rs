//! Check that JSON can represent a value, so that it is read as what it was.

use std::fmt::{self, Display};

use serde::ser::{self, Serialize, Serializer};

/// Checks that JSON keeps `value`: it has no null in place of a number that is not finite, or of a value in an `Option`.
///
/// # Errors
/// What JSON cannot represent.
pub(crate) fn check(value: &impl Serialize) -> Result<(), Lossy> {
    value.serialize(Check).map(drop)
}

/// Why JSON cannot represent a value.
#[derive(Debug)]
pub(crate) enum Lossy {
    NotFinite,
    /// `Some` of a value that is null in JSON: it would be read as `None`.
    SomeNull,
    /// An error of the value's own.
    Custom(String),
}

impl Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite => f.write_str("JSON has no number that is infinite or none at all"),
            Self::SomeNull => f.write_str("JSON has one null for Some(None), Some(()) and None"),
            Self::Custom(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Lossy {}

impl ser::Error for Lossy {
    fn custom<T: Display>(why: T) -> Self {
        Self::Custom(why.to_string())
    }
}

/// What a value is in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Null,
    Other,
}

type Checked = Result<Form, Lossy>;

/// A serializer that writes nothing.
#[derive(Clone, Copy)]
struct Check;

impl Check {
    fn part(self, value: &(impl Serialize + ?Sized)) -> Result<(), Lossy> {
        value.serialize(self).map(drop)
    }
}

const fn finite(is_finite: bool) -> Checked {
    if is_finite {
        Ok(Form::Other)
    } else {
        Err(Lossy::NotFinite)
    }
}

/// Methods for values that JSON represents as they are.
macro_rules! plain {
    ($($method:ident: $type:ty),+ $(,)?) => {
        $(fn $method(self, _: $type) -> Checked {
            Ok(Form::Other)
        })+
    };
}

impl Serializer for Check {
    type Ok = Form;
    type Error = Lossy;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    plain! {
        serialize_bool: bool,
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_i128: i128,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
        serialize_u128: u128,
        serialize_char: char,
        serialize_str: &str,
        serialize_bytes: &[u8],
    }

    fn serialize_f32(self, number: f32) -> Checked {
        finite(number.is_finite())
    }

    fn serialize_f64(self, number: f64) -> Checked {
        finite(number.is_finite())
    }

    fn serialize_none(self) -> Checked {
        Ok(Form::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Checked {
        match value.serialize(self)? {
            Form::Null => Err(Lossy::SomeNull),
            Form::Other => Ok(Form::Other),
        }
    }

    fn serialize_unit(self) -> Checked {
        Ok(Form::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Checked {
        Ok(Form::Null)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Checked {
        Ok(Form::Other)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Checked {
        self.part(value)?;
        Ok(Form::Other)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Lossy> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Lossy> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Lossy> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Lossy> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Lossy> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Lossy> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Lossy> {
        Ok(self)
    }

    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Checked {
        Ok(Form::Other)
    }
}

/// The traits of lists, whose parts have no names.
macro_rules! list {
    ($($trait:ident: $method:ident),+ $(,)?) => {
        $(impl ser::$trait for Check {
            type Ok = Form;
            type Error = Lossy;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Lossy> {
                self.part(value)
            }

            fn end(self) -> Checked {
                Ok(Form::Other)
            }
        })+
    };
}

list! {
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field,
}

/// The traits of structures, whose parts have names.
macro_rules! structure {
    ($($trait:ident),+ $(,)?) => {
        $(impl ser::$trait for Check {
            type Ok = Form;
            type Error = Lossy;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                _: &'static str,
                value: &T,
            ) -> Result<(), Lossy> {
                self.part(value)
            }

            fn end(self) -> Checked {
                Ok(Form::Other)
            }
        })+
    };
}

structure! {
    SerializeStruct,
    SerializeStructVariant,
}

impl ser::SerializeMap for Check {
    type Ok = Form;
    type Error = Lossy;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Lossy> {
        // JSON itself refuses names that are no strings.
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Lossy> {
        self.part(value)
    }

    fn end(self) -> Checked {
        Ok(Form::Other)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize, de::DeserializeOwned};

    use super::*;

    fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Lossy> {
        check(value)?;
        Ok(serde_json::to_vec(value).expect("JSON"))
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Receipt {
        cents: f64,
        note: Option<Option<String>>,
        lines: Vec<Line>,
        by: BTreeMap<String, Option<f32>>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Line {
        Empty,
        Item(f64),
        Pair(u64, Option<()>),
        Named { at: Option<i64> },
    }

    #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
    struct Nothing;

    fn receipt() -> Receipt {
        Receipt {
            cents: 0.1,
            note: Some(Some("thanks".into())),
            lines: vec![Line::Empty, Line::Item(-0.0), Line::Named { at: None }],
            by: BTreeMap::from([("a".into(), Some(1.5)), ("b".into(), None)]),
        }
    }

    #[track_caller]
    fn is_kept<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: &T) {
        let written = to_json(value).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), *value);
    }

    #[test]
    fn what_json_represents_is_recorded_and_read_as_what_it_was() {
        is_kept(&receipt());
        is_kept(&None::<f64>);
        is_kept(&());
        is_kept(&Nothing);
        is_kept(&Some((1_u128 << 100, 'x', None::<()>)));
        is_kept(&vec![None, Some(Some(7))]);
        is_kept(&vec![f64::MIN_POSITIVE, f64::MAX, f64::EPSILON, 0.1 + 0.2]);
    }

    #[test]
    fn what_json_would_change_is_refused_when_it_is_recorded() {
        let nan = |change: fn(&mut Receipt)| {
            let mut receipt = receipt();
            change(&mut receipt);
            to_json(&receipt).unwrap_err().to_string()
        };
        let not_finite = Lossy::NotFinite.to_string();
        assert_eq!(nan(|it| it.cents = f64::NAN), not_finite);
        assert_eq!(
            nan(|it| it.lines.push(Line::Item(f64::INFINITY))),
            not_finite
        );
        let in_map = |it: &mut Receipt| {
            it.by.insert("c".into(), Some(f32::NEG_INFINITY));
        };
        assert_eq!(nan(in_map), not_finite);
        let some_null = Lossy::SomeNull.to_string();
        assert_eq!(nan(|it| it.note = Some(None)), some_null);
        assert_eq!(nan(|it| it.lines.push(Line::Pair(1, Some(())))), some_null);
        assert!(to_json(&Some(None::<u8>)).is_err());
        assert!(to_json(&Some(Nothing)).is_err());
        assert!(to_json(&Some(serde_json::Value::Null)).is_err());
        assert!(to_json(&(1, [f32::NAN])).is_err());
    }

    proptest! {
        #[test]
        fn every_finite_number_is_read_to_its_last_bit(number in any::<f64>()) {
            match to_json(&number) {
                Ok(written) => {
                    let read: f64 = serde_json::from_slice(&written).unwrap();
                    prop_assert_eq!(read.to_bits(), number.to_bits());
                }
                Err(_) => prop_assert!(!number.is_finite()),
            }
        }
    }
}
