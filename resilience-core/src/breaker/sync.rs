//! The atomics and the lock of the machine: std's, or loom's when its interleavings are explored.

#[cfg(not(all(loom, test)))]
pub(super) use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
};

#[cfg(all(loom, test))]
pub(super) use loom::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
};
