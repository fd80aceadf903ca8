//! Tests over real servers on loopback, in real time (a paused clock runs ahead of the network),
//! and over a transport without a network under the paused clock, where times are exact.

mod breaking;
mod deadlines;
mod fake;
mod feel;
mod keys;
mod places;
mod retries;
mod server;
mod upstreams;
mod verdicts;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use resilience_core::{
    Pattern, Reason, Rejected, Verdict,
    breaker::{CircuitBreaker, State},
    bulkhead::Bulkhead,
    deadline::{self, Deadline},
    keyed::Keyed,
    retry::{Backoff, GaveUp},
};
use tokio::time::Instant;

use self::{
    fake::Fake,
    server::{Server, Step, answer, head, write},
};
use super::*;
use crate::{OnBodyEnd, body::rejected_in, headers};

const MS: Duration = Duration::from_millis(1);

/// A client with short waits between attempts.
fn builder() -> ClientBuilder {
    let backoff = Backoff::fixed(MS);
    let retry = Retry::builder("pay").backoff(backoff).build().unwrap();
    Client::builder("pay").retry(retry)
}

fn client() -> Client {
    builder().build().unwrap()
}

fn breakers(failures: u32) -> KeyedCircuitBreaker<Host> {
    let builder = CircuitBreaker::builder("pay").consecutive_failures(failures);
    builder.keyed(Keyed::new()).unwrap()
}

/// Fails the first request and responds to all others.
async fn fails_once() -> Server {
    Server::start(|n| match n {
        1 => answer("503 Service Unavailable", "", ""),
        _ => answer("200 OK", "", "paid"),
    })
    .await
}

fn host(server: &Server) -> Host {
    Host::of(&server.url().parse().unwrap())
}

fn rejected(result: Result<Response, Error<reqwest::Error>>) -> Rejected {
    match result {
        Err(Error::Rejected(rejected)) => rejected,
        other => panic!("{other:?}"),
    }
}
