//! What the types promise: the service's own error type, whatever it is, and no bounds that are not needed.

use std::{rc::Rc, time::Duration};

use resilience_core::{
    Error, Rejected, ServiceError,
    breaker::CircuitBreaker,
    bulkhead::Bulkhead,
    deadline::Timeout,
    retry::{Replayable, Retry},
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

/// An application's error, which joins in with two small impls.
#[derive(Debug)]
enum OrderError {
    Rejected(Rejected),
    OutOfStock,
}

impl From<Rejected> for OrderError {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl ServiceError for OrderError {
    fn as_rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::OutOfStock => None,
        }
    }
}

/// A request that can be neither cloned nor sent to another thread.
struct Order(Rc<u32>);

impl Replayable for Order {
    fn replay(&self) -> Option<Self> {
        None
    }
}

/// Five layers over a service whose error, request, response and future stay where they are: on one thread, not
/// `'static`, not `Clone`. The error type of the stack is that of the service, or this would not compile.
async fn through_a_stack<E: ServiceError>(fails: impl Fn() -> E) -> Result<Rc<u32>, E> {
    let timeout = Timeout::new("types", Duration::from_secs(1)).unwrap();
    let retry = Retry::builder("types").build().unwrap();
    let bulkhead = Bulkhead::builder("types").build().unwrap();
    let breaker = CircuitBreaker::builder("types").build().unwrap();
    let borrowed = &fails;
    let mut stack = ServiceBuilder::new()
        .layer(timeout.layer())
        .layer(retry.layer())
        .layer(bulkhead.layer())
        .layer(breaker.layer())
        .service(service_fn(move |order: Order| async move {
            if *order.0 == 0 {
                Err(borrowed())
            } else {
                Ok(order.0)
            }
        }));
    assert_eq!(*keep(&mut stack).await?, 7);
    stack.ready().await?.call(Order(Rc::new(0))).await
}

async fn keep<S, E>(stack: &mut S) -> Result<Rc<u32>, E>
where
    S: Service<Order, Response = Rc<u32>, Error = E>,
{
    stack.ready().await?.call(Order(Rc::new(7))).await
}

#[tokio::test(start_paused = true)]
async fn an_applications_own_error_stays_as_it_is() {
    let error = through_a_stack(|| OrderError::OutOfStock)
        .await
        .unwrap_err();
    assert!(matches!(error, OrderError::OutOfStock), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_ready_made_error_does_not_nest() {
    let error: Error<&str> = through_a_stack(|| Error::Service("out of stock"))
        .await
        .unwrap_err();
    assert_eq!(error, Error::Service("out of stock"));
}

#[tokio::test(start_paused = true)]
async fn a_boxed_error_is_not_boxed_again() {
    let error: BoxError = through_a_stack(|| BoxError::from(std::fmt::Error))
        .await
        .unwrap_err();
    assert!(error.is::<std::fmt::Error>(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_the_stack_is_found_in_any_of_them() {
    let bulkhead = Bulkhead::builder("types")
        .max_concurrent(1)
        .build()
        .unwrap();
    let _taken = bulkhead.try_acquire().unwrap();
    async fn rejection<E: ServiceError>(bulkhead: &Bulkhead) -> Option<Rejected> {
        let service = bulkhead
            .layer()
            .layer(service_fn(async |(): ()| Ok::<_, E>(())));
        let error = service.oneshot(()).await.err()?;
        error.as_rejected().cloned()
    }
    let of_own = rejection::<OrderError>(&bulkhead)
        .await
        .expect("a rejection");
    assert_eq!(of_own.name(), "types");
    let of_ready_made = rejection::<Error<()>>(&bulkhead)
        .await
        .expect("a rejection");
    let of_boxed = rejection::<BoxError>(&bulkhead).await.expect("a rejection");
    assert_eq!(
        [of_own.reason(); 2],
        [of_ready_made.reason(), of_boxed.reason()]
    );
}
