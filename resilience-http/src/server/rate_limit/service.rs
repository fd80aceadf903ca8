//! The service: decides before it calls.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use resilience_core::{admission::take_ready, order};
use sha2::{Digest, Sha256};
use tower_service::Service;

use super::{
    decision::{Deciding, RequestLimit},
    fields::LimitHeaders,
    future::{LimitRequestsFuture, State},
    key::MissingKey,
    refusal::Refusal,
    settings::Settings,
};

/// Key of the bucket that requests without a key share.
const SHARED: &str = "(without key)";

/// Service that holds requests to a rate limit. Made by
/// [`LimitRequestsLayer`](super::LimitRequestsLayer).
pub struct LimitRequestsService<S, L: RequestLimit> {
    inner: S,
    limit: L,
    settings: Arc<Settings<L>>,
}

impl<S, L: RequestLimit> LimitRequestsService<S, L> {
    pub(super) const fn new(inner: S, limit: L, settings: Arc<Settings<L>>) -> Self {
        Self {
            inner,
            limit,
            settings,
        }
    }
}

impl<S: Clone, L: RequestLimit> Clone for LimitRequestsService<S, L> {
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.limit.clone(),
            Arc::clone(&self.settings),
        )
    }
}

impl<S: fmt::Debug, L: RequestLimit + fmt::Debug> fmt::Debug for LimitRequestsService<S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter_policy(&self.limit);
        f.debug_struct("LimitRequestsService")
            .field("inner", &self.inner)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl<S, L, B, R> Service<Request<B>> for LimitRequestsService<S, L>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    L: RequestLimit,
    R: From<String>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = LimitRequestsFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = &self.settings;
        let (head, body) = request.into_parts();
        let subject = match (settings.key.of(&head), settings.missing_key) {
            (Some(subject), _) => subject,
            (None, MissingKey::Share) => SHARED.to_owned(),
            (None, MissingKey::Pass) => {
                let inner = self.inner.call(Request::from_parts(head, body));
                let state = State::Calling {
                    inner,
                    limits: None,
                };
                return LimitRequestsFuture::new(state, None);
            }
            (None, MissingKey::Refuse) => return self.refuse(Refusal::NoKey, None),
        };
        let price = match &settings.cost {
            Some(cost) => cost(&head),
            None => 1.into(),
        };
        let headers = settings.headers.clone();
        let headers = Some((headers, partition_of(&subject)));
        let request = Request::from_parts(head, body);
        match self.limit.decide(subject, price) {
            Deciding::Now(decision) if decision.rejected.is_some() => {
                self.refuse(Refusal::Limited(decision), headers)
            }
            Deciding::Now(decision) => LimitRequestsFuture::new(
                State::Calling {
                    inner: self.inner.call(request),
                    limits: Some(decision.limits),
                },
                headers,
            ),
            Deciding::Later(decision) => {
                let call = Some((take_ready(&mut self.inner), request));
                LimitRequestsFuture::new(State::Deciding { decision, call }, headers)
            }
        }
    }
}

impl<S: Clone, L: RequestLimit> LimitRequestsService<S, L> {
    fn refuse<B>(
        &mut self,
        refusal: Refusal,
        headers: Option<(LimitHeaders, [u8; 8])>,
    ) -> LimitRequestsFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        // The service that was polled ready will not be called.
        drop(take_ready(&mut self.inner));
        let refusal = Some(refusal);
        LimitRequestsFuture::new(State::Refused { refusal }, headers)
    }
}

fn partition_of(subject: &str) -> [u8; 8] {
    let mut key = [0; 8];
    key.copy_from_slice(&Sha256::digest(subject)[..8]);
    key
}
