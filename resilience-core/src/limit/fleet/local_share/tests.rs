use std::time::Duration;

use super::*;
use crate::limit::{Quota, token_bucket::LimitOutcome};

const FIRST: u64 = 1_000;

fn at(millis: u64) -> Moment {
    Moment::from_nanos((FIRST + millis) * 1_000_000)
}

/// One token a second, ten at most.
fn plan() -> Plan {
    let quota = Quota::per(10, Duration::from_secs(10)).unwrap();
    Plan::new().limit("a", quota).unwrap()
}

fn left(remaining: u64) -> [Standing; 1] {
    let full_in = (10 - remaining) * 1_000_000;
    [Standing { remaining, full_in }]
}

/// How many calls a share of a third admits at `now`.
fn admitted(shares: &LocalShares, subject: &str, now: Moment) -> u64 {
    let mut admitted = 0;
    while take(shares, subject, now) {
        admitted += 1;
    }
    admitted
}

fn take(shares: &LocalShares, subject: &str, now: Moment) -> bool {
    let decision = shares.decide(subject, &plan(), 3, 1, |_| 1, now);
    decision.outcome.is_admitted()
}

#[test]
fn a_share_begins_with_its_part_of_what_was_left_less_what_others_may_have_taken() {
    for (age, expected) in [(0, 3), (3_000, 2), (6_500, 0), (60_000, 0)] {
        let shares = LocalShares::new();
        shares.note("s", &plan(), &left(9), 0, at(0));
        assert_eq!(admitted(&shares, "s", at(age)), expected, "{age} ms old");
    }
}

#[test]
fn a_share_of_a_subject_that_is_not_known_begins_empty_and_gains_its_part() {
    let shares = LocalShares::new();
    assert_eq!(admitted(&shares, "first", at(0)), 0);
    assert_eq!(admitted(&shares, "first", at(2_999)), 0);
    assert_eq!(admitted(&shares, "first", at(3_000)), 1);
    assert_eq!(
        admitted(&shares, "second", at(6_000)),
        2,
        "since the outage began"
    );
    assert_eq!(
        admitted(&shares, "third", at(600_000)),
        3,
        "no more than its part"
    );
    shares.heard();
    assert_eq!(
        admitted(&shares, "fourth", at(700_000)),
        0,
        "another outage"
    );
}

#[test]
fn a_wait_is_that_of_the_share() {
    let shares = LocalShares::new();
    let decision = shares.decide("s", &plan(), 3, 1, |_| 1, at(0));
    let wait = LimitOutcome::Wait {
        binding: 0,
        micros: 3_000_000,
    };
    assert_eq!(decision.outcome, wait);
    let decision = shares.decide("s", &plan(), 3, 1, |_| 4, at(0));
    assert_eq!(decision.outcome, LimitOutcome::Impossible { binding: 0 });
}

/// What the store is charged that holds `remaining` at `now`.
fn owed(shares: &LocalShares, remaining: u64, now: Moment) -> u64 {
    let settling = shares
        .settle("s", 1, true, now)
        .expect("something to settle");
    settling.owed(&left(remaining), now)[0]
}

#[test]
fn what_was_admitted_is_owed_as_far_as_the_share_is_short_of_it() {
    let shares = LocalShares::new();
    shares.note("s", &plan(), &left(9), 0, at(0));
    assert_eq!(admitted(&shares, "s", at(0)), 3);
    assert_eq!(owed(&shares, 9, at(0)), 3);
    assert_eq!(owed(&shares, 2, at(0)), 2, "as far as there is any");
    for second in 1..=10 {
        admitted(&shares, "s", at(second * 3_000));
    }
    // Thirteen in all, of which ten came in.
    assert_eq!(owed(&shares, 10, at(30_000)), 4, "rounded up");
    assert_eq!(owed(&shares, 10, at(36_000)), 2, "two more have come in");
}

#[test]
fn what_the_store_can_only_hold_without_its_data_is_owed() {
    let shares = LocalShares::new();
    shares.note("s", &plan(), &left(2), 0, at(0));
    assert!(
        shares.settle("s", 0, true, at(1)).is_none(),
        "no step has failed"
    );
    // A token more is within the error of the projection.
    assert_eq!(owed(&shares, 3, at(0)), 0);
    assert_eq!(owed(&shares, 10, at(0)), 7);
    assert_eq!(owed(&shares, 10, at(4_000)), 3);
    assert_eq!(owed(&shares, 10, at(20_000)), 0, "it would be full again");
    shares.put_back("s", &plan(), |_| -5);
    assert_eq!(owed(&shares, 10, at(0)), 2, "five were put back");
}

#[test]
fn a_subject_is_settled_once_and_then_the_store_decides() {
    let shares = LocalShares::new();
    shares.note("s", &plan(), &left(9), 0, at(0));
    assert!(take(&shares, "s", at(0)));
    assert_eq!(shares.owing(), [Box::<str>::from("s")]);
    let settling = shares
        .settle("s", 1, true, at(1))
        .expect("something to settle");
    assert!(shares.settle("s", 1, true, at(1)).is_none(), "in progress");
    assert!(take(&shares, "s", at(1)), "meanwhile");
    settling.done(&left(8), at(2), false);
    assert!(shares.has("s"), "the second call is owed");
    assert_eq!(owed(&shares, 8, at(2)), 1);
    drop(shares.settle("s", 1, true, at(2)));
    let settling = shares.settle("s", 1, true, at(2)).expect("it was given up");
    settling.done(&left(7), at(2), true);
    assert!(shares.has("s"), "others may not have settled yet");
    assert_eq!(admitted(&shares, "s", at(2)), 1, "the rest of the share");
    let settling = shares
        .settle("s", 1, true, at(3))
        .expect("something to settle");
    settling.done(&left(6), at(3), false);
    assert!(!shares.has("s"));
    assert!(take(&shares, "s", at(3)));
    shares.charged("s", &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(
        shares.settle("s", 1, true, at(3)).is_none() && shares.has("s"),
        "it owes nothing"
    );
    assert!(shares.settle("s", 1, false, at(3)).is_none() && !shares.has("s"));
    assert!(shares.owing().is_empty() && shares.settle("s", 1, true, at(4)).is_none());
}

#[test]
fn more_subjects_than_there_is_room_for_start_empty_again() {
    let shares = LocalShares::new();
    shares.note("s", &plan(), &left(10), 0, at(0));
    assert!(take(&shares, "s", at(0)));
    let most = SHARDS * SUBJECTS;
    for number in 0..most + most / 8 {
        take(&shares, &number.to_string(), at(0));
    }
    let kept: usize = (shares.shards.iter())
        .map(|shard| shard.lock().unwrap().subjects.len())
        .sum();
    assert!(kept <= most, "{kept}");
    assert_eq!(shares.owing().len(), kept);
    assert_eq!(shares.owing.load(Relaxed), kept);
    assert_eq!(
        admitted(&shares, "s", at(2_999)),
        0,
        "nothing is paid twice"
    );
}
