//! The text form of a ledger.

use std::{
    error::Error,
    fmt::{self, Write},
    str::FromStr,
    sync::Arc,
};

use super::ledger::{Borrowed, Ledger, Lent};

/// One line: numbers and names, separated by blanks, names percent-escaped.
impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1 {} {}", self.born, self.turn)?;
        for (name, lent) in &self.lent {
            let Lent {
                parts,
                since,
                raised,
                until,
            } = lent;
            write!(f, " > {} {parts} {since} {raised} {until}", escaped(name))?;
        }
        for (name, borrowed) in &self.borrowed {
            let Borrowed {
                parts,
                lowered,
                until,
            } = borrowed;
            write!(f, " < {} {parts} {lowered} {until}", escaped(name))?;
        }
        Ok(())
    }
}

/// Text that is no ledger, or one of a later version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLedger;

impl fmt::Display for NoLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no ledger of regions that this version can read")
    }
}

impl Error for NoLedger {}

impl FromStr for Ledger {
    type Err = NoLedger;

    fn from_str(text: &str) -> Result<Self, NoLedger> {
        let mut words = text.split(' ');
        let mut ledger = Self::default();
        if words.next() != Some("1") {
            return Err(NoLedger);
        }
        ledger.born = number(&mut words)?;
        ledger.turn = number(&mut words)?;
        while let Some(word) = words.next() {
            let name = unescaped(words.next().ok_or(NoLedger)?).ok_or(NoLedger)?;
            let parts = number(&mut words)?.try_into().map_err(|_| NoLedger)?;
            match word {
                ">" => {
                    let lent = Lent {
                        parts,
                        since: number(&mut words)?,
                        raised: number(&mut words)?,
                        until: number(&mut words)?,
                    };
                    ledger.lent.insert(name, lent);
                }
                "<" => {
                    let borrowed = Borrowed {
                        parts,
                        lowered: number(&mut words)?,
                        until: number(&mut words)?,
                    };
                    ledger.borrowed.insert(name, borrowed);
                }
                _ => return Err(NoLedger),
            }
        }
        Ok(ledger)
    }
}

fn number<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<u64, NoLedger> {
    words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or(NoLedger)
}

fn escaped(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn unescaped(word: &str) -> Option<Arc<str>> {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok().map(Arc::from)
}
