//! The rows: the bare service, tower's own layers, the peers, ours.

pub(crate) mod others;
pub(crate) mod ours;
pub(crate) mod seatbelt;
pub(crate) mod tower_own;
pub(crate) mod tower_resilience;

use crate::subject::{Subject, bare};

/// Every subject, in the order of the table. To be called within a tokio runtime (seatbelt's clock asks for one).
#[must_use]
pub fn all() -> Vec<Subject> {
    let mut all = vec![bare()];
    all.extend(tower_own::subjects());
    all.extend(tower_resilience::subjects());
    all.extend(seatbelt::subjects());
    all.extend(others::subjects());
    all.extend(ours());
    all
}

/// The layers of this toolkit.
#[must_use]
pub fn ours() -> Vec<Subject> {
    ours::subjects()
}
