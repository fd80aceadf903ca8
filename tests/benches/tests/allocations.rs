//! A call that passes allocates nothing, in any layer of ours. Deterministic, so it is held to in every test run.

use resilience_benches::report::{Allocations, count_allocations};

fn count() -> Vec<Allocations> {
    count_allocations(env!("CARGO_BIN_EXE_count-allocations"))
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
