//! JSON as it is written, and its canonical form where that loses nothing.
//!
//! # References
//! RFC 8259 (JSON); RFC 8785 (JSON canonicalization scheme); RFC 6901 (JSON pointers).

mod reader;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

pub(super) use self::reader::parse;

/// A JSON value. What parsers may read differently is kept as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'a> {
    /// `null`, `true` or `false`.
    Literal(&'static str),
    /// As it is written: a double may not hold it.
    Number(&'a str),
    String(String),
    /// A string that is not valid JSON or UTF-8, as it is written, with its quotes.
    Invalid(&'a [u8]),
    Array(Vec<Self>),
    /// In the order of the text. A name may be there more than once.
    Object(Vec<(String, Self)>),
}

impl Json<'_> {
    /// Whether all parsers read the value alike: no member twice in one object, no number with more
    /// digits than a double holds exactly, no invalid string.
    pub(super) fn is_exact(&self) -> bool {
        match self {
            Self::Literal(_) | Self::String(_) => true,
            Self::Number(written) => is_exact(written),
            Self::Invalid(_) => false,
            Self::Array(items) => items.iter().all(Self::is_exact),
            Self::Object(members) => {
                let mut names = HashSet::new();
                let mut members = members.iter();
                members.all(|(name, value)| names.insert(name) && value.is_exact())
            }
        }
    }

    /// The canonical form (RFC 8785). What it would lose is in it as it is written: long numbers,
    /// and members of one name in their order. Two values with the same form are the same.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Literal(written) => out.extend_from_slice(written.as_bytes()),
            Self::Number(written) => write_number(written, out),
            Self::String(text) => write_string(text, out),
            Self::Invalid(written) => out.extend_from_slice(written),
            Self::Array(items) => {
                list(out, *b"[]", items, |out, item| item.write(out));
            }
            Self::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                // Stable: members of one name stay in their order.
                members
                    .sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
                list(out, *b"{}", members, |out, (name, value)| {
                    write_string(name, out);
                    out.push(b':');
                    value.write(out);
                });
            }
        }
    }

    /// The values at a pointer: more than one where a member is there more than once.
    pub(super) fn find(&self, pointer: &str) -> Vec<&Self> {
        let mut found = vec![self];
        for name in path(pointer) {
            found = found
                .into_iter()
                .flat_map(|value| value.children(&name))
                .collect();
        }
        found
    }

    fn children(&self, name: &str) -> Vec<&Self> {
        match self {
            Self::Object(members) => {
                let named = members.iter().filter(|(other, _)| other == name);
                named.map(|(_, value)| value).collect()
            }
            Self::Array(items) => index(name)
                .and_then(|at| items.get(at))
                .into_iter()
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Removes the values at a pointer. In an array they leave a null, so that the other elements
    /// keep their index.
    pub(super) fn remove(&mut self, pointer: &str) {
        let path: Vec<_> = path(pointer).collect();
        self.remove_at(&path);
    }

    fn remove_at(&mut self, path: &[String]) {
        let Some((name, rest)) = path.split_first() else {
            return;
        };
        match self {
            Self::Object(members) if rest.is_empty() => members.retain(|(other, _)| other != name),
            Self::Object(members) => {
                let named = members.iter_mut().filter(|(other, _)| other == name);
                named.for_each(|(_, value)| value.remove_at(rest));
            }
            Self::Array(items) => match index(name).and_then(|at| items.get_mut(at)) {
                Some(item) if rest.is_empty() => *item = Self::Literal("null"),
                Some(item) => item.remove_at(rest),
                None => {}
            },
            _ => {}
        }
    }
}

fn list<T>(
    out: &mut Vec<u8>,
    [open, close]: [u8; 2],
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(open);
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(close);
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail. serde_json escapes what RFC 8785 does, in the same way.
    let _ = serde_json::to_writer(out, text);
}

fn write_number(written: &str, out: &mut Vec<u8>) {
    let number = written.parse::<f64>().ok().filter(|_| is_exact(written));
    let number = number.and_then(|number| serde_json_canonicalizer::to_vec(&number).ok());
    match number {
        Some(number) => out.extend_from_slice(&number),
        None => out.extend_from_slice(written.as_bytes()),
    }
}

/// Whether a double holds the number: it does with up to fifteen digits, within these powers of ten.
fn is_exact(number: &str) -> bool {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let digits = mantissa.bytes().filter(u8::is_ascii_digit);
    let digits = digits.skip_while(|digit| *digit == b'0').count();
    let small = |exponent: i32| exponent.abs() < 250;
    digits <= 15 && mantissa.len() < 40 && exponent.parse().is_ok_and(small)
}

/// The names of a pointer.
fn path(pointer: &str) -> impl Iterator<Item = String> {
    let names = pointer.split('/').skip(1);
    names.map(|name| name.replace("~1", "/").replace("~0", "~"))
}

fn index(name: &str) -> Option<usize> {
    let is_canonical = name == "0" || !name.starts_with(['0', '+']);
    name.parse().ok().filter(|_| is_canonical)
}
