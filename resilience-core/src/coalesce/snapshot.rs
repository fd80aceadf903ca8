//! The state of a [`Coalesce`](super::Coalesce) at one moment.

use serde::Serialize;

/// State of a [`Coalesce`](super::Coalesce) at one moment. Calls without a key are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CoalesceSnapshot {
    /// Calls in progress that can be joined.
    pub in_progress: usize,
    /// Callers that wait for one of these, those that started them included.
    pub waiting: usize,
    /// Calls started so far.
    pub started: u64,
    /// Callers that joined a call so far.
    pub joined: u64,
    /// Callers that began again so far, because the call they had joined failed.
    pub reruns: u64,
    /// Callers rejected so far, because the second call they had joined failed too.
    pub rejected: u64,
}
