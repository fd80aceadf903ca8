//! The checked name of the table, the only text that is inserted into statements.

use crate::error::InvalidConfig;

/// Leaves room for suffixes within PostgreSQL's 63 bytes.
const LONGEST: usize = 48;

/// `inbox`, or with a schema `app.inbox`. Checked: lower-case letters, digits and underscores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    schema: Option<Box<str>>,
    name: Box<str>,
}

impl Table {
    pub(in crate::sql) fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        if !schema.into_iter().chain([name]).all(is_identifier) {
            return Err(InvalidConfig::new(
                "table",
                text,
                "must be `table` or `schema.table` of lower-case letters, digits and underscores, not beginning with a \
                 digit, at most 48 bytes each",
            ));
        }
        Ok(Self {
            schema: schema.map(Into::into),
            name: name.into(),
        })
    }

    /// The quoted name with a suffix, e.g. `"app"."inbox_fence"`.
    pub(in crate::sql) fn quoted(&self, suffix: &str) -> String {
        match &self.schema {
            Some(schema) => format!("\"{schema}\".{}", self.bare(suffix)),
            None => self.bare(suffix),
        }
    }

    /// The quoted name with a suffix and without the schema, where a statement takes none.
    pub(in crate::sql) fn bare(&self, suffix: &str) -> String {
        format!("\"{}{suffix}\"", self.name)
    }
}

fn is_identifier(word: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    word.len() <= LONGEST
        && word.bytes().next().is_some_and(letter)
        && word
            .bytes()
            .all(|byte| letter(byte) || byte.is_ascii_digit())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_part_of_a_statement() {
        for good in ["inbox", "_inbox2", "app.inbox", "select"] {
            assert!(Table::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(LONGEST + 1);
        for bad in [
            "",
            ".",
            "app.",
            ".inbox",
            "a.b.c",
            "2nd",
            "Inbox",
            "in box",
            "inbox;",
            "in\"box",
            "in'box",
            "in-box",
            "bo\u{301}x",
            "in\0box",
            "inbox -- x",
            &long,
        ] {
            let refused = Table::parse(bad).unwrap_err();
            assert_eq!(refused.field(), "table", "{bad}");
        }
    }

    #[test]
    fn names_are_quoted_with_their_schema() {
        let table = Table::parse("app.inbox").unwrap();
        assert_eq!(table.quoted("_fence"), "\"app\".\"inbox_fence\"");
        assert_eq!(table.bare(""), "\"inbox\"");
        assert_eq!(Table::parse("inbox").unwrap().quoted(""), "\"inbox\"");
    }
}
