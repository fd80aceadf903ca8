//! Calls that end with the response body: verdict and permits follow the body to its end.
//!
//! The head of a response announces success, the body delivers it. A server that sends `200 OK` and
//! then hangs, resets or stops halfway has failed, and a layer that sees the head alone would count
//! a success. [`OnBodyEnd`] goes into `.complete_on(..)` of the layers that hold something per call
//! (circuit breaker, bulkhead); they then keep it inside the body:
//!
//! | event | verdict | permit released |
//! |---|---|---|
//! | the head is a failure (503) | that failure, at once | at the end of the body |
//! | the body is read to its end | that of the head | at its end |
//! | the body is reset or incomplete | transient failure | at once |
//! | no data by the [deadline] | transient failure | at once |
//! | data still arrives after the deadline, or the reader was late | as [`PartialRead`] says | at once |
//! | the body is dropped before its end | as [`PartialRead`] says | at once |
//!
//! The deadline is the one in force when the head arrived at the layer: it also holds for the
//! reading of the body, on any task. At the deadline the reader gets an error in which
//! [`rejected_in`] finds a [`Rejected`] with [`Reason::TimedOut`]; `reqwest::Error::is_timeout` is
//! true for it too.
//!
//! ```
//! use http::Response;
//! use http_body_util::{BodyExt, Full};
//! use resilience_core::{Verdict, completion::{Guard, Completion}};
//! use resilience_http::OnBodyEnd;
//!
//! struct Printing;
//! impl Guard for Printing {
//!     fn settle(&mut self, verdict: Verdict) { println!("the call ended as {verdict:?}"); }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let response = Response::new(Full::new(bytes::Bytes::from("hello")));
//! let held = OnBodyEnd::new("api").hold(response, Verdict::Success, Printing);
//! // Nothing is printed before the body has been read:
//! assert_eq!(held.into_body().collect().await.unwrap().to_bytes(), "hello");
//! # }
//! ```
//!
//! With it, a circuit breaker measures slow calls to the end of the body, and so includes the speed
//! of the reader.
//!
//! **Cost**: one reading of the clock per frame while a deadline is in force; one allocation per
//! response, per guard, and for the timer of a wait under a deadline; nothing for a response
//! without a body. **Cancellation**: see [`PartialRead`].
//!
//! # References
//! RFC 9112 section 8 (incomplete messages); RFC 9113 section 5.4 (stream errors).

mod watch;

use std::{
    error::Error as StdError,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use resilience_core::{
    Pattern, Reason, Rejected, Verdict,
    completion::{Completion, Guard},
    deadline,
};
use tokio::time::Sleep;

use self::watch::{Held, Kept, Watch};

type BoxError = Box<dyn StdError + Send + Sync>;

/// Completion of a call at the end of the response body. See the [module](self).
#[derive(Clone, Debug)]
#[must_use]
pub struct OnBodyEnd {
    name: Arc<str>,
    policy: Policy,
}

#[derive(Clone, Copy, Debug)]
struct Policy {
    partial_read: PartialRead,
    stalled_after: Duration,
}

/// How a body that was dropped before its end is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartialRead {
    /// As its head: the reader lost interest, the server did nothing wrong. But as a failure if the
    /// reader was waiting for data when it gave up, and had waited for
    /// [`stalled_after`](OnBodyEnd::stalled_after) or beyond the deadline.
    #[default]
    AsHead,
    /// Not at all: the call counts as ignored.
    Ignored,
    /// As a failure.
    Failed,
}

impl OnBodyEnd {
    /// Creates the default: [`PartialRead::AsHead`], stalled after one second. `name` is the name
    /// in the [`Rejected`] that a reader gets at the deadline.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            policy: Policy {
                partial_read: PartialRead::AsHead,
                stalled_after: Duration::from_secs(1),
            },
        }
    }

    /// Sets how a body that was dropped before its end is judged. Default: [`PartialRead::AsHead`].
    pub const fn partial_read(mut self, policy: PartialRead) -> Self {
        self.policy.partial_read = policy;
        self
    }

    /// Sets how long a reader must have waited for data for its giving up to count against the
    /// server ([`PartialRead::AsHead`] only). With zero, any wait counts. A reader that polled once
    /// and then turned to something else counts as waiting. Default: one second.
    pub const fn stalled_after(mut self, bound: Duration) -> Self {
        self.policy.stalled_after = bound;
        self
    }

    fn wrap<B: Body>(&self, body: B, held: Option<Held>) -> GuardedBody<B> {
        let kept = Arc::new(Kept::default());
        if let Some(held) = held {
            kept.add(held);
        }
        let ended = body.is_end_stream();
        let watch = Watch::new(kept, Arc::clone(&self.name), deadline::current());
        let mut guarded = GuardedBody {
            inner: Some(body),
            watch,
            timer: None,
        };
        if ended {
            guarded.watch.whole();
        }
        guarded
    }
}

impl<B, G> Completion<Response<B>, G> for OnBodyEnd
where
    B: Body,
    G: Guard + Send + 'static,
{
    type Response = Response<GuardedBody<B>>;

    fn hold(&self, response: Response<B>, verdict: Verdict, guard: G) -> Self::Response {
        let held = Held::new(self.policy, verdict, guard);
        response.map(|body| self.wrap(body, Some(held)))
    }
}

#[cfg(feature = "client")]
mod client {
    use std::sync::Arc;

    use reqwest::ResponseBuilderExt;

    use super::*;

    /// Extension of a response whose body is wrapped already: further guards join the same body.
    #[derive(Clone)]
    struct Attached(Arc<Kept>);

    /// The response stays a `reqwest::Response`, with its URL, version, headers and extensions.
    impl<G: Guard + Send + 'static> Completion<reqwest::Response, G> for OnBodyEnd {
        type Response = reqwest::Response;

        fn hold(
            &self,
            response: reqwest::Response,
            verdict: Verdict,
            mut guard: G,
        ) -> reqwest::Response {
            if let Some(Attached(kept)) = response.extensions().get() {
                kept.add(Held::new(self.policy, verdict, guard));
                return response;
            }
            if response.content_length() == Some(0) {
                guard.settle(verdict);
                return response;
            }
            self.attach(response, Some(Held::new(self.policy, verdict, guard)))
        }
    }

    impl OnBodyEnd {
        /// Bounds the reading of a body by the deadline in force, where no layer keeps a guard in
        /// it.
        #[must_use]
        pub fn cover(&self, response: reqwest::Response) -> reqwest::Response {
            let covered = response.extensions().get::<Attached>().is_some();
            if covered || deadline::current().is_none() || response.content_length() == Some(0) {
                return response;
            }
            self.attach(response, None)
        }

        fn attach(&self, response: reqwest::Response, held: Option<Held>) -> reqwest::Response {
            let url = response.url().clone();
            let (mut parts, body) = Response::<reqwest::Body>::from(response).into_parts();
            let body = self.wrap(body, held);
            // Only a builder can set the URL of a response.
            let builder = Response::builder().url(url).extension(body.attached());
            if let Ok(with_url) = builder.body(()) {
                parts.extensions.extend(with_url.into_parts().0.extensions);
            }
            reqwest::Response::from(Response::from_parts(parts, reqwest::Body::wrap(body)))
        }
    }

    impl<B> GuardedBody<B> {
        fn attached(&self) -> Attached {
            Attached(Arc::clone(self.watch.kept()))
        }
    }
}

pin_project! {
    /// Body that keeps the guards of outer layers until its end. Made by [`OnBodyEnd`].
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
        let answer = match inner.as_mut().poll_frame(cx) {
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
        Poll::Ready(answer)
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

/// Finds the rejection inside an error at any depth, such as in the `reqwest::Error` of reading a
/// body.
///
/// ```
/// # use resilience_http::body::rejected_in;
/// let foreign = std::io::Error::other("reset by peer");
/// assert!(rejected_in(&foreign).is_none());
/// ```
#[must_use]
pub fn rejected_in<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Rejected> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// An error and its sources. `io::Error::source` skips the error that it wraps; this does not.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| {
        let io = (*error).downcast_ref::<io::Error>();
        match io.and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => (*error).source(),
        }
    })
}

/// An `io::Error`, because that is where reqwest and others look for a timeout.
fn timed_out(name: &Arc<str>) -> BoxError {
    let rejected = Rejected::new(Pattern::Deadline, Reason::TimedOut, Arc::clone(name));
    io::Error::new(io::ErrorKind::TimedOut, Unfinished(rejected)).into()
}

/// Stands between the `io::Error` and the rejection, so that following the sources finds the
/// rejection: `io::Error::source` skips the error that it wraps.
#[derive(Debug)]
struct Unfinished(Rejected);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body was not whole at the deadline")
    }
}

impl StdError for Unfinished {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

#[cfg(test)]
mod tests;
