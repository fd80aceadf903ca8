//! Servers of requests: the key of breakers and bulkheads.

use std::{fmt, sync::Arc};

use url::Url;

/// Host and port of a server, `api.example.com:443`. Cheap to clone, hash and compare.
///
/// Includes the default port of the scheme; the host is spelled as by the URL standard (lower case,
/// punycode, IPv6 in brackets), so that all spellings of a server are one key. A redirect to
/// another host is followed inside reqwest and counts for the first host.
///
/// ```
/// use resilience_http::client::Host;
///
/// let url = reqwest::Url::parse("https://API.example.com/v1/pay")?;
/// assert_eq!(Host::of(&url), Host::new("api.example.com", 443));
/// assert_eq!(Host::of(&url).as_str(), "api.example.com:443");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Arc<str>);

impl Host {
    /// Creates a key from a host, spelled as in a URL, and a port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self(format!("{host}:{port}").into())
    }

    /// Returns the server of `url`. A URL without a host (`data:`), which no request is sent to,
    /// gives an empty key.
    #[must_use]
    pub fn of(url: &Url) -> Self {
        match (url.host_str(), url.port_or_known_default()) {
            (Some(host), Some(port)) => Self::new(host, port),
            (host, _) => Self(host.unwrap_or_default().into()),
        }
    }

    /// Returns `host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Url> for Host {
    fn from(url: &Url) -> Self {
        Self::of(url)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(url: &str) -> String {
        Host::of(&Url::parse(url).unwrap()).to_string()
    }

    #[test]
    fn all_spellings_of_one_server_are_one_key() {
        for url in [
            "http://api.test",
            "http://API.test:80/x?y",
            "http://user:secret@api.test/",
        ] {
            assert_eq!(key(url), "api.test:80");
        }
        assert_eq!(key("https://api.test/"), "api.test:443");
        assert_eq!(key("http://[::1]:8080/"), "[::1]:8080");
    }

    #[test]
    fn a_url_without_a_host_has_a_key_still() {
        assert_eq!(key("data:text/plain,hi"), "");
    }
}
