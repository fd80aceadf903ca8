//! A call that passes allocates nothing, in any layer of ours. Deterministic, so it is held to in every test run.

use resilience_benches::{
    report::{Allocations, count_allocations},
    subject::runtime,
    subjects,
};

fn count() -> Vec<Allocations> {
    count_allocations(env!("CARGO_BIN_EXE_count-allocations"))
}

#[test]
fn a_call_that_passes_allocates_nothing_in_any_layer_of_ours() {
    let runtime = runtime();
    let _within = runtime.enter();
    let rows = count();
    for ours in subjects::ours() {
        let row = rows.iter().find(|row| row.name == ours.name);
        let row = row.unwrap_or_else(|| panic!("{} was not counted", ours.name));
        assert_eq!((row.allocations, row.bytes), (0.0, 0.0), "{row:?}");
    }
}

#[test]
fn the_counter_sees_what_a_peer_allocates() {
    let rows = count();
    let peer = rows
        .iter()
        .find(|row| row.name.starts_with("tower-resilience breaker"))
        .expect("a row of the peer's");
    assert!(peer.allocations >= 1.0, "{peer:?}");
}
