//! The layers of this toolkit, in their default configuration unless said otherwise.

use resilience_core::{Error, deadline::Timeout};
use tower::{ServiceBuilder, service_fn};

use super::tower_own::PATIENCE;
use crate::subject::{Failure, Subject, answer};

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
    vec![Subject::new(DEADLINE, stack().layer(deadline().layer()).service(bare)).on_two_cores()]
}

fn deadline() -> Timeout {
    Timeout::new("bench", PATIENCE).expect("a valid timeout")
}
