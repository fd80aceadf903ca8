//! Names of keys: `{prefix:pattern:name}:part`. All keys of one name are in one Cluster slot, and readable in redis-cli.

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

/// Maximum length of a key in bytes that Redis' allocator serves from the same size class; a longer one takes 16 bytes more.
const SHORT: usize = 44;
/// Bytes of a digest: among 10^9 keys, two are equal with a probability of 10^-11.
const DIGEST: usize = 12;

/// Maximum length of the names in a key, in bytes; longer ones are replaced by a digest.
const LONG: usize = 120;

/// `{prefix:pattern:name}`, with structural characters percent-escaped and long names hashed.
pub(crate) fn tag(prefix: &str, pattern: &str, name: &str) -> String {
    tagged(prefix, pattern, &[name])
}

/// `{prefix:pattern:name:subject}`, for keys of one subject under a name.
pub(crate) fn subject_tag(prefix: &str, pattern: &str, name: &str, subject: &str) -> String {
    tagged(prefix, pattern, &[name, subject])
}

/// The last part of a key, escaped.
pub(crate) fn part(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    escape(part, &mut out);
    out
}

/// The last part of a key, escaped; a long one is replaced by a digest.
pub(crate) fn bounded_part(whole: &str) -> String {
    let out = part(whole);
    if out.len() <= LONG {
        return out;
    }
    format!("%sha1:{}", sha1_smol::Sha1::from(&out).digest())
}

/// A hash of a key that every version computes: FNV-1a.
pub(crate) fn hash(key: impl AsRef<[u8]>) -> u64 {
    let bytes = key.as_ref().iter();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `{prefix:pattern}`, for keys about all names.
pub(crate) fn family(prefix: &str, pattern: &str) -> String {
    format!("{{{}:{pattern}}}", part(prefix))
}

/// `{prefix:pattern:name:subject}` in at most [`SHORT`] bytes, for keys of which there are many: a longer one has a digest in
/// place of the subject, and if need be of the name too. (No escaped name contains a `~`.)
pub(crate) fn short(prefix: &str, pattern: &str, name: &str, subject: &str) -> String {
    let whole = subject_tag(prefix, pattern, name, subject);
    if whole.len() <= SHORT {
        return whole;
    }
    let mut both = String::with_capacity(name.len() + subject.len() + 1);
    join(&[name, subject], &mut both);
    let digest = sha1_smol::Sha1::from(&both).digest().bytes();
    let digest = BASE64_URL_SAFE_NO_PAD.encode(&digest[..DIGEST]);
    let (prefix, name) = (part(prefix), part(name));
    let named = format!("{{{prefix}:{pattern}:{name}:~{digest}}}");
    if named.len() <= SHORT {
        return named;
    }
    format!("{{{prefix}:{pattern}:~{digest}}}")
}

fn tagged(prefix: &str, pattern: &str, names: &[&str]) -> String {
    let length: usize = names.iter().map(|name| name.len() + 1).sum();
    // With room for a last part: one allocation per key.
    let mut tag = String::with_capacity(prefix.len() + pattern.len() + length + 24);
    tag.push('{');
    escape(prefix, &mut tag);
    tag.push(':');
    tag.push_str(pattern);
    tag.push(':');
    let start = tag.len();
    join(names, &mut tag);
    if tag.len() - start > LONG {
        let digest = sha1_smol::Sha1::from(&tag[start..]).digest();
        tag.truncate(start);
        let _ = write!(tag, "%sha1:{digest}");
    }
    tag.push('}');
    tag
}

/// `name:name`, each escaped.
fn join(names: &[&str], out: &mut String) {
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            out.push(':');
        }
        escape(name, out);
    }
}

fn escape(mut part: &str, out: &mut String) {
    // Usually there is nothing to escape.
    while let Some(at) = part.bytes().position(|byte| !is_plain(byte)) {
        let (plain, rest) = part.split_at(at);
        let structure = rest.chars().next().map_or(0, char::len_utf8);
        let (structure, rest) = rest.split_at(structure);
        out.push_str(plain);
        for byte in structure.bytes() {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        part = rest;
    }
    out.push_str(part);
}

fn is_plain(byte: u8) -> bool {
    PLAIN[byte as usize]
}

/// Indexed by byte: every byte of every key is checked.
static PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = (byte as u8).is_ascii_alphanumeric()
            || matches!(byte as u8, b'-' | b'_' | b'.' | b'/' | b'@' | b'+' | b'=');
        byte += 1;
    }
    plain
};

/// The slot of a key in a Cluster: CRC-16 (XMODEM) of what stands in its first braces, or of all of it.
pub(crate) fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty());
    let crc = hashed.unwrap_or(key).bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x1021
            }
        })
    });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_that_the_servers_compute() {
        // By CLUSTER KEYSLOT.
        for (key, expected) in [
            ("foo", 12_182),
            ("bar", 5_061),
            ("{bar}:state", 5_061),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("{}", 15_257),
            ("123456789", 12_739),
        ] {
            assert_eq!(slot(key), expected, "{key}");
        }
    }

    #[test]
    fn hashes_are_those_of_every_version() {
        // From the reference implementation.
        for (key, expected) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            assert_eq!(hash(key), expected, "{key}");
        }
    }

    #[test]
    fn a_long_part_is_bounded_and_never_taken_for_a_short_one() {
        assert_eq!(bounded_part("a:b"), part("a:b"));
        let (one, other) = ("x".repeat(200), "y".repeat(200));
        let digest = bounded_part(&one);
        assert!(digest.len() < LONG && digest != bounded_part(&other));
        assert_ne!(bounded_part(&digest), digest);
    }

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

    #[test]
    fn a_key_that_redis_would_need_more_memory_for_is_shortened_and_stays_itself() {
        fn key(name: &str, subject: &str) -> String {
            short("resilience", "limit", name, subject)
        }
        let uuid = "5f0c9a52-6c1e-4f43-9a53-0d6c3a1f9c11";
        assert_eq!(
            key("api", "203.0.113.17"),
            "{resilience:limit:api:203.0.113.17}"
        );
        assert_eq!(key("api", uuid), "{resilience:limit:api:~lxb6Wj6NNZr_9m77}");
        let long = "a-name-that-is-long";
        assert_eq!(key(long, uuid), "{resilience:limit:~jM8lSS9mT72A769Y}");
        for (name, subject) in [
            ("api", uuid),
            (long, uuid),
            (long, ""),
            (long, "x"),
            (uuid, "~"),
        ] {
            assert!(key(name, subject).len() <= SHORT);
            assert_eq!(key(name, subject), key(name, subject));
        }
        assert_ne!(key("api", uuid), key("api", &format!("{uuid}0")));
        assert_ne!(key("api", uuid), key("web", uuid));
        assert_ne!(key(long, "x"), key(long, "y"));
        assert_ne!(
            key(long, &format!("x:{uuid}")),
            key(&format!("{long}:x"), uuid)
        );
        // A subject that looks like a digest has a key of its own.
        let forged = key("api", uuid)
            .replace("{resilience:limit:api:", "")
            .replace('}', "");
        assert_ne!(key("api", &forged), key("api", uuid));
    }
}
