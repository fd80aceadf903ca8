//! A call that passes allocates nothing, in any layer of ours: the subjects are those that the benches time.

use crate::{
    alone, count,
    subject::{self, Subject},
};

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
        let subjects = ours::subjects();
        assert!(!subjects.is_empty());
        for subject in subjects {
            assert_eq!(allocations(&subject), (0, 0), "{}", subject.name);
        }
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
