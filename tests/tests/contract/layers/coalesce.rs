//! Coalescing, of requests with and without a key.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use resilience_core::{
    Coalesce,
    conformance::layer::{Answer, Ask, Instance, Subject},
};
use tower::BoxError;

const ALWAYS_READY: &str = "it is always ready: no caller waits";

fn coalescing(key: impl Fn(&Ask) -> Option<u64> + Clone + Send + Sync + 'static) -> Instance {
    let coalesce: Coalesce<u64, Answer, BoxError> = Coalesce::builder("contract").build().unwrap();
    let counted = coalesce.clone();
    Instance::new(move || coalesce.layer(key.clone()))
        .held(move || counted.snapshot().waiting as u64)
}

#[test]
fn coalesce_of_requests_without_a_key() {
    Subject::new("coalesce without keys", || async { coalescing(|_| None) })
        .exempt("readiness_wakes_all_who_wait_for_it", ALWAYS_READY)
        .keeps_every_contract();
}

/// Each request has a key of its own.
#[test]
fn coalesce_of_requests_that_join_no_other() {
    let make = || async {
        let keys = Arc::new(AtomicU64::new(0));
        coalescing(move |_| Some(keys.fetch_add(1, Relaxed)))
    };
    Subject::new("coalesce", make)
        .exempt("readiness_wakes_all_who_wait_for_it", ALWAYS_READY)
        .keeps_every_contract();
}
