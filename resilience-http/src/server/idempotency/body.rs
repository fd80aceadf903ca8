//! Bodies on both sides of the layer: in memory, or streamed.

use std::{
    collections::VecDeque,
    error::Error as StdError,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError};
use pin_project_lite::pin_project;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

pin_project! {
    /// Body of a request or response that went through
    /// [`IdempotentRequests`](super::IdempotentRequests): in memory, or streamed. Its errors are those of
    /// the body inside; an `axum::Error` around one is removed (feature `axum`), since axum puts one
    /// around it again, and finds a limit of the body's length in no more than two of them.
    pub struct IdempotentBody<B: Body> {
        // Frames that were read already.
        ready: VecDeque<Bytes>,
        trailers: Option<HeaderMap>,
        // The rest, unread. Boxed, so that it can be moved after it was polled.
        rest: Option<Pin<Box<B>>>,
        broken: Option<BoxError>,
    }
}

impl<B: Body> IdempotentBody<B> {
    /// Streams `body`, of which nothing was read.
    pub(super) fn passed(body: B) -> Self {
        Self {
            ready: VecDeque::new(),
            trailers: None,
            rest: Some(Box::pin(body)),
            broken: None,
        }
    }

    /// Holds a whole body in memory.
    pub(super) fn whole(body: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self {
            ready: Some(body)
                .filter(|body| !body.is_empty())
                .into_iter()
                .collect(),
            trailers,
            rest: None,
            broken: None,
        }
    }
}

/// For responses that are made by this layer or by an outer one.
impl<B: Body> From<String> for IdempotentBody<B> {
    fn from(text: String) -> Self {
        Self::whole(text.into(), None)
    }
}

impl<B: Body> fmt::Debug for IdempotentBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentBody").finish_non_exhaustive()
    }
}

impl<B> IdempotentBody<B>
where
    B: Body,
{
    /// Whether it broke off because an outer layer limits its length.
    pub(super) fn is_too_large(&self) -> bool {
        let broken = self.broken.as_deref();
        let first = broken.map(|error| error as &(dyn StdError + 'static));
        std::iter::successors(first, |error| (*error).source())
            .any(|error| error.is::<LengthLimitError>())
    }
}

/// The error without axum's wrapper.
fn inner(error: impl Into<BoxError>) -> BoxError {
    let error = error.into();
    #[cfg(feature = "axum")]
    let error = match error.downcast::<axum_core::Error>() {
        Ok(wrapper) => wrapper.into_inner(),
        Err(error) => error,
    };
    error
}

impl<B> Body for IdempotentBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        if let Some(data) = this.ready.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(rest) = this.rest {
            let frame = ready!(rest.as_mut().poll_frame(cx));
            if frame.is_none() {
                *this.rest = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(inner)));
        }
        let trailers = this.trailers.take();
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty()
            && self.broken.is_none()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let ready = self.ready.iter().map(|data| data.len() as u64).sum::<u64>();
        let mut hint = match (&self.rest, &self.broken) {
            (Some(rest), _) => rest.size_hint(),
            // The full length is unknown.
            (None, Some(_)) => return SizeHint::new(),
            (None, None) => SizeHint::with_exact(0),
        };
        let (lower, upper) = (hint.lower(), hint.upper());
        if let Some(upper) = upper {
            hint.set_upper(upper.saturating_add(ready));
        }
        hint.set_lower(lower.saturating_add(ready));
        hint
    }
}

/// A body that was read up to a limit.
pub(super) enum Read<B: Body> {
    /// All of it, with its trailers.
    Whole(Bytes, Option<HeaderMap>),
    /// It is larger than the limit: what was read, and the rest.
    More(IdempotentBody<B>),
    /// It ended early: what was read, and the error.
    Broken(IdempotentBody<B>),
}

/// Reads a body of up to `limit` bytes.
pub(super) async fn read<B>(body: B, limit: usize) -> Read<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut rest = Box::pin(body);
    let (mut ready, mut length, mut trailers) = (VecDeque::new(), 0, None);
    let too_long = |hint: SizeHint| hint.lower() > limit as u64;
    if too_long(rest.size_hint()) {
        return more(ready, rest);
    }
    loop {
        match rest.frame().await {
            None => return Read::Whole(joined(ready, length), trailers),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    length += data.len();
                    ready.push_back(data);
                    if length > limit {
                        return more(ready, rest);
                    }
                }
                Err(other) => trailers = other.into_trailers().ok().or(trailers),
            },
            Some(Err(error)) => {
                return Read::Broken(IdempotentBody {
                    ready,
                    trailers: None,
                    rest: None,
                    broken: Some(inner(error)),
                });
            }
        }
    }
}

const fn more<B: Body>(ready: VecDeque<Bytes>, rest: Pin<Box<B>>) -> Read<B> {
    Read::More(IdempotentBody {
        ready,
        trailers: None,
        rest: Some(rest),
        broken: None,
    })
}

fn joined(mut parts: VecDeque<Bytes>, length: usize) -> Bytes {
    if parts.len() <= 1 {
        return parts.pop_front().unwrap_or_default();
    }
    let mut all = Vec::with_capacity(length);
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.into()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http::HeaderValue;
    use http_body_util::{Full, StreamBody};

    use super::*;

    type Frames = Vec<Result<Frame<Bytes>, &'static str>>;

    fn body(frames: Frames) -> impl Body<Data = Bytes, Error = &'static str> {
        StreamBody::new(stream::iter(frames))
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
        Ok(Frame::data(Bytes::from(text)))
    }

    fn sum() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("7"))])
    }

    /// What a reader gets, and the error at the end.
    async fn collected<B>(body: B) -> (String, Option<HeaderMap>, Option<String>)
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut body = Box::pin(body);
        let (mut text, mut trailers) = (String::new(), None);
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => text += std::str::from_utf8(&data).unwrap(),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(error) => return (text, trailers, Some(error.into().to_string())),
            }
        }
        assert!(body.is_end_stream());
        (text, trailers, None)
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_read_whole_with_its_trailers() {
        let frames = vec![data("ab"), data("cd"), Ok(Frame::trailers(sum()))];
        let Read::Whole(bytes, trailers) = read(body(frames), 4).await else {
            panic!("not whole")
        };
        assert_eq!((&bytes[..], &trailers), (&b"abcd"[..], &Some(sum())));
        let again = IdempotentBody::<Full<Bytes>>::whole(bytes, trailers);
        assert_eq!(again.size_hint().exact(), Some(4));
        assert_eq!(collected(again).await, ("abcd".into(), Some(sum()), None));
        let empty = IdempotentBody::<Full<Bytes>>::whole(Bytes::new(), None);
        assert!(empty.is_end_stream());
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_passed_on_with_nothing_lost() {
        let frames = vec![
            data("ab"),
            data("cd"),
            data("ef"),
            Ok(Frame::trailers(sum())),
        ];
        let Read::More(rest) = read(body(frames), 3).await else {
            panic!("not more")
        };
        assert_eq!(rest.size_hint().lower(), 4);
        assert_eq!(collected(rest).await, ("abcdef".into(), Some(sum()), None));
        let known = Full::<Bytes>::new("abcd".into());
        let Read::More(rest) = read(known, 3).await else {
            panic!("not more")
        };
        assert_eq!(
            rest.size_hint().exact(),
            Some(4),
            "nothing was read for nothing"
        );
        let passed = IdempotentBody::passed(Full::<Bytes>::new("abcd".into()));
        assert_eq!(collected(passed).await, ("abcd".into(), None, None));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_does_so_for_its_reader_too() {
        let Read::Broken(broken) = read(body(vec![data("ab"), Err("reset")]), 10).await else {
            panic!("not broken")
        };
        assert_eq!(broken.size_hint().exact(), None);
        assert!(!broken.is_end_stream());
        assert!(!broken.is_too_large());
        let reset = Some("reset".into());
        assert_eq!(collected(broken).await, ("ab".into(), None, reset));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_at_the_limit_of_an_outer_layer_says_so() {
        let limited = http_body_util::Limited::new(Full::<Bytes>::from("abcd"), 3);
        let Read::Broken(broken) = read(limited, 10).await else {
            panic!("not broken")
        };
        assert!(broken.is_too_large());
    }
}
