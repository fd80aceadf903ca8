//! The counter of allocations can see one. That our layers allocate nothing is held to in `tests/tests/alloc`.

use resilience_benches::report::count_allocations;

#[test]
fn the_counter_sees_what_a_peer_allocates() {
    let rows = count_allocations(env!("CARGO_BIN_EXE_count-allocations"));
    let peer = rows
        .iter()
        .find(|row| row.name.starts_with("tower-resilience breaker"))
        .expect("a row of the peer's");
    assert!(peer.allocations >= 1.0, "{peer:?}");
}
