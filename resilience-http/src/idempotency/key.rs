//! Idempotency keys, as their header carries them.

use std::{error::Error as StdError, fmt, sync::Arc};

use http::{HeaderMap, HeaderValue};
use resilience_core::InvalidConfig;
use sfv::{BareItemFromInput, ItemSerializer, Parser, StringRef, visitor::Ignored};

use crate::headers::IDEMPOTENCY_KEY;

/// Key that identifies one operation across repeated requests: the value of `Idempotency-Key`
/// (draft-ietf-httpapi-idempotency-key-header-07).
///
/// Printable ASCII, spaces included, of 1 to [`MAX_LEN`](Self::MAX_LEN) characters. Cheap to clone.
///
/// A key is neither a secret nor a proof of who sent it: a server must keep the records of
/// different clients apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The maximum length of a key, in characters. A server may allow less ([`KeyRules::max_len`]).
    pub const MAX_LEN: usize = 512;

    /// Creates a key from a caller's own identifier, such as an order number or a message id.
    ///
    /// # Errors
    /// If it is empty, too long, or not printable ASCII.
    pub fn new(key: impl Into<Arc<str>>) -> Result<Self, MalformedKey> {
        let key = key.into();
        if key.is_empty() {
            return Err(MalformedKey::Empty);
        }
        if key.len() > Self::MAX_LEN {
            return Err(MalformedKey::TooLong(Self::MAX_LEN));
        }
        if !key.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
            return Err(MalformedKey::NoString);
        }
        Ok(Self(key))
    }

    /// Creates a unique key: a UUID of version 7, which sorts by creation time.
    #[cfg(feature = "client")]
    #[must_use]
    pub fn fresh() -> Self {
        let mut text = uuid::Uuid::encode_buffer();
        Self(Arc::from(
            &*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text),
        ))
    }

    /// Returns the key, without the quotes of the header.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Formats the value of the header.
    #[must_use]
    pub fn header(&self, form: KeyForm) -> HeaderValue {
        let value = match form {
            KeyForm::Bare if is_bare(&self.0) => HeaderValue::from_str(&self.0),
            _ => HeaderValue::try_from(quoted(&self.0)),
        };
        // Printable ASCII, with or without quotes, is always a valid header value.
        value.unwrap_or_else(|_| HeaderValue::from_static("\"\""))
    }
}

fn quoted(key: &str) -> String {
    // A key contains only characters that a string of structured fields may contain.
    let string = StringRef::from_str(key).unwrap_or_else(|_| sfv::string_ref(""));
    ItemSerializer::new().bare_item(string).finish()
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Format of a key in its header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyForm {
    /// In quotes, as the draft requires: a string of structured fields (RFC 9651).
    #[default]
    Quoted,
    /// Without quotes, for servers that predate the draft and would read the quotes as part of the
    /// key. A key that would be ambiguous without quotes (with a space, a comma or a quote in it)
    /// keeps them.
    Bare,
}

/// Rules for parsing the header.
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use resilience_http::{headers::IDEMPOTENCY_KEY, idempotency::{KeyRules, MalformedKey}};
///
/// let sent = |value| HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_static(value))]);
/// let rules = KeyRules::new();
/// assert_eq!(rules.read(&sent("\"8e03978e\"")), rules.read(&sent("8e03978e")));
/// assert_eq!(rules.read(&sent("\"8e03978e")), Err(MalformedKey::NoString));
/// assert_eq!(rules.bare(false).read(&sent("8e03978e")), Err(MalformedKey::NoString));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct KeyRules {
    max_len: usize,
    bare: bool,
}

impl KeyRules {
    /// Creates the default: keys of up to 255 characters, quoted or bare.
    pub const fn new() -> Self {
        Self {
            max_len: 255,
            bare: true,
        }
    }

    /// Sets the maximum length of a key, in characters. Default: 255.
    ///
    /// # Errors
    /// If it is zero or more than [`Key::MAX_LEN`].
    pub fn max_len(mut self, characters: usize) -> Result<Self, InvalidConfig> {
        if characters == 0 || characters > Key::MAX_LEN {
            let rule = "must be from 1 to 512";
            return Err(InvalidConfig::new("max_len", characters, rule));
        }
        self.max_len = characters;
        Ok(self)
    }

    /// Sets whether a key without quotes is accepted too, as most clients send it. It must not
    /// contain a space, a comma, a semicolon, a quote or a backslash. Default: `true`.
    pub const fn bare(mut self, taken: bool) -> Self {
        self.bare = taken;
        self
    }

    /// Reads the key of a request, or `None` if it carries none.
    ///
    /// A quoted key is an item of structured fields (RFC 9651) whose value is a string; its
    /// parameters are ignored.
    ///
    /// # Errors
    /// If the header is not exactly one valid key.
    pub fn read(&self, headers: &HeaderMap) -> Result<Option<Key>, MalformedKey> {
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(MalformedKey::Repeated);
        }
        self.parse(value).map(Some)
    }

    /// Parses a value of the header.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn parse(&self, value: &HeaderValue) -> Result<Key, MalformedKey> {
        // Quotes and escapes double the length of a key at most; parameters may take the rest.
        if value.len() > 4 * Key::MAX_LEN {
            return Err(MalformedKey::TooLong(self.max_len));
        }
        let text = value.to_str().map_err(|_| MalformedKey::NoString)?;
        let text = text.trim_matches([' ', '\t']);
        let key = match text.bytes().next() {
            None => return Err(MalformedKey::Empty),
            Some(b'"') => Key::new(string(text)?)?,
            Some(_) if self.bare && is_bare(text) => Key::new(text)?,
            Some(_) => return Err(MalformedKey::NoString),
        };
        if key.0.len() > self.max_len {
            return Err(MalformedKey::TooLong(self.max_len));
        }
        Ok(key)
    }
}

impl Default for KeyRules {
    fn default() -> Self {
        Self::new()
    }
}

/// The string value of an item of structured fields.
fn string(text: &str) -> Result<String, MalformedKey> {
    let mut found = None;
    let visitor = |item: BareItemFromInput<'_>| {
        if let BareItemFromInput::String(string) = item {
            found = Some(string.as_str().to_owned());
        }
        Ok::<_, std::convert::Infallible>(Ignored)
    };
    let parsed = Parser::new(text).parse_item_with_visitor(Item(visitor));
    parsed.map_err(|_| MalformedKey::NoString)?;
    found.ok_or(MalformedKey::NoString)
}

struct Item<F>(F);

impl<'de, F> sfv::visitor::ItemVisitor<'de> for Item<F>
where
    F: FnOnce(BareItemFromInput<'de>) -> Result<Ignored, std::convert::Infallible>,
{
    type Out = ();
    type Error = std::convert::Infallible;

    fn bare_item(
        self,
        item: BareItemFromInput<'de>,
    ) -> Result<impl sfv::visitor::ParameterVisitor<'de, Out = ()>, Self::Error> {
        (self.0)(item)
    }
}

fn is_bare(text: &str) -> bool {
    let fits = |byte| matches!(byte, 0x21..=0x7e) && !matches!(byte, b'"' | b'\\' | b',' | b';');
    !text.is_empty() && text.bytes().all(fits)
}

/// Reason why a header is not a valid key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MalformedKey {
    /// It is empty.
    Empty,
    /// It is longer than this many characters.
    TooLong(usize),
    /// It is neither a quoted string nor, where that is accepted, a bare key.
    NoString,
    /// The header was sent more than once.
    Repeated,
}

impl fmt::Display for MalformedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the idempotency key is empty"),
            Self::TooLong(most) => {
                write!(f, "the idempotency key is longer than {most} characters")
            }
            Self::NoString => f.write_str("the idempotency key is no string of printable ASCII"),
            Self::Repeated => f.write_str("there is more than one idempotency key"),
        }
    }
}

impl StdError for MalformedKey {}

#[cfg(test)]
mod tests;
