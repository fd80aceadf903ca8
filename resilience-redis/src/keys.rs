//! Names of keys: `{prefix:pattern:name}:part`, so that all keys of one thing are in one Cluster slot and readable in
//! redis-cli.

use std::fmt::Write;

/// Names longer than this many bytes are shortened to a digest.
const LONG: usize = 120;

/// `{prefix:pattern:name}`, with what could be mistaken for structure percent-escaped and long names hashed.
pub(crate) fn tag(prefix: &str, pattern: &str, name: &str) -> String {
    let name = escaped(name);
    let name = if name.len() > LONG {
        format!("%sha1:{}", sha1_smol::Sha1::from(&name).digest())
    } else {
        name
    };
    format!("{{{}:{pattern}:{name}}}", escaped(prefix))
}

/// `{prefix:pattern:name:subject}`, for what is kept for each subject of one thing.
pub(crate) fn subject_tag(prefix: &str, pattern: &str, name: &str, subject: &str) -> String {
    let both = format!("{}:{}", escaped(name), escaped(subject));
    let both = if both.len() > LONG {
        format!("%sha1:{}", sha1_smol::Sha1::from(&both).digest())
    } else {
        both
    };
    format!("{{{}:{pattern}:{both}}}", escaped(prefix))
}

/// A key's last part.
pub(crate) fn part(part: &str) -> String {
    escaped(part)
}

/// `{prefix:pattern}`, for what is about all names.
pub(crate) fn family(prefix: &str, pattern: &str) -> String {
    format!("{{{}:{pattern}}}", escaped(prefix))
}

fn escaped(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z'
            | b'a'..=b'z'
            | b'0'..=b'9'
            | b'-'
            | b'_'
            | b'.'
            | b'/'
            | b'@'
            | b'+'
            | b'=' => {
                out.push(char::from(byte));
            }
            other => {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_its_slot_or_into_another_key() {
        assert_eq!(
            tag("resilience", "breaker", "payments"),
            "{resilience:breaker:payments}"
        );
        assert_eq!(
            tag("a:b", "breaker", "x}y{z:1"),
            "{a%3Ab:breaker:x%7Dy%7Bz%3A1}"
        );
        assert_ne!(tag("a:b", "breaker", "c"), tag("a", "b:breaker", "c"));
    }

    #[test]
    fn a_subject_is_never_taken_for_part_of_a_name() {
        let tag = |name, subject| subject_tag("p", "limit", name, subject);
        assert_eq!(tag("api", "tenant-7"), "{p:limit:api:tenant-7}");
        assert_ne!(tag("a:b", "c"), tag("a", "b:c"));
        let long = "x".repeat(500);
        assert_ne!(tag(&long, "a"), tag(&long, "b"));
        assert!(tag(&long, &long).len() < 200);
    }

    #[test]
    fn a_long_name_is_hashed_and_stays_itself() {
        let long = "x".repeat(500);
        assert_eq!(tag("p", "breaker", &long), tag("p", "breaker", &long));
        assert_ne!(
            tag("p", "breaker", &long),
            tag("p", "breaker", &"x".repeat(501))
        );
        assert!(tag("p", "breaker", &long).len() < 200);
    }
}
