//! The two headers as lists of structured fields (RFC 9651), with one item per limit.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{
    BareItem, Integer, Item, KeyRef, List, ListEntry, Parser, RefBareItem, StringRef, integer,
    key_ref,
};

use crate::headers::whole_seconds;

/// The header with a server's policies: what it allows, the same in every response.
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The header with what is left of each limit.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The maximum items, and the maximum bytes of each header, that are parsed of untrusted input.
const MOST_ITEMS: usize = 32;
const MOST_BYTES: usize = 4096;

/// The maximum integer of structured fields.
const MOST: u64 = 999_999_999_999_999;

/// Policy of one limit of a server: what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Name of the policy. Printable ASCII; others are not written.
    pub name: String,
    /// Quota (`q`), in units.
    pub quota: u64,
    /// Window that the quota applies to (`w`), in whole seconds; rounded up when written.
    pub window: Option<Duration>,
    /// Unit of the quota (`qu`), if it is not requests: `content-bytes`, `concurrent-requests`.
    pub unit: Option<String>,
    /// Partition key (`pk`): identifies the client's share of the quota.
    pub partition: Option<Vec<u8>>,
}

impl Policy {
    /// Creates a policy of `quota` requests, without a window.
    #[must_use]
    pub fn new(name: impl Into<String>, quota: u64) -> Self {
        Self {
            name: name.into(),
            quota,
            window: None,
            unit: None,
            partition: None,
        }
    }

    /// Sets the window of the quota.
    #[must_use]
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = Some(window);
        self
    }

    /// Sets the unit of the quota.
    #[must_use]
    pub fn unit(mut self, unit: impl Into<String>) -> Self {
        self.unit = Some(unit.into());
        self
    }

    /// Sets the partition key.
    #[must_use]
    pub fn partition(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.partition = Some(key.into());
        self
    }
}

/// State of one limit of a server: what is left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceLimit {
    /// Name of the policy.
    pub name: String,
    /// Available quota (`r`), in the policy's unit.
    pub available: u64,
    /// Time for which the available quota must last (`t`), in whole seconds; rounded up when
    /// written.
    pub window: Option<Duration>,
    /// Partition key (`pk`): identifies the client's share of the quota.
    pub partition: Option<Vec<u8>>,
}

impl ServiceLimit {
    /// Creates a state with `available` units left, without a window.
    #[must_use]
    pub fn new(name: impl Into<String>, available: u64) -> Self {
        Self {
            name: name.into(),
            available,
            window: None,
            partition: None,
        }
    }

    /// Sets the time for which the available quota must last.
    #[must_use]
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = Some(window);
        self
    }

    /// Sets the partition key.
    #[must_use]
    pub fn partition(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.partition = Some(key.into());
        self
    }
}

/// Appends `RateLimit-Policy` to a response's headers, after values that are there already.
/// Policies whose name is not printable ASCII are left out.
pub fn write_policies(headers: &mut HeaderMap, policies: &[Policy]) {
    let mut list = sfv::ListSerializer::new();
    for policy in policies {
        let Ok(name) = StringRef::from_str(&policy.name) else {
            continue;
        };
        let item = list.bare_item(name);
        let item = item.parameter(key_ref("q"), whole(policy.quota));
        let item = match policy.unit.as_deref().map(StringRef::from_str) {
            Some(Ok(unit)) => item.parameter(key_ref("qu"), unit),
            _ => item,
        };
        let item = with(item, "w", policy.window.map(whole_seconds));
        end(item, policy.partition.as_deref());
    }
    append(headers, POLICY, list.finish());
}

/// Appends `RateLimit` to a response's headers, after values that are there already. Limits whose
/// name is not printable ASCII are left out.
pub fn write_limits(headers: &mut HeaderMap, limits: &[ServiceLimit]) {
    let mut list = sfv::ListSerializer::new();
    for limit in limits {
        let Ok(name) = StringRef::from_str(&limit.name) else {
            continue;
        };
        let item = list.bare_item(name);
        let item = item.parameter(key_ref("r"), whole(limit.available));
        let item = with(item, "t", limit.window.map(whole_seconds));
        end(item, limit.partition.as_deref());
    }
    append(headers, RATE_LIMIT, list.finish());
}

/// Reads `RateLimit-Policy`. Items that cannot be parsed, and headers that are not lists, are
/// skipped.
#[must_use]
pub fn read_policies(headers: &HeaderMap) -> Vec<Policy> {
    items(headers, &POLICY, |name, item| {
        Some(Policy {
            name,
            quota: number(item, "q")?,
            window: number(item, "w").map(Duration::from_secs),
            unit: text(item, "qu"),
            partition: bytes(item),
        })
    })
}

/// Reads `RateLimit`. Items that cannot be parsed, and headers that are not lists, are skipped.
#[must_use]
pub fn read_limits(headers: &HeaderMap) -> Vec<ServiceLimit> {
    items(headers, &RATE_LIMIT, |name, item| {
        Some(ServiceLimit {
            name,
            available: number(item, "r")?,
            window: number(item, "t").map(Duration::from_secs),
            partition: bytes(item),
        })
    })
}

fn items<T>(
    headers: &HeaderMap,
    field: &HeaderName,
    read: impl Fn(String, &Item) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    for value in headers.get_all(field).iter().take(MOST_ITEMS) {
        for item in list(value) {
            // Names are strings; in earlier drafts they were tokens.
            let name = match &item.bare_item {
                BareItem::String(name) => name.as_str().to_owned(),
                BareItem::Token(name) => name.as_str().to_owned(),
                _ => continue,
            };
            if found.len() < MOST_ITEMS {
                found.extend(read(name, &item));
            }
        }
    }
    found
}

fn list(value: &HeaderValue) -> Vec<Item> {
    if value.len() > MOST_BYTES {
        return Vec::new();
    }
    let list: List = Parser::new(value.as_bytes()).parse().unwrap_or_default();
    let items = list.into_iter().filter_map(|entry| match entry {
        ListEntry::Item(item) => Some(item),
        ListEntry::InnerList(_) => None,
    });
    items.collect()
}

fn number(item: &Item, key: &'static str) -> Option<u64> {
    match item.params.get(key_ref(key))? {
        BareItem::Integer(number) => i64::from(*number).try_into().ok(),
        _ => None,
    }
}

fn text(item: &Item, key: &'static str) -> Option<String> {
    match item.params.get(key_ref(key))? {
        BareItem::String(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn bytes(item: &Item) -> Option<Vec<u8>> {
    match item.params.get(key_ref("pk"))? {
        BareItem::ByteSequence(bytes) => Some(bytes.clone()),
        _ => None,
    }
}

type Parameters<'a> = sfv::ParameterSerializer<&'a mut String>;

fn with<'a>(item: Parameters<'a>, key: &'static str, number: Option<u64>) -> Parameters<'a> {
    let key: &KeyRef = key_ref(key);
    match number {
        Some(number) => item.parameter(key, whole(number)),
        None => item,
    }
}

fn end(item: Parameters<'_>, partition: Option<&[u8]>) {
    if let Some(bytes) = partition {
        let _ = item.parameter(key_ref("pk"), RefBareItem::ByteSequence(bytes));
    }
}

fn append(headers: &mut HeaderMap, field: HeaderName, list: Option<String>) {
    if let Some(value) = list.and_then(|list| HeaderValue::try_from(list).ok()) {
        headers.append(field, value);
    }
}

fn whole(number: u64) -> Integer {
    // Within the bounds of an integer of structured fields.
    Integer::try_from(number.min(MOST)).unwrap_or_else(|_| integer(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sent(field: &HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(field, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_examples_of_the_draft_are_read() {
        let policies = |value| read_policies(&sent(&POLICY, &[value]));
        assert_eq!(
            policies(r#""burst";q=100;w=60,"daily";q=1000;w=86400"#),
            [
                Policy::new("burst", 100).window(60 * SECOND),
                Policy::new("daily", 1000).window(86_400 * SECOND),
            ]
        );
        assert_eq!(
            policies(r#""peruser";q=65535;qu="content-bytes";w=10;pk=:cHsdsRa894==:"#),
            [Policy::new("peruser", 65_535)
                .unit("content-bytes")
                .window(10 * SECOND)
                .partition([0x70, 0x7b, 0x1d, 0xb1, 0x16, 0xbc, 0xf7])]
        );
        let limits = |value| read_limits(&sent(&RATE_LIMIT, &[value]));
        assert_eq!(
            limits(r#""default";r=50;t=30"#),
            [ServiceLimit::new("default", 50).window(30 * SECOND)]
        );
        assert_eq!(
            limits(r#""default";r=999;pk=:dHJpYWwxMjEzMjM=:"#),
            [ServiceLimit::new("default", 999).partition(*b"trial121323")]
        );
    }

    #[test]
    fn several_fields_are_one_list_and_what_is_not_understood_is_passed_over() {
        let headers = sent(
            &RATE_LIMIT,
            &[
                r#""a";r=1, ("b" "c");r=2, "d";t=5, "e";r=-1, "f";r=1.5, 7;r=3, token;r=4;acme-x=?1"#,
                "no list;;",
                r#""g";r=5;t="soon""#,
            ],
        );
        assert_eq!(
            read_limits(&headers),
            [
                ServiceLimit::new("a", 1),
                ServiceLimit::new("token", 4),
                ServiceLimit::new("g", 5),
            ]
        );
    }

    #[test]
    fn what_is_written_is_rounded_up_and_fits() {
        let mut headers = HeaderMap::new();
        write_limits(
            &mut headers,
            &[
                ServiceLimit::new("a\"b", 0).window(Duration::from_millis(1)),
                ServiceLimit::new("no ascii: é", 1),
                ServiceLimit::new("c", u64::MAX).window(Duration::ZERO),
            ],
        );
        assert_eq!(
            headers[RATE_LIMIT],
            r#""a\"b";r=0;t=1, "c";r=999999999999999;t=1"#
        );
        write_policies(&mut headers, &[]);
        assert!(!headers.contains_key(POLICY), "an empty list is no header");
    }

    #[test]
    fn a_stranger_cannot_make_it_large() {
        let many = vec![r#""a";r=1"#; 200].join(",");
        assert_eq!(read_limits(&sent(&RATE_LIMIT, &[&many])).len(), MOST_ITEMS);
        let long = format!("\"{}\";r=1", "a".repeat(MOST_BYTES));
        assert!(read_limits(&sent(&RATE_LIMIT, &[&long])).is_empty());
    }

    proptest! {
        #[test]
        fn limits_survive_the_wire(
            name in "[ -~]{0,20}",
            quota in 0..=MOST,
            seconds in prop::option::of(1u64..1_000_000),
            unit in prop::option::of("[a-z-]{1,10}"),
            partition in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
        ) {
            let window = seconds.map(Duration::from_secs);
            let policy = Policy { name: name.clone(), quota, window, unit, partition: partition.clone() };
            let limit = ServiceLimit { name, available: quota, window, partition };
            let mut headers = HeaderMap::new();
            write_policies(&mut headers, std::slice::from_ref(&policy));
            write_limits(&mut headers, &[limit.clone(), limit.clone()]);
            prop_assert_eq!(read_policies(&headers), [policy]);
            prop_assert_eq!(read_limits(&headers), [limit.clone(), limit]);
        }

        #[test]
        fn whatever_arrives_nothing_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            near in "[\"a(),;=:?rtqw0-9 .*-]{0,40}",
        ) {
            for bytes in [&bytes[..], near.as_bytes()] {
                if let Ok(value) = HeaderValue::from_bytes(bytes) {
                    let headers = HeaderMap::from_iter([(POLICY, value.clone()), (RATE_LIMIT, value)]);
                    prop_assert!(read_limits(&headers).len() <= MOST_ITEMS);
                    prop_assert!(read_policies(&headers).len() <= MOST_ITEMS);
                }
            }
        }
    }
}
