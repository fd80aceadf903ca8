//! The layers of this toolkit, in their default configuration unless said otherwise.

use resilience_core::{
    Error,
    bulkhead::{Bulkhead, BulkheadBuilder},
    deadline::Timeout,
    keyed::Keyed,
    retry::{Replayable, Retry},
};
use tower::{ServiceBuilder, service_fn};

use super::tower_own::{LIMIT, PATIENCE};
use crate::subject::{Failure, Request, Subject, answer};

pub(crate) const TIME_WINDOW: &str = "breaker, time window";
pub(crate) const COUNT_WINDOW: &str = "breaker, count window";
pub(crate) const SLOW_CALLS: &str = "breaker, time window, slow calls";
pub(crate) const KEYED: &str = "breaker, keyed";
pub(crate) const DEADLINE: &str = "deadline";
pub(crate) const RETRY: &str = "retry, budget";
pub(crate) const BULKHEAD: &str = "bulkhead";
pub(crate) const SHED: &str = "load shed";
pub(crate) const FIVE: &str = "five (deadline, retry, breaker, bulkhead, shed)";

pub(super) fn subjects() -> Vec<Subject> {
    let bare = service_fn(answer::<Error<Failure>>);
    let stack = || ServiceBuilder::new();
    let keyed_bulkhead = bulkhead().keyed(Keyed::new()).expect("a valid bulkhead");
    let bulkhead = bulkhead().build().expect("a valid bulkhead");
    vec![
        // What it costs to move the error of a typed stack around, before any layer does anything.
        Subject::new("no layer, typed error", bare),
        Subject::new(DEADLINE, stack().layer(deadline().layer()).service(bare)).on_two_cores(),
        Subject::new(BULKHEAD, stack().layer(bulkhead.layer()).service(bare)).on_two_cores(),
        Subject::new(RETRY, stack().layer(retry().layer()).service(bare)).on_two_cores(),
        Subject::new(
            "three (deadline, retry, bulkhead)",
            stack()
                .layer(deadline().layer())
                .layer(retry().layer())
                .layer(bulkhead.layer())
                .service(bare),
        )
        .on_two_cores(),
        Subject::new(
            "bulkhead, keyed",
            stack().layer(keyed_bulkhead.layer(key)).service(bare),
        ),
    ]
}

fn deadline() -> Timeout {
    Timeout::new("bench", PATIENCE).expect("a valid timeout")
}

/// Three attempts, and the default budget: 20 % and 10 per second.
fn retry() -> Retry {
    Retry::builder("bench").build().expect("a valid retry")
}

/// May be sent again, like a GET.
impl Replayable for Request {
    fn replay(&self) -> Option<Self> {
        Some(*self)
    }
}

/// Without a queue, as it is by default: rejects when it is full.
fn bulkhead() -> BulkheadBuilder {
    Bulkhead::builder("bench").max_concurrent(LIMIT)
}

/// Sixteen keys in turn.
const fn key(request: &Request) -> u64 {
    request.0 % 16
}
