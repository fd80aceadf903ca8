//! The atomics and the lock of the machine: std's, or loom's when its interleavings are explored.

pub(super) use crate::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
};
