//! Counts what one call of each subject allocates, and what the rate limit of one more key does; one JSON line each. See the library's documentation.

use std::{alloc::System, error::Error};

use resilience_benches::{subject, subjects};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: u64 = 1_000;
/// Of the family whose memory is measured.
const KEYS: u64 = 100_000;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = subject::runtime();
    let _within = runtime.enter();
    for subject in subjects::all() {
        let mut caller = subject.caller();
        // What is set up by the first calls (buffers that grow to their size) is no cost of a call.
        caller(CALLS, 0);
        let region = Region::new(ALLOCATOR);
        caller(0, CALLS);
        let change = region.change();
        let line = serde_json::json!({
            "subject": subject.name,
            "allocations": (change.allocations + change.reallocations) as f64 / CALLS as f64,
            "bytes": change.bytes_allocated as f64 / CALLS as f64,
        });
        println!("{line}");
    }
    let region = Region::new(ALLOCATOR);
    let limits = subjects::limits_of(KEYS);
    let change = region.change();
    let bytes = change.bytes_allocated as f64 - change.bytes_deallocated as f64;
    let line = serde_json::json!({
        "subject": subjects::LIMIT_OF_A_KEY,
        "allocations": change.allocations as f64 / KEYS as f64,
        "bytes": bytes / KEYS as f64 - size_of::<u64>() as f64,
    });
    println!("{line}");
    drop(limits);
    Ok(())
}
