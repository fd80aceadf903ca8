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
//! | no data by the [deadline](resilience_core::deadline) | transient failure | at once |
//! | data still arrives after the deadline, or the reader was late | as [`PartialRead`] says | at once |
//! | the body is dropped before its end | as [`PartialRead`] says | at once |
//!
//! The deadline is the one in force when the head arrived at the layer: it also holds for the
//! reading of the body, on any task. At the deadline the reader gets an error in which
//! [`rejected_in`] finds a [`Rejected`](resilience_core::Rejected) with
//! [`Reason::TimedOut`](resilience_core::Reason::TimedOut); `reqwest::Error::is_timeout` is true
//! for it too.
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
//! let held = OnBodyEnd::new().hold(response, Verdict::Success, Printing);
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

mod error;
mod guarded;
mod policy;
#[cfg(test)]
mod tests;
mod watch;

use std::{sync::Arc, time::Duration};

use http::Response;
use http_body::Body;
use resilience_core::{
    Verdict,
    completion::{Completion, Guard},
};

#[cfg(any(feature = "client", test))]
pub(crate) use self::error::chain;
pub use self::{error::rejected_in, guarded::GuardedBody, policy::PartialRead};
use self::{policy::Policy, watch::HeldGuard};

/// Completion of a call at the end of the response body. See the [module](self).
#[derive(Clone, Debug)]
#[must_use]
pub struct OnBodyEnd {
    /// `None`: that of the layer.
    name: Option<Arc<str>>,
    policy: Policy,
}

impl OnBodyEnd {
    /// Creates the default: [`PartialRead::AsHead`], stalled after one second, under the name of the layer that it is
    /// given to.
    pub const fn new() -> Self {
        Self {
            name: None,
            policy: Policy {
                partial_read: PartialRead::AsHead,
                stalled_after: Duration::from_secs(1),
            },
        }
    }

    /// Sets the name in the [`Rejected`](resilience_core::Rejected) that a reader gets at the deadline. Default: the name
    /// of the innermost layer that keeps something inside the body ([`Guard::name`]).
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
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

    fn keep<G: Guard + Send + 'static>(&self, verdict: Verdict, guard: G) -> HeldGuard {
        HeldGuard::new(self.policy, verdict, guard)
    }

    fn wrap<B: Body>(&self, body: B, held: Option<HeldGuard>) -> GuardedBody<B> {
        let of_layer = || held.as_ref().and_then(HeldGuard::name);
        let name = self.name.clone().or_else(of_layer);
        GuardedBody::new(
            body,
            held,
            name.unwrap_or_else(|| Arc::from("response body")),
        )
    }
}

impl Default for OnBodyEnd {
    fn default() -> Self {
        Self::new()
    }
}

impl<B, G> Completion<Response<B>, G> for OnBodyEnd
where
    B: Body,
    G: Guard + Send + 'static,
{
    type Response = Response<GuardedBody<B>>;

    fn hold(&self, response: Response<B>, verdict: Verdict, guard: G) -> Self::Response {
        let held = self.keep(verdict, guard);
        response.map(|body| self.wrap(body, Some(held)))
    }
}

#[cfg(feature = "client")]
mod load;

#[cfg(feature = "client")]
mod client {
    use std::sync::Arc;

    use http::Response;
    use reqwest::ResponseBuilderExt;
    use resilience_core::{
        Verdict,
        completion::{Completion, Guard},
        deadline,
    };

    use super::{
        OnBodyEnd,
        watch::{GuardSet, HeldGuard},
    };

    /// Extension of a response whose body is wrapped already: further guards join the same body.
    #[derive(Clone)]
    struct Attached(Arc<GuardSet>);

    /// The response stays a `reqwest::Response`, with its URL, version, headers and extensions.
    impl<G: Guard + Send + 'static> Completion<reqwest::Response, G> for OnBodyEnd {
        type Response = reqwest::Response;

        fn hold(
            &self,
            response: reqwest::Response,
            verdict: Verdict,
            mut guard: G,
        ) -> reqwest::Response {
            if let Some(Attached(guards)) = response.extensions().get() {
                guards.add(self.keep(verdict, guard));
                return response;
            }
            if response.content_length() == Some(0) {
                guard.settle(verdict);
                return response;
            }
            self.attach(response, Some(self.keep(verdict, guard)))
        }
    }

    impl OnBodyEnd {
        /// Sets the name unless there is one.
        pub(crate) fn or_name(mut self, name: &Arc<str>) -> Self {
            self.name.get_or_insert_with(|| Arc::clone(name));
            self
        }

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

        fn attach(
            &self,
            response: reqwest::Response,
            held: Option<HeldGuard>,
        ) -> reqwest::Response {
            let url = response.url().clone();
            let (mut parts, body) = Response::<reqwest::Body>::from(response).into_parts();
            let body = self.wrap(body, held);
            // Only a builder can set the URL of a response.
            let builder = Response::builder()
                .url(url)
                .extension(Attached(Arc::clone(body.guards())));
            if let Ok(with_url) = builder.body(()) {
                parts.extensions.extend(with_url.into_parts().0.extensions);
            }
            reqwest::Response::from(Response::from_parts(parts, reqwest::Body::wrap(body)))
        }
    }
}
