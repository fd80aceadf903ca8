//! Counters of an inbox.

use super::{Dialect, Shared};
use crate::{
    error::Pattern,
    telemetry::{self, Reading, Source, counters},
};

counters! {
    /// Counters of an inbox.
    pub(super) struct Totals;
    /// Counts of an [`Inbox`](super::Inbox) since it was built; from [`snapshot`](super::Inbox::snapshot).
    ///
    /// A claim counts when it is answered, whether or not its transaction commits: a transaction that is begun again claims
    /// again.
    pub struct InboxSnapshot;
    fresh = INBOX_CLAIMS "fresh", "Claims that were granted.";
    replayed = INBOX_CLAIMS "replayed", "Claims that the database answered with a recorded outcome.";
    replayed_in_front = INBOX_CLAIMS "replayed_in_front",
        "Calls that the front answered with a recorded outcome.";
    mismatched = INBOX_CLAIMS "mismatched", "Claims on a key that belongs to other work.";
    busy = INBOX_CLAIMS "busy", "Claims that found another transaction holding the key for longer than they wait.";
    retries = INBOX_RETRIES, "Transactions that were begun again.";
    front_errors = INBOX_FRONT_ERRORS, "Steps of the front that failed or had no answer within its budget.";
}

impl<DB: Dialect> Source for Shared<DB> {
    fn pattern(&self) -> Pattern {
        Pattern::Idempotency
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
        if let Some(front) = &self.front {
            out(Reading {
                metric: &telemetry::FLEET_DEGRADED,
                attribute: Pattern::Idempotency.as_str(),
                value: u64::from(!front.is_available()),
            });
        }
    }
}

impl<DB> Drop for Shared<DB> {
    fn drop(&mut self) {
        (self.retire)(self);
    }
}
