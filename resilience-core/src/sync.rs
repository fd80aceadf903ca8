//! Atomics and locks of the state machines: std's, or loom's while its model checker runs the unit tests (`--cfg loom`).

#[cfg(all(loom, test))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
