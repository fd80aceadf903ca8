//! Responses of the handler: recorded, replayed or passed on.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode, header, response::Parts};
use http_body::Body;
use resilience_core::idempotency::{self, CodecError, Disposition, Outcomes, Source};

use super::{body::IdempotentBody, settings::Settings};
use crate::{
    headers::{IDEMPOTENCY_UNRECORDED, IDEMPOTENT_REPLAYED},
    idempotency::Recorded,
};

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
    /// Cannot be recorded, for this reason: only the first client gets it.
    Passing(Response<IdempotentBody<B>>, Unrecordable),
}

/// Why a response cannot be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unrecordable {
    TooLarge,
    EndedEarly,
    Events,
    Encoded,
}

impl Unrecordable {
    const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "the response is larger than may be recorded",
            Self::EndedEarly => "the body of the response ended early",
            Self::Events => "the response is a stream of events",
            Self::Encoded => {
                "the response has a Content-Encoding, which not every caller may decode: put the compression outside of this layer"
            }
        }
    }
}

impl<B: Body> HandlerResponse<B> {
    fn status(&self) -> StatusCode {
        match self {
            Self::Whole { head, .. } => head.status,
            Self::Replayed(recorded, _) => recorded.status(),
            Self::Passing(response, _) => response.status(),
        }
    }

    fn headers(&self) -> &HeaderMap {
        match self {
            Self::Whole { head, .. } => &head.headers,
            Self::Replayed(recorded, _) => recorded.headers(),
            Self::Passing(response, _) => response.headers(),
        }
    }

    /// The response with the mark that it has no record.
    fn unrecorded(mut self) -> Self {
        let headers = match &mut self {
            Self::Whole { head, .. } => &mut head.headers,
            Self::Passing(response, _) => response.headers_mut(),
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
            Self::Passing(response, _) => response,
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

/// Decides by the response's head, and records responses as bytes.
pub(super) struct ResponseOutcomes<B, E> {
    pub(super) settings: Arc<Settings>,
    pub(super) of: PhantomData<fn(B) -> E>,
}

impl<B: Body, E> ResponseOutcomes<B, E> {
    fn disposition(&self, response: &HandlerResponse<B>) -> Disposition {
        let none = Extensions::new();
        let extensions = match response {
            HandlerResponse::Whole { head, .. } => &head.extensions,
            HandlerResponse::Passing(response, _) => response.extensions(),
            HandlerResponse::Replayed(..) => &none,
        };
        let (status, headers) = (response.status(), response.headers());
        self.settings.disposition(status, headers, extensions)
    }
}

impl<B, E> Outcomes<Result<HandlerResponse<B>, E>> for ResponseOutcomes<B, E>
where
    B: Body + 'static,
    E: 'static,
{
    fn decide(&self, result: &Result<HandlerResponse<B>, E>) -> Disposition {
        match result {
            Ok(response) => self.disposition(response),
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
                    self.settings
                        .keep
                        .record(head.status, &head.headers, body, trailers.as_ref());
                Ok(recorded.encode().into())
            }
            Ok(HandlerResponse::Replayed(recorded, _)) => Ok(recorded.encode().into()),
            Ok(HandlerResponse::Passing(_, why)) => Err(CodecError::new(why.as_str())),
            Err(_) => Err(CodecError::new("no response")),
        }
    }

    fn decode(&self, recorded: Bytes) -> Result<Result<HandlerResponse<B>, E>, CodecError> {
        let recorded = Recorded::decode(&recorded).map_err(CodecError::new)?;
        let recorded = self.settings.keep.replayed(recorded);
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
                Ok(match self.disposition(&response) {
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
