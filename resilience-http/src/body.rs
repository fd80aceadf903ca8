//! An answer is over when its body is: outcome and permits follow the body to its end.
//!
//! The head of a response says what the server meant to do, the body whether it did. A server that sends `200 OK`
//! and then hangs, resets or stops half way has failed, and a layer that looked at the head alone would count it
//! well. [`OnBodyEnd`] goes into `.complete_on(..)` of the layers that hold something per call (circuit breaker, bulkhead);
//! they then keep it inside the body:
//!
//! | what happens | what the layer is told | permit given back |
//! |---|---|---|
//! | the head is a failure (503) | that, at once | at the end of the body |
//! | the body comes whole | the verdict on the head | at its end |
//! | the body breaks off: reset, cut short | transient failure | at once |
//! | the body is still awaited at the [deadline] | transient failure | at once |
//! | data comes on and on after the deadline, or the reader was late | as [`PartialRead`] says | at once |
//! | the body is dropped before its end | as [`PartialRead`] says | at once |
//!
//! The deadline is the one in force when the head arrived at the layer: it goes on to hold for whoever reads the
//! body, on whatever task. At the deadline the reader gets an error in which [`rejected_in`] finds a
//! [`Rejected`] with [`Reason::TimedOut`]; `reqwest::Error::is_timeout` is true for it too.
//!
//! ```
//! use http::Response;
//! use http_body_util::{BodyExt, Full};
//! use resilience_core::{Verdict, completion::{Guard, Completion}};
//! use resilience_http::OnBodyEnd;
//!
//! struct Told;
//! impl Guard for Told {
//!     fn settle(&mut self, verdict: Verdict) { println!("the call ended as {verdict:?}"); }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let response = Response::new(Full::new(bytes::Bytes::from("hello")));
//! let held = OnBodyEnd::new("api").hold(response, Verdict::Success, Told);
//! // Not a word so far. Now:
//! assert_eq!(held.into_body().collect().await.unwrap().to_bytes(), "hello");
//! # }
//! ```
//!
//! A circuit breaker that looks for slow calls measures to the end of the body too, and so by how fast it is read.
//!
//! **Cost**: the reading of a body costs one clock reading per frame when a deadline is in force, and one allocation
//! per response, per guard, and for the timer of a wait under a deadline; a response without a body costs nothing. **Cancellation**: see [`PartialRead`].

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

/// Decides that a call is over when the body of its answer is. See the [module](self).
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

/// What a body that was dropped before its end says about the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartialRead {
    /// What its head said: the reader lost interest, the server did nothing wrong. Unless the reader was waiting for
    /// data when it gave up, and had been for [`stalled_after`](OnBodyEnd::stalled_after) or beyond the deadline: then
    /// it is a failure.
    #[default]
    AsHead,
    /// Nothing.
    Ignored,
    /// That it failed.
    Failed,
}

impl OnBodyEnd {
    /// With the defaults: [`PartialRead::AsHead`], stalled after one second. `name` is the name in the
    /// [`Rejected`] that a reader gets at the deadline.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            policy: Policy {
                partial_read: PartialRead::AsHead,
                stalled_after: Duration::from_secs(1),
            },
        }
    }

    /// What a body that was dropped before its end says.
    pub const fn partial_read(mut self, policy: PartialRead) -> Self {
        self.policy.partial_read = policy;
        self
    }

    /// How long a reader must have been waiting for data for its giving up to count against the server
    /// ([`PartialRead::AsHead`] only). Zero: always, when it was waiting at all. A reader that polled once and then
    /// turned to something else counts as waiting.
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

    /// Rides along in the response's extensions, so that every layer's guard goes into one and the same wrapped body.
    #[derive(Clone)]
    struct Attached(Arc<Kept>);

    /// The response stays a `reqwest::Response`, with its url, version, headers and extensions.
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
        /// Holds the reader of a body to the deadline now in force, where no layer keeps a guard in it.
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
            // The url of a response has no other way in than a builder's.
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
    /// A body that keeps the guards of the layers above it until its end. Made by [`OnBodyEnd`].
    pub struct GuardedBody<B> {
        // Gone once it has ended: a connection that is of no more use is let go at once.
        #[pin]
        inner: Option<B>,
        watch: Watch,
        // Made when the first wait under a deadline begins. Boxed, so that the body can be moved wherever `B` can be.
        timer: Option<Pin<Box<Sleep>>>,
    }
}

/// A body that no layer waits for: for answers that are made further out, as [`server::guard`](crate::server) makes
/// them.
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
            // Data first, deadline second: what is there in time is not thrown away.
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

/// The rejection inside an error, however deep: in a `reqwest::Error` of reading a body, for one.
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

/// An error and everything that it came from. An `io::Error` passes over what it wraps when it is asked for its
/// source; here it does not.
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

/// An io error, because that is where reqwest (and others) look for a timeout.
fn timed_out(name: &Arc<str>) -> BoxError {
    let rejected = Rejected::new(Pattern::Deadline, Reason::TimedOut, Arc::clone(name));
    io::Error::new(io::ErrorKind::TimedOut, Unfinished(rejected)).into()
}

/// Between the `io::Error` and the rejection, so that whoever follows the sources finds the rejection: an `io::Error`
/// passes over what it wraps itself.
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
