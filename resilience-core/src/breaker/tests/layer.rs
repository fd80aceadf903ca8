//! The layer over services that misbehave, on a paused clock.

use std::time::Duration;

use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{
    Error, Reason,
    breaker::{CircuitBreaker, HalfOpen, OpenFor, State, Window},
};

const SECOND: Duration = Duration::from_secs(1);

fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder("test")
        .window(Window::count(10))
        .minimum_calls(4)
        .failure_rate(0.5)
        .open_for(OpenFor::fixed(5 * SECOND))
        .half_open(HalfOpen::probes(2))
        .build()
        .unwrap()
}

/// Answers each request as it says.
async fn echo(result: Result<u32, u32>) -> Result<u32, Error<u32>> {
    result.map_err(Error::Service)
}

#[tokio::test(start_paused = true)]
async fn opens_rejects_probes_and_closes() {
    let breaker = breaker();
    let mut service = breaker.layer().layer(service_fn(echo));
    for n in 0..4 {
        let result = service.ready().await.unwrap().call(Err(n)).await;
        assert_eq!(result, Err(Error::Service(n)));
    }
    assert_eq!(breaker.state(), State::Open);
    let rejected = service
        .ready()
        .await
        .unwrap()
        .call(Ok(1))
        .await
        .unwrap_err();
    let rejected = rejected.rejected().unwrap();
    assert_eq!(
        (rejected.reason(), rejected.retry_after()),
        (Reason::Open, Some(5 * SECOND))
    );
    advance(5 * SECOND).await;
    assert_eq!(service.ready().await.unwrap().call(Ok(1)).await, Ok(1));
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(service.ready().await.unwrap().call(Ok(1)).await, Ok(1));
    assert_eq!(breaker.state(), State::Closed);
}
