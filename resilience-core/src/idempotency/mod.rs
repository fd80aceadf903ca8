//! Idempotency keys: work that is asked for more than once takes effect once, across instances.
//!
//! - [`record`] is the state machine of one key: pure, and the reference that every store is held to.
//! - [`IdempotencyStore`] is what a store offers; [`InProcess`] is the one for a single process.
//! - `inbox` (features `sqlx-postgres`, `sqlx-sqlite`) keeps the record in the transaction that does the work.

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
pub mod inbox;
mod memory;
pub mod record;
#[cfg(all(test, not(loom)))]
mod record_tests;
pub mod store;

pub use memory::InProcess;
pub use store::{Changes, IdempotencyStore};
