//! How the end of a body is judged.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) partial_read: PartialRead,
    pub(super) stalled_after: Duration,
}

/// How a body that was dropped before its end is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartialRead {
    /// As its head: the reader lost interest, the server did nothing wrong. But as a failure if the
    /// reader was waiting for data when it gave up, and had waited for
    /// [`stalled_after`](super::OnBodyEnd::stalled_after) or beyond the deadline.
    #[default]
    AsHead,
    /// Not at all: the call counts as ignored.
    Ignored,
    /// As a failure.
    Failed,
}
