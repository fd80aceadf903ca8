//! Resilience patterns as tower layers.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod classify;
pub mod clock;
pub mod error;
pub(crate) mod stripe;
pub mod telemetry;
pub mod until;

pub use classify::{Classify, Verdict};
pub use clock::{Clock, Moment};
pub use error::{Error, InvalidConfig, Pattern, Reason, Rejected, ServiceError};
