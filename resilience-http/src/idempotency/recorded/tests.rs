use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let pair = |(name, value): &(&str, &[u8])| {
        (
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_bytes(value).unwrap(),
        )
    };
    pairs
        .iter()
        .map(pair)
        .fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        })
}

#[test]
fn a_response_comes_back_as_it_was() {
    let sent = headers(&[
        ("x-trace", b"one"),
        ("x-trace", b"two"),
        ("x-name", b"caf\xe9"),
        ("content-type", b"application/json"),
        ("x-empty", b""),
    ]);
    let trailers = headers(&[("x-sum", b"7")]);
    let body = Bytes::from_static(b"\0\xff{}");
    let kept =
        RecordedHeaders::new().record(StatusCode::ACCEPTED, &sent, body.clone(), Some(&trailers));
    let again = Recorded::decode(&kept.encode()).unwrap();
    assert_eq!(again, kept);
    assert_eq!(again.headers(), &sent);
    assert_eq!(again.headers().get_all("x-trace").iter().count(), 2);
    assert_eq!(again.trailers(), Some(&trailers));
    assert_eq!(again.body(), &body);
}

#[test]
fn what_belongs_to_one_sending_is_not_kept_nor_are_cookies_unless_asked() {
    let sent = headers(&[
        ("connection", b"close, X-Hop"),
        ("x-hop", b"1"),
        ("keep-alive", b"timeout=5"),
        ("proxy-connection", b"close"),
        ("proxy-authenticate", b"Basic"),
        ("te", b"trailers"),
        ("trailer", b"x-sum"),
        ("transfer-encoding", b"chunked"),
        ("upgrade", b"h2c"),
        ("content-length", b"3"),
        ("date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
        ("set-cookie", b"session=1"),
        ("x-mine", b"1"),
        ("etag", b"\"7\""),
    ]);
    let names = |keep: RecordedHeaders| {
        let kept = keep.record(StatusCode::OK, &sent, Bytes::new(), None);
        let mut names: Vec<_> = kept.headers().keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(RecordedHeaders::new()), ["etag", "x-mine"]);
    assert_eq!(
        names(RecordedHeaders::new().cookies(true)),
        ["etag", "set-cookie", "x-mine"]
    );
    let without = RecordedHeaders::new().without(HeaderName::from_static("x-mine"));
    assert_eq!(names(without), ["etag"]);
}

/// CORS headers, trace ids and rate limits are those of the first caller, and are not replayed.
#[test]
fn what_depends_on_the_caller_is_not_kept_unless_it_is_named() {
    let sent = headers(&[
        ("access-control-allow-origin", b"https://a.test"),
        ("access-control-allow-credentials", b"true"),
        ("access-control-expose-headers", b"etag"),
        ("vary", b"origin, accept-encoding"),
        ("x-request-id", b"1"),
        ("x-correlation-id", b"2"),
        ("traceparent", b"00-1-2-01"),
        ("x-b3-traceid", b"3"),
        ("server-timing", b"db;dur=53"),
        ("ratelimit", b"\"a\";r=1"),
        ("ratelimit-policy", b"\"a\";q=1"),
        ("x-ratelimit-remaining", b"1"),
        ("authentication-info", b"nextnonce=\"1\""),
        ("x-csrf-token", b"secret"),
        ("age", b"3"),
        ("via", b"1.1 proxy"),
        ("location", b"/payments/7"),
        ("content-type", b"text/plain"),
        ("content-language", b"en"),
        ("retry-after", b"7"),
        ("x-trace", b"mine"),
    ]);
    let names = |keep: &RecordedHeaders| {
        let kept = keep.record(StatusCode::OK, &sent, Bytes::new(), None);
        let mut names: Vec<_> = kept.headers().keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    let kept = [
        "content-language",
        "content-type",
        "location",
        "retry-after",
        "x-trace",
    ];
    assert_eq!(names(&RecordedHeaders::new()), kept);
    let named = RecordedHeaders::new()
        .with(HeaderName::from_static("x-request-id"))
        .with(header::VIA);
    let mut more = [&kept[..], &["x-request-id"]].concat();
    more.sort_unstable();
    assert_eq!(names(&named), more);
    // A record of the version before, which has them.
    let everything = Recorded {
        status: StatusCode::OK,
        headers: sent.clone(),
        body: Bytes::from_static(b"paid"),
        trailers: None,
    };
    let replayed = RecordedHeaders::new().replayed(everything);
    let mut names: Vec<_> = replayed.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, kept);
    assert_eq!(replayed.body(), &b"paid"[..]);
}

#[test]
fn what_was_encoded_for_one_caller_is_not_for_all() {
    let takes = |keep: &RecordedHeaders, encodings: &[&str]| {
        let pairs: Vec<_> = encodings
            .iter()
            .map(|encoding| ("content-encoding", encoding.as_bytes()))
            .collect();
        keep.takes(&headers(&pairs))
    };
    let default = RecordedHeaders::new();
    assert!(takes(&default, &[]) && takes(&default, &["identity"]));
    assert!(!takes(&default, &["gzip"]) && !takes(&default, &["identity", "br"]));
    assert!(takes(&default.encoded(true), &["gzip"]));
}

#[test]
fn what_is_cut_short_or_goes_on_is_unreadable() {
    let sent = headers(&[("a", b"1")]);
    let kept = RecordedHeaders::new().record(StatusCode::OK, &sent, "body".into(), Some(&sent));
    let whole = kept.encode();
    assert_eq!(whole.len(), kept.encoded_len());
    for length in 0..whole.len() {
        assert!(Recorded::decode(&whole[..length]).is_err(), "{length}");
    }
    let longer = [&whole[..], b"!"].concat();
    assert_eq!(Recorded::decode(&longer), Err(Unreadable("too long")));
    let mut newer = whole;
    newer[0] = 2;
    assert!(Recorded::decode(&newer).is_err());
}

/// A wrong length allocates no memory.
#[test]
fn a_length_that_is_not_true_is_not_believed() {
    let mut bytes = vec![VERSION, 0, 200];
    bytes.extend(u32::MAX.to_be_bytes());
    assert!(Recorded::decode(&bytes).is_err());
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let value = prop::collection::vec(0x20u8..=0xff, 0..20);
    let pair = ("[a-z][a-z0-9-]{0,10}", value);
    prop::collection::vec(pair, 0..12).prop_map(|pairs| {
        let mut all = HeaderMap::new();
        for (name, value) in pairs {
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), HeaderValue::from_bytes(&value))
            {
                all.append(name, value);
            }
        }
        all
    })
}

proptest! {
    #[test]
    fn every_response_survives(
        status in 100u16..1000,
        headers in any_headers(),
        trailers in prop::option::of(any_headers()),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let status = StatusCode::from_u16(status).unwrap();
        let kept = RecordedHeaders::new().cookies(true).record(status, &headers, body.into(), trailers.as_ref());
        let bytes = kept.encode();
        prop_assert_eq!(bytes.len(), kept.encoded_len());
        prop_assert_eq!(Recorded::decode(&bytes), Ok(kept));
    }

    #[test]
    fn whatever_the_store_holds_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(read) = Recorded::decode(&bytes) {
            prop_assert!(read.encoded_len() <= bytes.len());
        }
    }

    #[test]
    fn a_flipped_bit_makes_nothing_panic(
        headers in any_headers(),
        body in prop::collection::vec(any::<u8>(), 0..40),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let kept = RecordedHeaders::new().record(StatusCode::OK, &headers, body.into(), None);
        let mut bytes = kept.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = Recorded::decode(&bytes);
    }
}
