//! Recorded responses: whatever lies in the store is a response or an error, takes no more memory than it has bytes, and
//! is the same response when it is written again. What was written is read again, and not when it is cut short.
#![no_main]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;
use resilience_http::idempotency::{RecordedHeaders, Recorded};

fuzz_target!(|input: (u16, u16, bool, &[u8])| {
    let (status, cut, trailers, bytes) = input;
    if let Ok(read) = Recorded::decode(bytes) {
        assert!(read.encoded_len() <= bytes.len());
        assert_eq!(Recorded::decode(&read.encode()), Ok(read));
    }
    let (headers, body) = headers(bytes);
    let status = StatusCode::from_u16(100 + status % 900).expect("in range");
    let body = Bytes::copy_from_slice(body);
    let kept = RecordedHeaders::new().record(status, &headers, body, trailers.then_some(&headers));
    let encoded = kept.encode();
    assert_eq!(encoded.len(), kept.encoded_len());
    let cut = usize::from(cut) % encoded.len();
    assert!(Recorded::decode(&encoded[..cut]).is_err());
    assert_eq!(Recorded::decode(&encoded), Ok(kept));
});

/// A name and a value a line, up to the first line that is none; the rest is the body.
fn headers(mut bytes: &[u8]) -> (HeaderMap, &[u8]) {
    let mut headers = HeaderMap::new();
    while let Some((line, rest)) = split(bytes, b'\n')
        && let Some((name, value)) = split(line, b':')
        && let Ok(name) = HeaderName::from_bytes(name)
        && let Ok(value) = HeaderValue::from_bytes(value)
    {
        headers.append(name, value);
        bytes = rest;
    }
    (headers, bytes)
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}
