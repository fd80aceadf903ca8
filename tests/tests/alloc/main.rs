//! What allocates nothing. A program of its own with a counter that sees all threads: every test runs in [`alone`].

mod layers;
mod leased;
#[path = "../../benches/src/subject.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "a file of the benches, which use all of it"
)]
mod subject;

use std::{
    alloc::System,
    sync::{Mutex, PoisonError},
};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Runs one test at a time. The harness itself may still allocate when a test before this one ends: count several times,
/// and take the least.
fn alone(test: impl FnOnce()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    test();
}

/// What is allocated from here on, by all threads.
fn count() -> Region<'static, System> {
    Region::new(ALLOCATOR)
}
