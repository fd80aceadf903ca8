//! A fleet's bulkhead as a tower layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{acquire::acquire, builder::WhenLost, current, permit::FleetPermit, shared::Shared};
use crate::{
    completion::{self, Completion},
    cost::{Cost, Each},
    error::{Reason, Rejected, ServiceError},
    verdict::Verdict,
};

/// Makes [`FleetBulkheadService`]s. See [`FleetBulkhead::layer`](super::FleetBulkhead::layer).
#[derive(Clone)]
#[must_use]
pub struct FleetBulkheadLayer<C = Each, U = completion::OnResponse> {
    shared: Arc<Shared>,
    cost: C,
    completion: U,
}

impl FleetBulkheadLayer {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            cost: Each(1),
            completion: completion::OnResponse,
        }
    }
}

impl<C, U> FleetBulkheadLayer<C, U> {
    /// How many places a request takes. The default is one.
    pub fn cost<D>(self, cost: D) -> FleetBulkheadLayer<D, U> {
        FleetBulkheadLayer {
            shared: self.shared,
            cost,
            completion: self.completion,
        }
    }

    /// When a call gives its places back. The default is when its response is there; an HTTP body can keep them until
    /// it has been read.
    pub fn complete_on<V>(self, completion: V) -> FleetBulkheadLayer<C, V> {
        FleetBulkheadLayer {
            shared: self.shared,
            cost: self.cost,
            completion,
        }
    }
}

impl<C, U> fmt::Debug for FleetBulkheadLayer<C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBulkheadLayer")
            .field("bulkhead", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl<S, C: Clone, U: Clone> Layer<S> for FleetBulkheadLayer<C, U> {
    type Service = FleetBulkheadService<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        FleetBulkheadService {
            inner,
            shared: Arc::clone(&self.shared),
            cost: self.cost.clone(),
            completion: self.completion.clone(),
        }
    }
}

/// A service of whose calls the whole fleet can have so many in flight at once. Made by [`FleetBulkheadLayer`].
#[derive(Clone)]
pub struct FleetBulkheadService<S, C = Each, U = completion::OnResponse> {
    inner: S,
    shared: Arc<Shared>,
    cost: C,
    completion: U,
}

impl<S: fmt::Debug, C, U> fmt::Debug for FleetBulkheadService<S, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBulkheadService")
            .field("bulkhead", &self.shared.name)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, C, U, Req> Service<Req> for FleetBulkheadService<S, C, U>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    C: Cost<Req>,
    U: Completion<S::Response, FleetPermit>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        // Every call waits for the store: what was readied below is not held meanwhile.
        let fresh = self.inner.clone();
        self.inner = fresh;
        let cost = self.cost.cost(&request);
        let acquiring = acquire(Arc::clone(&self.shared), cost);
        ResponseFuture {
            state: State::Waiting {
                acquiring: Box::pin(acquiring),
                inner: Some(self.inner.clone()),
                request: Some(request),
            },
            permit: None,
            abort: matches!(self.shared.when_lost, WhenLost::Abort),
            lost: None,
            completion: self.completion.clone(),
        }
    }
}

type Acquiring = Pin<Box<dyn Future<Output = Result<FleetPermit, Rejected>> + Send>>;
type Lost = Pin<Box<dyn Future<Output = ()> + Send>>;

pin_project! {
    /// The future of [`FleetBulkheadService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, U>
    where
        S: Service<Req>,
    {
        // Dropped before the permit: whoever gets the places next does not overlap with this call.
        #[pin]
        state: State<S, Req, S::Future>,
        permit: Option<FleetPermit>,
        abort: bool,
        lost: Option<Lost>,
        completion: U,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, Fut> {
        // For the places, and then for the inner service.
        Waiting {
            acquiring: Acquiring,
            inner: Option<S>,
            request: Option<Req>,
        },
        Calling { #[pin] future: Fut },
        Done,
    }
}

impl<S, Req, U> Future for ResponseFuture<S, Req, U>
where
    S: Service<Req>,
    S::Error: ServiceError,
    U: Completion<S::Response, FleetPermit>,
{
    type Output = Result<U::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Some(lost) = this.lost
                && lost.as_mut().poll(cx).is_ready()
            {
                this.state.set(State::Done);
                let permit = this.permit.take();
                let rejected = permit.map(|permit| permit.given_up(Reason::LeaseLost));
                *this.lost = None;
                return Poll::Ready(Err(rejected.expect("held until it is over").into()));
            }
            match this.state.as_mut().project() {
                StateProj::Waiting {
                    acquiring,
                    inner,
                    request,
                } => {
                    if this.permit.is_none() {
                        let permit = ready!(acquiring.as_mut().poll(cx));
                        let permit = match permit {
                            Ok(permit) => permit,
                            Err(rejected) => {
                                this.state.set(State::Done);
                                return Poll::Ready(Err(rejected.into()));
                            }
                        };
                        if *this.abort {
                            *this.lost = Some(Box::pin(permit.lost()));
                        }
                        *this.permit = Some(permit);
                        // Asks to be woken when it is lost.
                        continue;
                    }
                    let service = inner.as_mut().expect("polled after it was called");
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        this.state.set(State::Done);
                        *this.lost = None;
                        *this.permit = None;
                        return Poll::Ready(Err(error));
                    }
                    let request = request.take().expect("polled after it was called");
                    let _here = current::enter(this.permit.as_ref());
                    let future = service.call(request);
                    this.state.set(State::Calling { future });
                }
                StateProj::Calling { future } => {
                    let result = {
                        let _here = current::enter(this.permit.as_ref());
                        ready!(future.poll(cx))
                    };
                    this.state.set(State::Done);
                    *this.lost = None;
                    return Poll::Ready(match result {
                        Ok(response) => {
                            let verdict = Verdict::Success;
                            Ok(this.completion.complete(response, verdict, this.permit))
                        }
                        Err(error) => {
                            *this.permit = None;
                            Err(error)
                        }
                    });
                }
                StateProj::Done => panic!("polled after it was done"),
            }
        }
    }
}

impl<S: Service<Req>, Req, U> fmt::Debug for ResponseFuture<S, Req, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting { .. } => "waiting",
            State::Calling { .. } => "calling",
            State::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
