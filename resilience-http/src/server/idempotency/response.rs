//! Responses of the handler: recorded, replayed or passed on.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, response::Parts};
use http_body::Body;
use resilience_core::idempotency::{self, CodecError, Disposition, Outcomes, Source};

use super::body::IdempotentBody;
use crate::{
    headers::IDEMPOTENCY_UNRECORDED,
    idempotency::{Recorded, RecordedHeaders},
};

/// Header that marks a replayed response: `true`.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Response of the handler, as far as the layer has read it.
pub(super) enum HandlerResponse<B: Body> {
    /// Read to its end: can be recorded.
    Whole {
        head: Parts,
        body: Bytes,
        trailers: Option<HeaderMap>,
    },
    /// Recorded before and replayed, with its age.
    Replayed(Recorded, Duration),
    /// Too large, or ended early: only the first client gets it.
    Passing(Response<IdempotentBody<B>>),
}

impl<B: Body> HandlerResponse<B> {
    fn status(&self) -> StatusCode {
        match self {
            Self::Whole { head, .. } => head.status,
            Self::Replayed(recorded, _) => recorded.status(),
            Self::Passing(response) => response.status(),
        }
    }

    fn headers(&self) -> &HeaderMap {
        match self {
            Self::Whole { head, .. } => &head.headers,
            Self::Replayed(recorded, _) => recorded.headers(),
            Self::Passing(response) => response.headers(),
        }
    }

    /// The response with the mark that it has no record.
    fn unrecorded(mut self) -> Self {
        let headers = match &mut self {
            Self::Whole { head, .. } => &mut head.headers,
            Self::Passing(response) => response.headers_mut(),
            Self::Replayed(..) => return self,
        };
        headers.insert(IDEMPOTENCY_UNRECORDED, HeaderValue::from_static("true"));
        self
    }

    pub(super) fn into_response(self) -> Response<IdempotentBody<B>> {
        match self {
            Self::Whole {
                head,
                body,
                trailers,
            } => Response::from_parts(head, IdempotentBody::whole(body, trailers)),
            Self::Passing(response) => response,
            Self::Replayed(recorded, age) => {
                let trailers = recorded.trailers().cloned();
                let body = IdempotentBody::whole(recorded.body().clone(), trailers);
                let mut response = Response::new(body);
                *response.status_mut() = recorded.status();
                *response.headers_mut() = recorded.headers().clone();
                let headers = response.headers_mut();
                headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
                headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
                response
            }
        }
    }
}

type Decide = dyn Fn(StatusCode, &HeaderMap) -> Disposition + Send + Sync;

/// Decides by the response's head, and records responses as bytes.
pub(super) struct ResponseOutcomes<B, E> {
    pub(super) decide: Arc<Decide>,
    pub(super) keep: RecordedHeaders,
    pub(super) of: PhantomData<fn(B) -> E>,
}

impl<B, E> Outcomes<Result<HandlerResponse<B>, E>> for ResponseOutcomes<B, E>
where
    B: Body + 'static,
    E: 'static,
{
    fn decide(&self, result: &Result<HandlerResponse<B>, E>) -> Disposition {
        match result {
            Ok(response) => (self.decide)(response.status(), response.headers()),
            // A service that fails instead of responding may have done part of the work.
            Err(_) => Disposition::Unknown,
        }
    }

    fn encode(&self, result: &Result<HandlerResponse<B>, E>) -> Result<Bytes, CodecError> {
        match result {
            Ok(HandlerResponse::Whole {
                head,
                body,
                trailers,
            }) => {
                let body = body.clone();
                let recorded =
                    self.keep
                        .record(head.status, &head.headers, body, trailers.as_ref());
                Ok(recorded.encode().into())
            }
            Ok(HandlerResponse::Replayed(recorded, _)) => Ok(recorded.encode().into()),
            Ok(HandlerResponse::Passing(_)) => Err(CodecError::new(
                "the response is larger than may be recorded",
            )),
            Err(_) => Err(CodecError::new("no response")),
        }
    }

    fn decode(&self, recorded: Bytes) -> Result<Result<HandlerResponse<B>, E>, CodecError> {
        let recorded = Recorded::decode(&recorded).map_err(CodecError::new)?;
        Ok(Ok(HandlerResponse::Replayed(recorded, Duration::ZERO)))
    }

    fn mark(
        &self,
        result: Result<HandlerResponse<B>, E>,
        source: &Source,
    ) -> Result<HandlerResponse<B>, E> {
        match (result, source) {
            (Ok(HandlerResponse::Replayed(recorded, _)), Source::Replayed { age }) => {
                Ok(HandlerResponse::Replayed(recorded, *age))
            }
            (Ok(response), Source::Fresh(recorded)) if is_missing(*recorded) => {
                // A response that is not to be recorded is not missed.
                Ok(match (self.decide)(response.status(), response.headers()) {
                    Disposition::Release | Disposition::Unknown => response,
                    _ => response.unrecorded(),
                })
            }
            (result, _) => result,
        }
    }
}

/// Whether the store has not confirmed the record.
const fn is_missing(recorded: idempotency::Recorded) -> bool {
    use idempotency::Recorded::{Pending, Unguarded};
    matches!(recorded, Pending | Unguarded)
}

/// The default of [`IdempotentRequests::decide`](super::IdempotentRequests::decide).
pub(super) fn by_status(status: StatusCode) -> Disposition {
    match status.as_u16() {
        408 | 425 | 429 | 503 => Disposition::Release,
        _ => Disposition::Record,
    }
}
