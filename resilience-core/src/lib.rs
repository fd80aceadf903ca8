//! Resilience patterns as tower layers.

pub mod breaker;
pub mod bulkhead;
pub mod classify;
pub mod clock;
pub mod deadline;
pub mod error;
pub mod execute;
pub mod fallback;
pub mod keyed;
pub mod lift;
pub mod retry;
pub mod shed;
#[cfg(feature = "sqlx")]
pub mod sqlx;
pub(crate) mod stripe;
pub(crate) mod sync;
pub mod telemetry;
#[cfg(test)]
pub(crate) mod test_log;
pub mod until;

pub use classify::{Classify, Verdict};
pub use clock::{Clock, Moment};
pub use error::{Error, InvalidConfig, Pattern, Reason, Rejected, ServiceError};
