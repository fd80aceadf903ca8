//! The responses of fallbacks, and the conditions for them.

use std::{
    fmt,
    future::{Future, Ready, ready},
    sync::{Mutex, PoisonError},
};

use tower_service::Service;

use crate::{
    classify::{Classify, judge},
    error::ServiceError,
    execute::Call,
};

/// Response in place of a failed one.
pub trait FallbackResponse<Req, Res, E> {
    /// What the response needs of the request. Taken before every call: it should be small.
    type Note;
    /// The future of the response.
    type Future: Future<Output = Result<Res, E>>;

    /// Takes what the response needs of `request`, before the service takes the request.
    fn note(&self, request: &Req) -> Self::Note;

    /// Starts the response to the request of `note`, which ended in `failed`: an error, or a response that was judged as
    /// a failure.
    ///
    /// # Errors
    /// Returns `failed` if there is no response for it.
    fn answer(
        &self,
        failed: Result<Res, E>,
        note: Self::Note,
    ) -> Result<Self::Future, Result<Res, E>>;
}

/// A fixed response. See [`Fallback::value`](super::Fallback::value).
#[derive(Clone, Copy, Debug)]
pub struct Value<Res>(pub(super) Res);

impl<Req, Res: Clone, E> FallbackResponse<Req, Res, E> for Value<Res> {
    type Note = ();
    type Future = Ready<Result<Res, E>>;

    fn note(&self, _: &Req) {}

    fn answer(&self, _: Result<Res, E>, (): ()) -> Result<Self::Future, Result<Res, E>> {
        Ok(ready(Ok(self.0.clone())))
    }
}

/// Response by a function of the error. See [`Fallback::by`](super::Fallback::by).
#[derive(Clone, Copy)]
pub struct By<F>(pub(super) F);

impl<Req, Res, E, F> FallbackResponse<Req, Res, E> for By<F>
where
    F: Fn(E) -> Result<Res, E>,
{
    type Note = ();
    type Future = Ready<Result<Res, E>>;

    fn note(&self, _: &Req) {}

    fn answer(&self, failed: Result<Res, E>, (): ()) -> Result<Self::Future, Result<Res, E>> {
        match failed {
            Err(error) => Ok(ready((self.0)(error))),
            response => Err(response),
        }
    }
}

/// Response by an async function of the error. See [`Fallback::by_async`](super::Fallback::by_async).
#[derive(Clone, Copy)]
pub struct ByAsync<F>(pub(super) F);

impl<Req, Res, E, F, Fut> FallbackResponse<Req, Res, E> for ByAsync<F>
where
    F: Fn(E) -> Fut,
    Fut: Future<Output = Result<Res, E>>,
{
    type Note = ();
    type Future = Fut;

    fn note(&self, _: &Req) {}

    fn answer(&self, failed: Result<Res, E>, (): ()) -> Result<Self::Future, Result<Res, E>> {
        match failed {
            Err(error) => Ok((self.0)(error)),
            response => Err(response),
        }
    }
}

/// Response by a function of the failed result. See [`Fallback::by_result`](super::Fallback::by_result).
#[derive(Clone, Copy)]
pub struct ByResult<F>(pub(super) F);

impl<Req, Res, E, F> FallbackResponse<Req, Res, E> for ByResult<F>
where
    F: Fn(Result<Res, E>) -> Result<Res, E>,
{
    type Note = ();
    type Future = Ready<Result<Res, E>>;

    fn note(&self, _: &Req) {}

    fn answer(&self, failed: Result<Res, E>, (): ()) -> Result<Self::Future, Result<Res, E>> {
        Ok(ready((self.0)(failed)))
    }
}

/// Response of another service. See [`Fallback::service`](super::Fallback::service).
pub struct OnService<S, F> {
    /// Cloned when the fallback is needed, so that a passing call pays nothing. The lock allows a service that is not
    /// `Sync`.
    template: Mutex<S>,
    request: F,
}

impl<S, F> OnService<S, F> {
    pub(super) const fn new(other: S, request: F) -> Self {
        Self {
            template: Mutex::new(other),
            request,
        }
    }
}

impl<Req, Alt, S, F> FallbackResponse<Req, S::Response, S::Error> for OnService<S, F>
where
    S: Service<Alt> + Clone,
    F: Fn(&Req) -> Option<Alt>,
{
    type Note = Option<Alt>;
    type Future = Call<S, Alt>;

    fn note(&self, request: &Req) -> Option<Alt> {
        (self.request)(request)
    }

    fn answer(
        &self,
        failed: Result<S::Response, S::Error>,
        note: Option<Alt>,
    ) -> Result<Self::Future, Result<S::Response, S::Error>> {
        let Some(request) = note else {
            return Err(failed);
        };
        let template = self.template.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Call::new(template.clone(), request))
    }
}

/// Condition for the fallback.
pub trait When<Res, E> {
    /// Whether the fallback replaces `result`.
    fn applies(&self, result: Result<&Res, &E>) -> bool;
}

/// Fallback on every error, rejections included. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnError;

impl<Res, E> When<Res, E> for OnError {
    fn applies(&self, result: Result<&Res, &E>) -> bool {
        result.is_err()
    }
}

/// Fallback on selected errors. See [`Fallback::when`](super::Fallback::when).
#[derive(Clone, Copy)]
pub struct WhenError<P>(pub(super) P);

impl<Res, E, P: Fn(&E) -> bool> When<Res, E> for WhenError<P> {
    fn applies(&self, result: Result<&Res, &E>) -> bool {
        result.is_err_and(&self.0)
    }
}

/// Fallback on what a classifier judges as a failure, and on rejections. See
/// [`Fallback::classify`](super::Fallback::classify).
#[derive(Clone, Copy, Debug)]
pub struct OnFailure<C>(pub(super) C);

impl<Res, E, C> When<Res, E> for OnFailure<C>
where
    C: Classify<Res, E>,
    E: ServiceError,
{
    fn applies(&self, result: Result<&Res, &E>) -> bool {
        let rejected = result.is_err_and(|error| error.as_rejected().is_some());
        rejected || judge(&self.0, result).is_failure()
    }
}

macro_rules! opaque_debug {
    ($($name:literal $type:ty, <$($param:ident),*>;)*) => {$(
        impl<$($param),*> fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($name)
            }
        }
    )*};
}

opaque_debug! {
    "By(..)" By<F>, <F>;
    "ByAsync(..)" ByAsync<F>, <F>;
    "ByResult(..)" ByResult<F>, <F>;
    "OnService(..)" OnService<S, F>, <S, F>;
    "WhenError(..)" WhenError<P>, <P>;
}
