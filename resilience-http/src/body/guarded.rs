//! The body that keeps guards until its end.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use resilience_core::deadline;
use tokio::time::Sleep;

use super::{
    error::timed_out,
    watch::{GuardSet, HeldGuard, Watch},
};

type BoxError = Box<dyn StdError + Send + Sync>;

pin_project! {
    /// Body that keeps the guards of outer layers until its end. Made by
    /// [`OnBodyEnd`](super::OnBodyEnd).
    pub struct GuardedBody<B> {
        // Dropped at the end of the body, so that the connection is released at once.
        #[pin]
        inner: Option<B>,
        watch: Watch,
        // Made at the first wait under a deadline. Boxed, so that the body can be moved wherever
        // `B` can be.
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<B: Body> GuardedBody<B> {
    pub(super) fn new(body: B, held: Option<HeldGuard>, name: Arc<str>) -> Self {
        let guards = Arc::new(GuardSet::default());
        if let Some(held) = held {
            guards.add(held);
        }
        let ended = body.is_end_stream();
        let mut watch = Watch::new(guards, name, deadline::current());
        if ended {
            watch.whole();
        }
        Self {
            inner: Some(body),
            watch,
            timer: None,
        }
    }
}

#[cfg(feature = "client")]
impl<B> GuardedBody<B> {
    pub(super) const fn guards(&self) -> &Arc<GuardSet> {
        self.watch.guards()
    }
}

/// Makes a body without guards, for responses that outer layers make themselves, as
/// [`server::guard`](crate::server) does.
impl<B: From<String>> From<String> for GuardedBody<B> {
    fn from(text: String) -> Self {
        Self {
            inner: Some(B::from(text)),
            watch: Watch::new(Arc::default(), Arc::from(""), None),
            timer: None,
        }
    }
}

impl<B> fmt::Debug for GuardedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedBody").finish_non_exhaustive()
    }
}

impl<B> Body for GuardedBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let Some(mut inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        this.watch.polling();
        let frame = match inner.as_mut().poll_frame(cx) {
            // Data before deadline: data that arrived in time is not discarded.
            Poll::Pending => {
                this.watch.waiting();
                let Some(deadline) = this.watch.deadline() else {
                    return Poll::Pending;
                };
                let timer = this
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.instant())));
                ready!(timer.as_mut().poll(cx));
                this.watch.broken();
                Some(Err(timed_out(this.watch.name())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.watch.progress();
                if inner.is_end_stream() {
                    this.watch.whole();
                    Some(Ok(frame))
                } else if this.watch.late_again() {
                    this.watch.dropped();
                    Some(Err(timed_out(this.watch.name())))
                } else {
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
            Poll::Ready(Some(Err(error))) => {
                this.watch.broken();
                Some(Err(error.into()))
            }
            Poll::Ready(None) => {
                this.watch.whole();
                None
            }
        };
        this.inner.set(None);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
