//! The parser: keeps what others would round, drop or refuse.

use super::Json;

/// Maximum depth of arrays and objects, as serde_json has it.
const MAX_DEPTH: usize = 127;

/// Parses a body as one JSON value. `None` if it is not one.
pub(in super::super) fn parse(body: &[u8]) -> Option<Json<'_>> {
    let mut reader = Reader { rest: body };
    let value = reader.value(MAX_DEPTH)?;
    reader.space();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Option<Json<'a>> {
        self.space();
        match self.rest.first()? {
            b'{' => self.object(depth.checked_sub(1)?),
            b'[' => self.array(depth.checked_sub(1)?),
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.literal(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json<'a>> {
        let mut members = Vec::new();
        self.list(b'}', |reader| {
            reader.space();
            let Json::String(name) = reader.string()? else {
                return None;
            };
            reader.space();
            reader.take(b':')?;
            members.push((name, reader.value(depth)?));
            Some(())
        })?;
        Some(Json::Object(members))
    }

    fn array(&mut self, depth: usize) -> Option<Json<'a>> {
        let mut items = Vec::new();
        self.list(b']', |reader| {
            items.push(reader.value(depth)?);
            Some(())
        })?;
        Some(Json::Array(items))
    }

    /// Reads from an opening bracket, which is next, to its closing one.
    fn list(&mut self, close: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.skip(1);
        self.space();
        if self.take(close).is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            self.space();
            if self.take(close).is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    fn string(&mut self) -> Option<Json<'a>> {
        let written = self.skip(string_len(self.rest)?);
        let text = serde_json::from_slice(written);
        Some(text.map_or(Json::Invalid(written), Json::String))
    }

    fn number(&mut self) -> Option<Json<'a>> {
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
        let length = self.rest.iter().take_while(|byte| is_part(byte)).count();
        let written = std::str::from_utf8(self.skip(length)).ok()?;
        is_number(written).then_some(Json::Number(written))
    }

    fn literal(&mut self) -> Option<Json<'a>> {
        let mut literals = ["null", "true", "false"].into_iter();
        let literal = literals.find(|literal| self.rest.starts_with(literal.as_bytes()))?;
        self.skip(literal.len());
        Some(Json::Literal(literal))
    }

    fn space(&mut self) {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        let length = self.rest.iter().take_while(|byte| is_space(byte)).count();
        self.skip(length);
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.rest = self.rest.strip_prefix(&[byte])?;
        Some(())
    }

    /// Takes the next bytes, which are there.
    fn skip(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }
}

/// The length of the string that comes next, with its quotes.
fn string_len(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        at += match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => 2,
            _ => 1,
        };
    }
}

/// `-1.5e+9`, as RFC 8259 has it.
fn is_number(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let mantissa = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let (whole, part) = match mantissa.split_once('.') {
        Some((whole, part)) => (whole, Some(part)),
        None => (mantissa, None),
    };
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    is_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && part.is_none_or(is_digits)
        && exponent.is_none_or(is_digits)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
