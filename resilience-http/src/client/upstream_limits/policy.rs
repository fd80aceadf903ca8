//! The decision before a call: does the upstream's advertised limit allow it?

use std::{fmt, future::Ready, sync::Arc};

use http::HeaderMap;
use resilience_core::{
    Rejected,
    admission::{Admission, Admit, Refused},
    limit::upstream::{Permit, UpstreamLimits},
};

use super::super::Host;

/// Admission policy of [`UpstreamLimitsLayer`](super::UpstreamLimitsLayer): admits a request if the
/// limits of its server allow it, and never waits.
#[derive(Clone)]
pub struct UpstreamLimitsPolicy {
    limits: UpstreamLimits,
    key: Option<Arc<KeyOf>>,
}

type KeyOf = dyn Fn(&Target<'_>) -> String + Send + Sync;

/// Destination and headers of a request, for a key of your own.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Target<'a> {
    /// Server, as `host:port`.
    pub host: &'a str,
    /// Path of the URL.
    pub path: &'a str,
    /// Headers of the request.
    pub headers: &'a HeaderMap,
}

type Wait = Ready<Result<Permit, Rejected>>;

impl UpstreamLimitsPolicy {
    pub(super) fn new(limits: &UpstreamLimits) -> Self {
        Self {
            limits: limits.clone(),
            key: None,
        }
    }

    pub(super) fn with_key(
        mut self,
        key: impl Fn(&Target<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    fn enter(&self, host: String, path: &str, headers: &HeaderMap) -> Admission<Permit, Wait> {
        let key = match &self.key {
            None => host,
            Some(key) => key(&Target {
                host: &host,
                path,
                headers,
            }),
        };
        self.limits.enter(&key).map_err(Refused::no)
    }
}

impl Admit<reqwest::Request> for UpstreamLimitsPolicy {
    type Permit = Permit;
    type Wait = Wait;

    fn admit(&self, request: &reqwest::Request) -> Admission<Permit, Wait> {
        let url = request.url();
        self.enter(Host::of(url).to_string(), url.path(), request.headers())
    }
}

impl<B> Admit<http::Request<B>> for UpstreamLimitsPolicy {
    type Permit = Permit;
    type Wait = Wait;

    fn admit(&self, request: &http::Request<B>) -> Admission<Permit, Wait> {
        let uri = request.uri();
        self.enter(authority(uri), uri.path(), request.headers())
    }
}

/// Host and port, spelled as [`Host`] spells them: lower case, with the default port of the scheme.
fn authority(uri: &http::Uri) -> String {
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    let of_scheme = || match uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    match uri.port_u16().or_else(of_scheme) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

impl fmt::Debug for UpstreamLimitsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamLimitsPolicy")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_a_server_are_one() {
        let of = |uri: &str| authority(&uri.parse().unwrap());
        assert_eq!(of("http://API.test/x"), "api.test:80");
        assert_eq!(of("https://api.test"), "api.test:443");
        assert_eq!(of("http://[::1]:8080/"), "[::1]:8080");
        assert_eq!(of("/only/a/path"), "");
    }
}
