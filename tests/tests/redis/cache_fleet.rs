//! Caches of a fleet, in short. `make figures` and `make torture` have the full counts.

use std::path::Path;

use resilience_tests::cache_scene::{
    Resurrected, RoundTrips, Stampede, fail_over, in_process, over_redis, race, round_trips,
    stampede, times_to_be_told,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_is_one_command_and_a_miss_three_of_which_two_are_waited_for() {
    let expected = RoundTrips {
        hit: 1.0,
        miss: 3.0,
        miss_waited: 2.0,
        many: 1.0,
    };
    assert_eq!(round_trips(20).await, expected);
}

async fn loads(killed: bool) -> usize {
    let plan = Stampede {
        processes: 3,
        callers: 50,
        expiries: 2,
        killed,
    };
    stampede(Path::new(env!("CARGO_BIN_EXE_torture")), plan).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_expires_is_loaded_once_by_all_processes() {
    assert_eq!(loads(false).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_while_it_loads_costs_one_more_load() {
    assert_eq!(loads(true).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_stays_stale_whoever_changes_it_and_whichever_connections_are_cut() {
    let raced = race(150).await;
    println!("{raced:?}");
    assert_eq!(raced.stale, 0, "{raced:?}");
    assert!(raced.held > 0 && raced.cuts > 0, "{raced:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_stays_stale_after_a_failover_in_which_changes_are_lost() {
    let failed = fail_over(40).await;
    println!("{failed:?}");
    assert_eq!(failed.stale, 0, "{failed:?}");
    assert!(failed.held > 0 && failed.lost > 0, "{failed:?}");
}

fn brings_nothing_back(raced: Resurrected) {
    println!("{raced:?}");
    assert_eq!(raced.resurrected, 0, "{raced:?}");
    assert!(raced.overtaken > 0, "{raced:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_overtaken_by_an_invalidation_brings_nothing_back() {
    brings_nothing_back(in_process(2_000).await);
    brings_nothing_back(over_redis(300).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_instance_of_a_fleet_is_told_of_an_invalidation() {
    let times = times_to_be_told(5, 20).await;
    assert_eq!(times.len(), 20);
}
