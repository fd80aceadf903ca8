//! Requests with an `Idempotency-Key`, which take effect once.
//!
//! # References
//! draft-ietf-httpapi-idempotency-key-header-07.

#[cfg(feature = "axum")]
mod attempt;
mod body;
mod call;
mod future;
mod layer;
mod outcome;
mod problems;
mod response;
mod scope;
mod service;
mod settings;

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, Method, StatusCode, request::Parts};
use resilience_core::idempotency::{Disposition, Idempotency};

#[cfg(feature = "axum")]
pub use self::attempt::RequestAttempt;
pub use self::{
    body::IdempotentBody, future::IdempotentRequestsFuture, layer::IdempotentRequestsLayer,
    scope::MissingCredentials, service::IdempotentRequestsService,
};
use self::{scope::Scope, settings::Settings};
pub use crate::headers::IDEMPOTENT_REPLAYED;
use crate::idempotency::{FingerprintRules, KeyRules, RecordedHeaders};

/// Idempotency for requests that carry an `Idempotency-Key`
/// (draft-ietf-httpapi-idempotency-key-header-07): the handler runs for the first request with a
/// key, the others get its recorded response.
///
/// Built on an [`Idempotency`], which owns the store, the leases, the retention times and the
/// outage policy. Goes on a route, on a router, or on any `Service<http::Request<_>, Response =
/// http::Response<_>>`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Router, routing::post};
/// use resilience_core::Idempotency;
/// use resilience_http::IdempotentRequests;
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
/// # Responses
/// | request | response |
/// |---|---|
/// | the first with its key | the handler's |
/// | its key was served before | the same status, headers and body, with `Idempotent-Replayed: true` and its `Age` in seconds |
/// | its key is being served | the recorded response, once it is there. If that takes longer than the client allows ([`headers::DEADLINE`](crate::headers::DEADLINE), or the current deadline) or than the handle lets callers [wait](resilience_core::idempotency::IdempotencyBuilder::wait): 409 with `Retry-After: 1` ([`come_back_within`](Self::come_back_within)) |
/// | its key was used with [another request](Self#identity) | 422 |
/// | no key | 400 if a key is [required](Self::required); otherwise the handler's |
/// | a malformed key | 400 |
/// | a body above [`max_request`](Self::max_request), or above the limit of an outer layer | 413 |
/// | the store is unavailable | 503, unless the handle's outage policy says otherwise |
/// | served before, but the response was not recorded, or the outcome is [unknown](resilience_core::idempotency::Effect) | 409 |
/// | the first, and the store does not take the response | held until it is recorded; 503 with [`Idempotency-Unrecorded: true`](crate::headers::IDEMPOTENCY_UNRECORDED) when the time for that is over ([`OnUnrecorded`](resilience_core::idempotency::OnUnrecorded)) |
/// | the first, and the handler panics | 500 |
/// | the handle is [shutting down](resilience_core::idempotency::Idempotency::shutdown) | 503 with `Retry-After: 1` |
///
/// All of these are problem documents with stable types: those of [`problem`](crate::problem), and
/// `urn:problem-type:resilience:idempotency:` with `no_key`, `malformed_key`, `no_credentials`,
/// `too_large`, `unreadable_body`, `not_kept` and `panicked`.
///
/// A response of the handler that has no record (the policy is
/// [`Answer`](resilience_core::idempotency::OnUnrecorded::Answer), or the outage policy `FailOpen`)
/// carries [`Idempotency-Unrecorded: true`](crate::headers::IDEMPOTENCY_UNRECORDED).
///
/// # Recording
/// The status of the response decides, unless the handler does, or [`decide`](Self::decide) says
/// otherwise:
///
/// | status | says that | effect |
/// |---|---|---|
/// | 400, 401, 403 to 407, 411 to 417, 421, 422, 425, 426, 428, 429, 431, 501, 503 | the request was refused as it is, or is not served now: nothing was done | not recorded; the key is free, also for a corrected request |
/// | 408, 499, 500 and above except 501 and 503 | the handler failed, or a time limit cut it off, at a point that is not known | unknown: the handle's [effect](resilience_core::idempotency::IdempotencyBuilder::effect) decides. By default later requests get 409 `outcome_unknown`; with `Idempotent` or `Fenced` they run the handler |
/// | any other: 2xx, 3xx, 402, 409, 410, and so on | this is the outcome | recorded |
/// | none: the service fails or panics | as 500 | unknown |
///
/// Payment APIs do the same: Stripe saves no result where the parameters fail validation, since
/// no endpoint began to run, saves a declined card (402), and calls the outcome of a 500
/// indeterminate. The draft leaves it to the server.
///
/// **A status is no proof.** A handler that has done something and then answers with a status of the
/// first row would be run again, and a 500 after which nothing was done blocks its key. Such a handler
/// says so, with a [`Disposition`] in the extensions of its response, which counts before everything
/// else:
///
/// | extension | meaning |
/// |---|---|
/// | [`Disposition::Record`] | this response is the outcome, whatever its status |
/// | [`Disposition::Release`] | nothing was done |
/// | [`Disposition::Unknown`] | something may have been done |
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Extension, Router, http::StatusCode, response::IntoResponse, routing::post};
/// use resilience_core::{Idempotency, idempotency::Disposition};
/// use resilience_http::IdempotentRequests;
///
/// async fn transfer() -> impl IntoResponse {
///     // A fee was charged for the refusal: it must not be charged again.
///     (StatusCode::UNPROCESSABLE_ENTITY, Extension(Disposition::Record), "account closed")
/// }
///
/// let transfers = Idempotency::builder("transfers").build()?;
/// let once = IdempotentRequests::new(&transfers);
/// let app: Router = Router::new().route("/transfers", post(transfer)).layer(once.layer());
/// # let ask = || http::Request::post("/transfers").header("idempotency-key", "\"7\"").body(axum::body::Body::empty()).unwrap();
/// # use tower::ServiceExt;
/// # assert_eq!(app.clone().oneshot(ask()).await?.status(), 422);
/// # assert!(app.oneshot(ask()).await?.headers().contains_key("idempotent-replayed"));
/// # Ok(()) }
/// ```
///
/// **What depends on the caller is not recorded**: `Set-Cookie`, CORS headers, request ids, and others
/// ([`RecordedHeaders`]). The handler does not see `Accept-Encoding`, so that a compression inside of
/// this layer leaves the response as it is; one with a `Content-Encoding` all the same, a response
/// larger than [`max_response`](Self::max_response), and a stream of events are passed on unrecorded,
/// with an event, unless [`refuse_unkept`](Self::refuse_unkept) is set. Later requests with their key
/// get 409.
///
/// # Identity
/// A request is the same as an earlier one if its method, host, path, query and body are
/// ([`FingerprintRules`]). With the feature `axum` the path is the one that the client sent, also where
/// the layer is inside a nested router; around other routers that shorten paths, put the layer outside.
///
/// # Scope of a key
/// Clients choose their keys, so a key must never find another client's response. Keys of different
/// scopes are different keys. The scope of a key is:
///
/// | setting | scope |
/// |---|---|
/// | [`scope`](Self::scope) | what the closure returns: the id of the tenant or user, as found by the authentication outside of this layer. **Set it**: it is the only one that knows a caller whose credentials have changed |
/// | none | a digest of the request's credentials: `Authorization`, `X-Api-Key`, `Api-Key`, `Apikey`, `X-Auth-Token`, `X-Access-Token`, all that are there; without any of them, `Cookie` |
/// | [`credentials`](Self::credentials) | a digest of these headers instead |
///
/// With credentials as the scope, a client whose token is renewed between two attempts counts as
/// another client, and its request takes effect again; the first request with a token or a cookie is
/// reported by an event. Requests without credentials share one scope, which an event reports too, or
/// are [refused](Self::missing_credentials). For a change of the scope, see
/// [`or_scope`](Self::or_scope).
///
/// Handles of one name and store share their records: services that share a Redis need a prefix each
/// (`RedisBuilder::service`), or handles of different names.
///
/// # The handler
/// - runs in a task of its own: neither a client that disconnects nor the request's
///   [deadline](super::InboundDeadline), which the handler does not see, stops it. Its response is
///   recorded for the client's next attempt. Its time limit is the handle's
///   [`max_lease_time`](resilience_core::idempotency::IdempotencyBuilder::max_lease_time), 10 minutes
///   by default; until it ends, it keeps the request's place in the bulkheads around this layer.
/// - finds the [`Attempt`](resilience_core::idempotency::Attempt) in the request's extensions: the
///   fencing token, and keys for the calls that it makes. With the feature `axum`, the extractor
///   `RequestAttempt` takes it from there, also where a request has no key.
/// - gets the request body in memory.
///
/// # Order
/// Put it inside authentication, rate limits and the bulkhead, so that a 429 or 503 uses no key and
/// handlers of clients that have gone count, and outside the guards of dependencies. Compression, CORS
/// and request ids belong outside too: they depend on the caller, and a replay passes them there. A time
/// limit inside leaves the outcome unknown.
///
/// **Cost**: one allocation per body for a request without a key or of another method. With a key,
/// the body is read into memory and hashed; the rest is the cost of [`Idempotency`].
/// **Cancellation**: see above.
#[derive(Clone)]
#[must_use]
pub struct IdempotentRequests {
    handle: Idempotency,
    settings: Arc<Settings>,
}

impl IdempotentRequests {
    /// Creates the settings over `handle`, for `POST` and `PATCH`, with an optional key.
    pub fn new(handle: &Idempotency) -> Self {
        Self {
            handle: handle.clone(),
            settings: Arc::new(Settings::new()),
        }
    }

    /// Sets the methods that are protected. Requests of other methods pass, with or without a key.
    /// Default: `POST` and `PATCH`.
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.with(|settings| settings.methods = methods.into_iter().collect())
    }

    /// Sets whether requests of these methods must carry a key. Default: `false`; a request without
    /// a key passes unprotected.
    pub fn required(self, required: bool) -> Self {
        self.with(|settings| settings.required = required)
    }

    /// Sets how the header is parsed.
    pub fn rules(self, rules: KeyRules) -> Self {
        self.with(|settings| settings.rules = rules)
    }

    /// Sets which parts of two requests with the same key must be equal.
    pub fn compare(self, compare: FingerprintRules) -> Self {
        self.with(|settings| settings.compare = compare)
    }

    /// Sets which headers of a response are recorded.
    pub fn keep(self, keep: RecordedHeaders) -> Self {
        self.with(|settings| settings.keep = keep)
    }

    /// Sets the scope of a key: the id of the tenant or user, as found by the authentication
    /// outside of this layer. The same caller with a new token has the same scope. Return a value of
    /// its own for unauthenticated requests. Default: a digest of the credentials ([Scope of a
    /// key](Self#scope-of-a-key)).
    pub fn scope(self, scope: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.scope = Scope::By(Arc::new(scope)))
    }

    /// Sets the headers whose values are the scope of a key, as a digest. Default: see [Scope of a
    /// key](Self#scope-of-a-key).
    pub fn credentials(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        let scope = Scope::headers(names.into_iter().collect());
        self.with(|settings| settings.scope = scope)
    }

    /// Sets how requests with a key and without credentials are treated, unless
    /// [`scope`](Self::scope) is set. Default: [`MissingCredentials::Share`].
    pub fn missing_credentials(self, policy: MissingCredentials) -> Self {
        self.with(|settings| settings.missing_credentials = policy)
    }

    /// Finds records under the scope of `other` too: a request whose key has a record there has that
    /// scope. For a change of the scope, after which a repeated request must find the record of its first
    /// attempt: first let all instances find the new scope too, then let them use it and find the former
    /// one, until no request is repeated any more that was sent before the change.
    ///
    /// Costs one more step of the store for each request with a key.
    pub fn or_scope(self, other: &Self) -> Self {
        let scope = other.settings.scope.clone();
        self.with(|settings| settings.or_scope = Some(scope))
    }

    /// Sets whether a response is recorded, by its status and headers, where its handler does not say.
    /// Default: see [Recording](Self#recording).
    pub fn decide(
        self,
        decide: impl Fn(StatusCode, &HeaderMap) -> Disposition + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.decide = Arc::new(decide))
    }

    /// Sets the maximum body of a request with a key, in bytes; it is read into memory. Default: 1
    /// MiB.
    pub fn max_request(self, bytes: usize) -> Self {
        self.with(|settings| settings.max_request = bytes)
    }

    /// Sets the maximum body of a response that is recorded, in bytes. Default: 960 KiB, which
    /// leaves room for its headers in the 1 MiB of a handle's
    /// [`max_outcome`](resilience_core::idempotency::IdempotencyBuilder::max_outcome).
    pub fn max_response(self, bytes: usize) -> Self {
        self.with(|settings| settings.max_response = bytes)
    }

    /// Sets whether a response that cannot be recorded, because it is too large, encoded, or a stream
    /// of events, is replaced by a 500 that can be: for routes that must give the same response every
    /// time. Default: `false`; the first client gets the response, later ones get a 409. The work
    /// is done in either case.
    pub fn refuse_unkept(self, refuse: bool) -> Self {
        self.with(|settings| settings.refuse_unkept = refuse)
    }

    /// Sets the maximum `Retry-After` of a request whose key is being served, which otherwise is
    /// what is left of the lease. Default: 1 s, since a handler is usually done long before its
    /// lease ends. Set more where handlers take minutes.
    pub fn come_back_within(self, wait: Duration) -> Self {
        self.with(|settings| settings.come_back_within = wait)
    }

    /// Makes a layer.
    pub fn layer(&self) -> IdempotentRequestsLayer {
        IdempotentRequestsLayer::new(self.handle.clone(), Arc::clone(&self.settings))
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }
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
