//! Recorded responses, encoded as bytes.

use std::{error::Error as StdError, fmt};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// Recorded response for replays: status, headers (also repeated ones and values that are not
/// UTF-8), body byte for byte, and trailers.
///
/// Made by [`RecordedHeaders::record`], which leaves out what belongs to one transmission.
///
/// ```
/// use http::{HeaderMap, HeaderValue, StatusCode, header};
/// use resilience_http::idempotency::{RecordedHeaders, Recorded};
///
/// let mut headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static("/payments/7"))]);
/// headers.insert(header::SET_COOKIE, HeaderValue::from_static("session=secret"));
/// let recorded = RecordedHeaders::new().record(StatusCode::CREATED, &headers, "paid".into(), None);
///
/// let again = Recorded::decode(&recorded.encode())?;
/// assert_eq!(again.headers()[header::LOCATION], "/payments/7");
/// assert!(!again.headers().contains_key(header::SET_COOKIE));
/// assert_eq!((again.status(), &again.body()[..]), (StatusCode::CREATED, &b"paid"[..]));
/// # Ok::<_, resilience_http::idempotency::Unreadable>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

/// Selection of the headers that are recorded: those that belong to the response, whichever client
/// sends the request again.
///
/// Not recorded, and so not in a replay:
///
/// | headers | because |
/// |---|---|
/// | `Connection` and the headers that it names, `Keep-Alive`, `Proxy-Authenticate`, `Proxy-Authorization`, `Proxy-Connection`, `TE`, `Trailer`, `Transfer-Encoding`, `Upgrade`; `Content-Length`, `Date`, `Age`, `Alt-Svc`, `Via` | they belong to one transmission (RFC 9110 section 7.6) |
/// | `Set-Cookie`, `Authentication-Info`, `Proxy-Authentication-Info`, `X-CSRF-Token`, `X-XSRF-Token` | they are secrets of the first caller |
/// | `Access-Control-*`, `Vary` | they answer the `Origin` and the preferences of the first caller |
/// | `Request-Id`, `X-Request-Id`, `X-Correlation-Id`, `Correlation-Id`, `X-Trace-Id`, `Traceparent`, `Tracestate`, `Traceresponse`, `X-Amzn-RequestId`, `X-Amzn-Trace-Id`, `X-Cloud-Trace-Context`, `B3`, `X-B3-*`, `Server-Timing` | they name the first request |
/// | `RateLimit`, `RateLimit-*`, `X-RateLimit-*` | they tell how the first caller stood at that time |
///
/// A response with a `Content-Encoding`, which was negotiated with the first caller, is not recorded
/// at all, unless [`encoded`](Self::encoded) is set.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RecordedHeaders {
    cookies: bool,
    encoded: bool,
    with: Vec<HeaderName>,
    without: Vec<HeaderName>,
}

impl RecordedHeaders {
    /// Creates the default: all but those of the table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether `Set-Cookie` is recorded too. Default: `false`. Recorded cookies go to every
    /// client that sends the key again, and can be read in the store.
    pub const fn cookies(mut self, kept: bool) -> Self {
        self.cookies = kept;
        self
    }

    /// Sets whether responses with a `Content-Encoding` are recorded too, and the handler sees the
    /// request's `Accept-Encoding`. Default: `false`. Set it where every client decodes what the first
    /// one does.
    pub const fn encoded(mut self, kept: bool) -> Self {
        self.encoded = kept;
        self
    }

    /// Records this header although the table has it. Headers of one connection are never recorded.
    pub fn with(mut self, name: HeaderName) -> Self {
        self.with.push(name);
        self
    }

    /// Leaves this header out too.
    pub fn without(mut self, name: HeaderName) -> Self {
        self.without.push(name);
        self
    }

    /// Records a response, without the headers that are left out.
    #[must_use]
    pub fn record(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
        trailers: Option<&HeaderMap>,
    ) -> Recorded {
        Recorded {
            status,
            headers: self.kept(headers),
            body,
            trailers: trailers.map(|trailers| self.kept(trailers)),
        }
    }

    /// A recorded response as it is replayed: without the headers that are left out by now.
    pub(crate) fn replayed(&self, recorded: Recorded) -> Recorded {
        Recorded {
            headers: self.kept(&recorded.headers),
            ..recorded
        }
    }

    /// Whether a response with these headers can be given to every caller: the first one negotiated no
    /// encoding, or all have the same.
    pub(crate) fn takes(&self, headers: &HeaderMap) -> bool {
        let identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
        let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
        self.encoded || encodings.all(identity)
    }

    pub(crate) const fn takes_encoded(&self) -> bool {
        self.encoded
    }

    fn kept(&self, headers: &HeaderMap) -> HeaderMap {
        let of_connection = named_by_connection(headers);
        let all = headers.iter();
        let kept = all.filter(|(name, _)| self.keeps(name) && !of_connection.contains(name));
        kept.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn keeps(&self, name: &HeaderName) -> bool {
        if OF_CONNECTION.contains(&name.as_str()) || self.without.contains(name) {
            return false;
        }
        let of_caller = OF_CALLER.contains(&name.as_str())
            || FAMILIES
                .iter()
                .any(|family| name.as_str().starts_with(family));
        !of_caller || self.with.contains(name) || *name == header::SET_COOKIE && self.cookies
    }
}

/// Headers that belong to one transmission.
const OF_CONNECTION: [&str; 14] = [
    "age",
    "alt-svc",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Headers that depend on the caller, or on its request.
const OF_CALLER: [&str; 20] = [
    "authentication-info",
    "b3",
    "correlation-id",
    "proxy-authentication-info",
    "ratelimit",
    "request-id",
    "server-timing",
    "set-cookie",
    "traceparent",
    "traceresponse",
    "tracestate",
    "vary",
    "x-amzn-requestid",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-csrf-token",
    "x-request-id",
    "x-trace-id",
    "x-xsrf-token",
];

/// The beginnings of the names of more of them.
const FAMILIES: [&str; 4] = ["access-control-", "ratelimit-", "x-b3-", "x-ratelimit-"];

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter();
    let names = values.filter_map(|value| value.to_str().ok());
    let names = names.flat_map(|value| value.split(','));
    names.filter_map(|name| name.trim().parse().ok()).collect()
}

const VERSION: u8 = 1;

impl Recorded {
    /// Returns the status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the recorded headers.
    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the body.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// Returns the trailers, if there were any.
    #[must_use]
    pub const fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Returns the number of bytes that [`encode`](Self::encode) makes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let trailers = self.trailers.as_ref().map_or(0, block_len);
        3 + block_len(&self.headers) + 1 + trailers + 4 + self.body.len()
    }

    /// Encodes the response: a version, the status, the headers in order, the trailers, the body;
    /// each with its length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.put_u8(VERSION);
        out.put_u16(self.status.as_u16());
        put_block(&mut out, &self.headers);
        out.put_u8(u8::from(self.trailers.is_some()));
        if let Some(trailers) = &self.trailers {
            put_block(&mut out, trailers);
        }
        put_bytes(&mut out, &self.body);
        out
    }

    /// Decodes what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// If the bytes are something else, or incomplete.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut rest = bytes;
        if rest.try_get_u8().map_err(cut)? != VERSION {
            return Err(Unreadable("written by another version"));
        }
        let status = StatusCode::from_u16(rest.try_get_u16().map_err(cut)?);
        let status = status.map_err(|_| Unreadable("no status"))?;
        let headers = get_block(&mut rest)?;
        let trailers = match rest.try_get_u8().map_err(cut)? {
            0 => None,
            1 => Some(get_block(&mut rest)?),
            _ => return Err(Unreadable("neither with trailers nor without")),
        };
        let body = Bytes::copy_from_slice(get_bytes(&mut rest)?);
        if !rest.is_empty() {
            return Err(Unreadable("too long"));
        }
        Ok(Self {
            status,
            headers,
            body,
            trailers,
        })
    }
}

fn cut(_: bytes::TryGetError) -> Unreadable {
    Unreadable("cut short")
}

fn block_len(headers: &HeaderMap) -> usize {
    let each = |(name, value): (&HeaderName, &HeaderValue)| 8 + name.as_str().len() + value.len();
    4 + headers.iter().map(each).sum::<usize>()
}

fn put_block(out: &mut Vec<u8>, headers: &HeaderMap) {
    put_len(out, headers.len());
    for (name, value) in headers {
        put_bytes(out, name.as_str().as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put_slice(bytes);
}

/// Limits elsewhere keep recorded responses far below 4 GiB.
fn put_len(out: &mut Vec<u8>, length: usize) {
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

fn get_block(rest: &mut &[u8]) -> Result<HeaderMap, Unreadable> {
    let count = rest.try_get_u32().map_err(cut)?;
    let mut headers = HeaderMap::new();
    for _ in 0..count {
        let name = HeaderName::from_bytes(get_bytes(rest)?);
        let value = HeaderValue::from_bytes(get_bytes(rest)?);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Unreadable("no header"));
        };
        let appended = headers.try_append(name, value);
        appended.map_err(|_| Unreadable("too many headers"))?;
    }
    Ok(headers)
}

fn get_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Unreadable> {
    let length = rest.try_get_u32().map_err(cut)? as usize;
    let (bytes, tail) = rest
        .split_at_checked(length)
        .ok_or(Unreadable("cut short"))?;
    *rest = tail;
    Ok(bytes)
}

/// Error of decoding a [`Recorded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable(&'static str);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a recorded response cannot be read: {}", self.0)
    }
}

impl StdError for Unreadable {}

#[cfg(test)]
mod tests;
