//! A call that passes allocates nothing, in any layer of ours: the subjects are those that the benches time.

use std::convert::Infallible;

use resilience_core::Cache;

use crate::{
    alone, count,
    subject::{self, Subject},
};

#[path = "../../benches/src/subjects/cache.rs"]
#[allow(dead_code, reason = "a file of the benches, which use all of it")]
mod cache;
#[path = "../../benches/src/subjects/ours.rs"]
mod ours;

/// What `ours` is set up with.
mod tower_own {
    use std::time::Duration;

    pub(super) const LIMIT: usize = 32;
    pub(super) const PATIENCE: Duration = Duration::from_secs(30);
}

const CALLS: u64 = 1_000;

/// How often something is allocated during calls of `subject`, and how many bytes: the least of a few times.
fn allocations(subject: &Subject) -> (usize, usize) {
    let mut caller = subject.caller();
    // What is set up by the first calls (buffers that grow to their size) is no cost of a call.
    caller(CALLS, 0);
    let once = |_| {
        let region = count();
        caller(0, CALLS);
        let change = region.change();
        let times = change.allocations + change.reallocations;
        (times, change.bytes_allocated)
    };
    (0..5).map(once).min().expect("five times")
}

#[test]
fn a_call_that_passes_allocates_nothing_in_any_layer_of_ours() {
    alone(|| {
        let runtime = subject::runtime();
        let _within = runtime.enter();
        let (ours, cache) = (ours::subjects(), cache::subjects());
        assert!(!ours.is_empty() && !cache.is_empty());
        for subject in ours.into_iter().chain(cache) {
            assert_eq!(allocations(&subject), (0, 0), "{}", subject.name);
        }
    });
}

/// Keys that allocate when they are cloned, more of them than are counted as hot ones at a time.
#[test]
fn a_hit_of_one_of_many_texts_allocates_nothing() {
    const KEYS: usize = 1_000;
    alone(|| {
        let runtime = subject::runtime();
        let _within = runtime.enter();
        let cache = Cache::<String, u64>::builder("texts").build();
        let cache = cache.expect("a valid cache");
        let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key:08}")).collect();
        let hits = async |times| {
            for _ in 0..times {
                for key in &keys {
                    let load = || async { Ok::<_, Infallible>(7) };
                    let hit = cache.get_or_load(key, load).await;
                    assert_eq!(hit.expect("it never fails").as_deref(), Some(&7));
                }
            }
        };
        // Loads them, and counts as many as it can.
        runtime.block_on(hits(50));
        let once = |_| {
            let region = count();
            runtime.block_on(hits(5));
            let change = region.change();
            change.allocations + change.reallocations
        };
        assert_eq!((0..5).map(once).min(), Some(0));
    });
}

/// Each call allocates once, and so the test above can fail.
#[test]
fn the_counter_sees_what_a_call_allocates() {
    alone(|| {
        let boxes = tower::service_fn(|request| {
            drop(Box::new(request));
            subject::answer::<subject::Failure>(request)
        });
        let (times, bytes) = allocations(&Subject::new("a box", boxes));
        assert!(times >= 1_000 && bytes >= 8_000, "{times}, {bytes}");
    });
}
