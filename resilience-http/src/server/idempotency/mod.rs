//! Requests that take effect once.

mod body;
mod layer;
mod response;

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use resilience_core::idempotency::{Disposition, Idempotency};
use sha2::{Digest, Sha256};

pub use self::{
    body::IdempotentBody,
    layer::{IdempotentRequestsFuture, IdempotentRequestsLayer, IdempotentRequestsService},
    response::IDEMPOTENT_REPLAYED,
};
use super::hex;
use crate::idempotency::{FingerprintRules, KeyRules, RecordedHeaders};

/// Makes requests that carry an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07) take effect once: the
/// handler runs for the first, and the others get its answer.
///
/// On top of an [`Idempotency`], which has the store, the leases, the times and the policy for when the store cannot be
/// reached. It goes on a route, on a router, or on any `Service<http::Request<_>, Response = http::Response<_>>`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Router, routing::post};
/// use resilience_core::idempotency::Idempotency;
/// use resilience_http::server::IdempotentRequests;
///
/// let payments = Idempotency::builder("payments").build()?; // `.store(redis.idempotency())` for a fleet
/// let once = IdempotentRequests::new(&payments).required(true);
/// let app: Router = Router::new().route("/payments", post(async || "paid").layer(once.layer()));
/// # let ask = || http::Request::post("/payments").header("idempotency-key", "\"7\"").body(axum::body::Body::empty()).unwrap();
/// # use tower::ServiceExt;
/// # assert!(!app.clone().oneshot(ask()).await?.headers().contains_key("idempotent-replayed"));
/// # assert_eq!(app.clone().oneshot(ask()).await?.headers()["idempotent-replayed"], "true");
/// # let without = http::Request::post("/payments").body(axum::body::Body::empty())?;
/// # assert_eq!(app.oneshot(without).await?.status(), 400);
/// # Ok(()) }
/// ```
///
/// # What clients get
/// | what happened | answer |
/// |---|---|
/// | the first request with its key | the handler's |
/// | served before | the same status, headers and body, with `Idempotent-Replayed: true` and its `Age` in seconds |
/// | being served | 409, `Retry-After` with what is left of the lease (or less: [`come_back_within`](Self::come_back_within)); or, if the handle lets callers [wait](resilience_core::idempotency::IdempotencyBuilder::wait), the answer when it is there |
/// | the key belongs to another request | 422 |
/// | no key, or something that is none | 400, if the key is [required](Self::required); the latter always |
/// | a body above [`max_request`](Self::max_request) | 413 |
/// | the store cannot be reached | 503, unless the handle says otherwise |
/// | served before, but the answer was not kept, or nobody knows | 409 |
///
/// All of them are problem documents, with types that stay the same: those of [`problem`](crate::problem), and
/// `urn:problem-type:resilience:idempotency:` with `no_key`, `malformed_key`, `too_large` and `unreadable_body`.
///
/// # What is kept
/// Decided by the answer's status, unless [`decide`](Self::decide) says otherwise:
///
/// | status | what becomes of it |
/// |---|---|
/// | 408, 425, 429, 503 | not kept: "not now" says that nothing was done, and the next request with the key is served |
/// | any other, 500 included | kept |
/// | none: the service fails, or panics | unknown: the handle's [takeover](resilience_core::idempotency::IdempotencyBuilder::takeover) has the word |
///
/// **Why a 500 is kept**: the handler may have done half of its work, and a second run would do it again. A caller that
/// knows better takes a new key. Where handlers do all of their work in one transaction, so that a 500 means that
/// nothing was done, release it: `decide(|status, _| if status.is_server_error() { Disposition::Release } else {
/// Disposition::Record })`.
///
/// Headers of one connection, `Date` and `Set-Cookie` are not kept ([`keep`](Self::keep)). An answer that is larger than
/// [`max_response`](Self::max_response), or a stream of events, is passed on as it comes and not kept, unless
/// [`refuse_unkept`](Self::refuse_unkept) is set.
///
/// # Whose key it is
/// Keys are chosen by callers, so one caller's key must never find another's answer. By default the scope of a key is a
/// digest of the request's `Authorization`. Two things to know: requests without that header share one scope; and a
/// caller whose token is renewed between two tries is another caller. Where authentication comes before this layer, say
/// who it found: [`scope`](Self::scope) with the tenant's or the user's id.
///
/// # The handler
/// - runs in a task of its own: a client that hangs up does not stop it, nor does the request's
///   [deadline](super::InboundDeadline), which it does not see. Its answer is kept, and the client that comes back gets it.
/// - finds the [`Attempt`](resilience_core::idempotency::Attempt) in the request's extensions: a fence, and keys for the
///   calls that it makes.
/// - gets the body in memory.
///
/// # Order
/// Inside what authenticates and what limits requests, so that a 429 costs no key; outside of what guards a dependency.
/// Within a nested router the path is seen without the part that was matched outside.
///
/// **Cost**: a request without a key, or of another method, passes with a box around each body. With one: the body is
/// read into memory and digested; then as [`Idempotency`] has it. **Cancellation**: see above.
#[derive(Clone)]
#[must_use]
pub struct IdempotentRequests {
    handle: Idempotency,
    settings: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    methods: Vec<Method>,
    required: bool,
    rules: KeyRules,
    compare: FingerprintRules,
    keep: RecordedHeaders,
    scope: Arc<Scope>,
    decide: Arc<Decide>,
    max_request: usize,
    max_response: usize,
    refuse_unkept: bool,
    come_back_within: Option<Duration>,
}

type Scope = dyn Fn(&Parts) -> String + Send + Sync;
type Decide = dyn Fn(StatusCode, &HeaderMap) -> Disposition + Send + Sync;

impl IdempotentRequests {
    /// Over `handle`, for `POST` and `PATCH`; a key is not required.
    pub fn new(handle: &Idempotency) -> Self {
        let settings = Settings {
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            rules: KeyRules::new(),
            compare: FingerprintRules::new(),
            keep: RecordedHeaders::new(),
            scope: Arc::new(by_authorization),
            decide: Arc::new(|status, _| response::by_status(status)),
            max_request: 1 << 20,
            max_response: (1 << 20) - (64 << 10),
            refuse_unkept: false,
            come_back_within: None,
        };
        Self {
            handle: handle.clone(),
            settings: Arc::new(settings),
        }
    }

    /// The methods that it is about. Others pass, with or without a key.
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.with(|settings| settings.methods = methods.into_iter().collect())
    }

    /// Whether a request of these methods has to have a key. Default: no; one without passes unprotected.
    pub fn required(self, required: bool) -> Self {
        self.with(|settings| settings.required = required)
    }

    /// How the header is read.
    pub fn rules(self, rules: KeyRules) -> Self {
        self.with(|settings| settings.rules = rules)
    }

    /// What of two requests with one key has to be the same.
    pub fn compare(self, compare: FingerprintRules) -> Self {
        self.with(|settings| settings.compare = compare)
    }

    /// What of an answer is kept.
    pub fn keep(self, keep: RecordedHeaders) -> Self {
        self.with(|settings| settings.keep = keep)
    }

    /// Whose key it is: the tenant's or the user's id, as found by what authenticates outside of this layer. Every
    /// request must have one; return something of its own for those that nobody has authenticated.
    pub fn scope(self, scope: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.scope = Arc::new(scope))
    }

    /// What becomes of an answer, by its head.
    pub fn decide(
        self,
        decide: impl Fn(StatusCode, &HeaderMap) -> Disposition + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.decide = Arc::new(decide))
    }

    /// The longest body of a request that carries a key, in bytes: it is read into memory. Default: 1 MiB.
    pub fn max_request(self, bytes: usize) -> Self {
        self.with(|settings| settings.max_request = bytes)
    }

    /// The longest body of an answer that is kept, in bytes. Default: 960 KiB, which leaves room for its headers in the
    /// 1 MiB that a handle keeps ([`max_outcome`](resilience_core::idempotency::IdempotencyBuilder::max_outcome)).
    pub fn max_response(self, bytes: usize) -> Self {
        self.with(|settings| settings.max_response = bytes)
    }

    /// Whether an answer that cannot be kept, because it is too large or a stream of events, is replaced by a 500 that
    /// can: for routes that promise the same answer always. Default: no; the first caller gets it, and those who come
    /// later are told that it is gone. The work is done in either case.
    pub fn refuse_unkept(self, refuse: bool) -> Self {
        self.with(|settings| settings.refuse_unkept = refuse)
    }

    /// The longest that a client is told to wait while its request is being served. Default: what is left of the lease,
    /// which is renewed while the handler runs: by then it is certain that somebody may take over. Where handlers are
    /// quick, less is better.
    pub fn come_back_within(self, wait: Duration) -> Self {
        self.with(|settings| settings.come_back_within = Some(wait))
    }

    /// The layer.
    pub fn layer(&self) -> IdempotentRequestsLayer {
        IdempotentRequestsLayer::new(self.clone())
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }
}

/// A digest, because it is a secret.
fn by_authorization(head: &Parts) -> String {
    let mut digest = Sha256::new();
    for value in head.headers.get_all(header::AUTHORIZATION) {
        digest.update((value.len() as u64).to_le_bytes());
        digest.update(value.as_bytes());
    }
    hex(&digest.finalize()[..16])
}

impl fmt::Debug for IdempotentRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentRequests")
            .field("handle", &self.handle)
            .field("methods", &self.settings.methods)
            .field("required", &self.settings.required)
            .finish_non_exhaustive()
    }
}
