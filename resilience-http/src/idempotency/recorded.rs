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

/// Selection of the headers that are recorded.
///
/// Never recorded: hop-by-hop headers (`Connection` and the headers that it names, `Keep-Alive`,
/// `Proxy-Authenticate`, `Proxy-Authorization`, `Proxy-Connection`, `TE`, `Trailer`,
/// `Transfer-Encoding`, `Upgrade`; RFC 9110 section 7.6.1), `Content-Length`, which follows from
/// the body, and `Date`, which is that of each transmission.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RecordedHeaders {
    cookies: bool,
    without: Vec<HeaderName>,
}

impl RecordedHeaders {
    /// Creates the default: all others but `Set-Cookie`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether `Set-Cookie` is recorded too. Default: `false`. Recorded cookies go to every
    /// client that sends the key again, and can be read in the store.
    pub const fn cookies(mut self, kept: bool) -> Self {
        self.cookies = kept;
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
        let of_connection = named_by_connection(headers);
        let kept = |headers: &HeaderMap| {
            let all = headers.iter();
            let kept = all.filter(|(name, _)| self.keeps(name) && !of_connection.contains(name));
            kept.map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        Recorded {
            status,
            headers: kept(headers),
            body,
            trailers: trailers.map(kept),
        }
    }

    fn keeps(&self, name: &HeaderName) -> bool {
        !(ONE_SENDING.contains(name)
            || OLD_CONNECTION.contains(&name.as_str())
            || self.without.contains(name)
            || *name == header::SET_COOKIE && !self.cookies)
    }
}

const ONE_SENDING: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::DATE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const OLD_CONNECTION: [&str; 2] = ["keep-alive", "proxy-connection"];

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
