//! Outcomes that the store does not take at once.

use std::time::Duration;

/// What the caller gets while the outcome of its work is not recorded, because the store does not answer.
///
/// A caller that holds an outcome which is not recorded may see another one later: if this process dies before the store
/// is back, the work counts as [unknown](super::Effect).
///
/// | policy | the caller | over HTTP |
/// |---|---|---|
/// | [`Hold`](Self::Hold), the default with 10 s | waits for the record, at most until its [deadline](crate::deadline); then it is rejected with [`Unrecorded`](crate::Reason::Unrecorded) | 503 with `Idempotency-Unrecorded: true` |
/// | [`Answer`](Self::Answer) | gets the outcome after the time budget of one step, with [`Recorded::Pending`](super::Recorded::Pending) | the response, with `Idempotency-Unrecorded: true` |
///
/// In both cases the step is repeated in the background for as long as the process lives and the record would be kept, also
/// after the lease has ended, and a [shutdown](super::Idempotency::shutdown) waits for it. Applies to outcomes that are to be
/// recorded; what gives the key back or leaves it unknown is returned after the time budget of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnrecorded {
    /// Holds the outcome for at most this time.
    Hold(Duration),
    /// Returns the outcome.
    Answer,
}

impl Default for OnUnrecorded {
    fn default() -> Self {
        Self::Hold(Duration::from_secs(10))
    }
}
