//! What an [`IdempotentRequests`](super::IdempotentRequests) is set to.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, StatusCode, header, request::Parts};
use resilience_core::{
    Reason, Rejected,
    deadline::{self, Deadline},
    idempotency::{self, Disposition, Fingerprint},
};

use super::{
    super::digest,
    problems::{malformed_key, no_key},
    response::by_status,
};
use crate::{
    headers,
    idempotency::{FingerprintRules, Key, KeyRules, RecordedHeaders},
    problem::Problem,
};

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) methods: Vec<Method>,
    pub(super) required: bool,
    pub(super) rules: KeyRules,
    pub(super) compare: FingerprintRules,
    pub(super) keep: RecordedHeaders,
    pub(super) scope: Arc<Scope>,
    pub(super) decide: Arc<Decide>,
    pub(super) max_request: usize,
    pub(super) max_response: usize,
    pub(super) refuse_unkept: bool,
    pub(super) come_back_within: Duration,
}

type Scope = dyn Fn(&Parts) -> String + Send + Sync;
type Decide = dyn Fn(StatusCode, &HeaderMap) -> Disposition + Send + Sync;

impl Settings {
    pub(super) fn new() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            rules: KeyRules::new(),
            compare: FingerprintRules::new(),
            keep: RecordedHeaders::new(),
            scope: Arc::new(by_authorization),
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
    pub(super) fn record_key(&self, key: &Key, head: &Parts, body: &[u8]) -> idempotency::Key {
        let print = self
            .compare
            .fingerprint(&head.method, &head.uri, &head.headers, body);
        idempotency::Key::new(key.as_str())
            .scope((self.scope)(head))
            .fingerprint(Fingerprint::from_bytes(print.as_bytes().to_vec()))
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

/// A digest, because the header is a secret.
fn by_authorization(head: &Parts) -> String {
    digest::of_values(head.headers.get_all(header::AUTHORIZATION).iter())
}
