//! The layers of this toolkit.

use crate::subject::Subject;

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
    Vec::new()
}
