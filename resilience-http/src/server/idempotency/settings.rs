//! What an [`IdempotentRequests`](super::IdempotentRequests) is set to.

use std::{sync::Arc, time::Duration};

use http::{Extensions, HeaderMap, Method, Request, StatusCode, Uri, request::Parts};
use resilience_core::{
    Reason, Rejected,
    deadline::{self, Deadline},
    idempotency::{self, Disposition, Fingerprint, Idempotency},
};

use super::{
    outcome::by_status,
    problems::{malformed_key, no_credentials, no_key},
    scope::{MissingCredentials, Scope},
};
use crate::{
    headers,
    idempotency::{
        Fingerprint as FingerprintOfRequest, FingerprintRules, Key, KeyRules, RecordedHeaders,
    },
    problem::Problem,
};

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) methods: Vec<Method>,
    pub(super) required: bool,
    pub(super) rules: KeyRules,
    pub(super) compare: FingerprintRules,
    pub(super) keep: RecordedHeaders,
    pub(super) scope: Scope,
    pub(super) or_scope: Option<Scope>,
    pub(super) missing_credentials: MissingCredentials,
    pub(super) decide: Arc<Decide>,
    pub(super) max_request: usize,
    pub(super) max_response: usize,
    pub(super) refuse_unkept: bool,
    pub(super) come_back_within: Duration,
}

type Decide = dyn Fn(StatusCode, &HeaderMap) -> Disposition + Send + Sync;

impl Settings {
    pub(super) fn new() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            rules: KeyRules::new(),
            compare: FingerprintRules::new(),
            keep: RecordedHeaders::new(),
            scope: Scope::usual(),
            or_scope: None,
            missing_credentials: MissingCredentials::default(),
            decide: Arc::new(|status, _| by_status(status)),
            max_request: 1 << 20,
            max_response: (1 << 20) - (64 << 10),
            refuse_unkept: false,
            come_back_within: Duration::from_secs(1),
        }
    }

    /// The key in the header. `None` for requests that pass unprotected: of other methods, or
    /// without a key.
    pub(super) fn request_key<B>(&self, request: &Request<B>) -> Result<Option<Key>, Problem> {
        if !self.methods.contains(request.method()) {
            return Ok(None);
        }
        match self.rules.read(request.headers()) {
            Ok(None) if self.required => Err(no_key()),
            Ok(key) => Ok(key),
            Err(malformed) => Err(malformed_key(malformed)),
        }
    }

    /// The key of the record: that of the header, within its scope, with the request's fingerprint.
    pub(super) async fn record_key(
        &self,
        key: &Key,
        head: &Parts,
        body: &[u8],
        handle: &Idempotency,
    ) -> Result<idempotency::Key, Problem> {
        let scope = |scope: &Scope| scope.find(head, self.missing_credentials, handle.name());
        let now = scope(&self.scope).ok_or_else(no_credentials)?;
        let other = self.or_scope.as_ref().and_then(scope);
        let record = self.unscoped(key, head, body);
        if let Some(other) = other.filter(|other| *other != now) {
            let there = record.clone().scope(other);
            // Where the store does not answer, the next step finds that out too.
            if matches!(handle.get(there.clone()).await, Ok(Some(_))) {
                return Ok(there);
            }
        }
        Ok(record.scope(now))
    }

    fn unscoped(&self, key: &Key, head: &Parts, body: &[u8]) -> idempotency::Key {
        let uri = original(head);
        let (method, headers) = (&head.method, &head.headers);
        let (print, former) = self.compare.fingerprints(method, uri, headers, body);
        let bytes =
            |print: FingerprintOfRequest| Fingerprint::from_bytes(print.as_bytes().to_vec());
        let record = idempotency::Key::new(key.as_str()).fingerprint(bytes(print));
        // Inside a nested router the former one was of the rest of the path: of which route is not known.
        if uri.path() == head.uri.path() {
            record.or_fingerprint(bytes(former))
        } else {
            record
        }
    }

    /// What becomes of a response: what its handler says, or else what its head does.
    pub(super) fn disposition(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Disposition {
        let said = extensions.get::<Disposition>().copied();
        said.unwrap_or_else(|| (self.decide)(status, headers))
    }

    /// The document of a rejection, with the wait of a request in progress capped.
    pub(super) fn rejected(&self, rejected: Rejected) -> Problem {
        match rejected.retry_after() {
            Some(wait) if rejected.reason() == Reason::InFlight => {
                let wait = wait.min(self.come_back_within);
                rejected.with_retry_after(wait).into()
            }
            _ => rejected.into(),
        }
    }
}

/// Maximum time before the client's deadline at which a response is sent.
const MARGIN: Duration = Duration::from_millis(250);

/// When a response must be sent, so that the client still gets it: the current deadline, or that in
/// the header where no [`InboundDeadline`](super::super::InboundDeadline) is around the handler,
/// less the time on the way.
pub(super) fn due(headers: &HeaderMap) -> Option<Deadline> {
    let left = headers::deadline(headers, &headers::DEADLINE);
    let current = deadline::current().map(Deadline::remaining);
    let left = [left, current].into_iter().flatten().min()?;
    Some(Deadline::after(left - MARGIN.min(left / 2)))
}

/// The URI that the client sent. A router of axum removes from the request's what it has matched for a
/// nested one.
fn original(head: &Parts) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(uri)) = head.extensions.get() {
        return uri;
    }
    &head.uri
}
