//! The record, step by step.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Claim, Claimed, Completion, Grant, Holder, Loss, Phase, Previous, Record, StoreResolution,
    Takeover, WriteOutcome,
};

const MS: u64 = 1000;
const START: u64 = 1_000_000_000 * MS;
const LEASE: u64 = 100;
const RETENTION: u64 = 1_000;

fn claim(owner: &str) -> Claim {
    Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms: LEASE,
        retention_ms: RETENTION,
        takeover: Takeover::Ended,
    }
}

fn done(outcome: &'static str) -> Completion {
    Completion {
        outcome: Bytes::from_static(outcome.as_bytes()),
        ttl_ms: 500,
    }
}

#[track_caller]
fn granted(claimed: Claimed) -> Grant {
    match claimed {
        Claimed::New(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

/// Claims, and is the holder.
#[track_caller]
fn hold(record: &mut Record, owner: &str, now: u64) -> Holder {
    let claim = claim(owner);
    let grant = granted(record.claim(&claim, now));
    Holder::new(&claim, &grant)
}

#[test]
fn the_first_claim_is_granted_and_the_second_is_told_how_long_the_first_may_take() {
    let mut record = Record::default();
    let grant = granted(record.claim(&claim("a"), START));
    assert_eq!((grant.attempt, grant.fence), (1, START));
    assert_eq!((grant.previous, grant.checkpoint), (Previous::None, None));
    let busy = record.claim(&claim("b"), START + 40 * MS);
    assert_eq!(busy, Claimed::Busy { remaining_ms: 60 });
    // To the microsecond, rounded up: a caller that waits this long is not refused for coming too early.
    let busy = record.claim(&claim("b"), START + LEASE * MS - 1);
    assert_eq!(busy, Claimed::Busy { remaining_ms: 1 });
}

#[test]
fn a_claim_whose_answer_was_lost_is_answered_the_same_again() {
    let mut record = Record::default();
    let first = granted(record.claim(&claim("a"), START));
    let again = record.claim(&claim("a"), START + 50 * MS);
    assert_eq!(again, Claimed::Mine(first.clone()));
    // Its lease has begun again and has ended, without another claim.
    let late = record.claim(&claim("a"), START + 500 * MS);
    assert_eq!(late, Claimed::Mine(first));
}

#[test]
fn what_is_done_is_replayed_until_its_time_is_over() {
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    let at = START + 10 * MS;
    assert_eq!(record.complete(&holder, &done("7"), at), WriteOutcome::Kept);
    for owner in ["a", "b"] {
        let replayed = record.claim(&claim(owner), at + 499 * MS);
        let expected = Claimed::Done {
            outcome: Bytes::from_static(b"7"),
            age_ms: 499,
            fence: holder.fence,
        };
        assert_eq!(replayed, expected);
    }
    let next = granted(record.claim(&claim("b"), at + 500 * MS));
    assert!(next.fence > holder.fence);
    assert_eq!((next.attempt, next.previous), (1, Previous::None));
}

#[test]
fn a_completion_whose_answer_was_lost_is_accepted_again_and_changes_nothing() {
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    assert_eq!(
        record.complete(&holder, &done("7"), START),
        WriteOutcome::Kept
    );
    let before = record.clone();
    let again = record.complete(&holder, &done("8"), START + 9 * MS);
    assert_eq!((again, record), (WriteOutcome::Kept, before));
}

#[test]
fn another_fingerprint_under_the_key_is_a_mismatch_in_every_phase() {
    let other = Claim {
        fingerprint: Bytes::from_static(b"other"),
        ..claim("b")
    };
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    let mut unknown = record.clone();
    unknown.unknown(&holder, START);
    let mut completed = record.clone();
    completed.complete(&holder, &done("7"), START);
    // Given back, with something left.
    let mut begun = record.clone();
    begun.checkpoint(&holder, &Bytes::from_static(b"half"), LEASE, START);
    begun.release(&holder, START);
    let mut doubted = record.clone();
    let later = START + LEASE * MS;
    let second = hold(&mut doubted, "b", later);
    assert_eq!(second.previous, Previous::Ended);
    doubted.release(&second, later);
    for mut record in [record, unknown, completed, begun, doubted] {
        let before = record.clone();
        assert_eq!(record.claim(&other, START), Claimed::Mismatch);
        assert_eq!(record, before);
    }
}

#[test]
fn a_key_that_was_given_back_with_nothing_left_is_free_for_other_work() {
    let other = Claim {
        fingerprint: Bytes::from_static(b"other"),
        ..claim("b")
    };
    let mut record = Record::default();
    let first = hold(&mut record, "a", START);
    record.release(&first, START);
    let grant = granted(record.claim(&other, START));
    assert_eq!(grant.fence, first.fence + 1);
    assert_eq!((grant.attempt, grant.previous), (2, Previous::Released));
    // The key belongs to that work now; steps of the first holder are refused.
    assert_eq!(record.claim(&claim("c"), START), Claimed::Mismatch);
    let taken = WriteOutcome::Lost(Loss::Taken);
    assert_eq!(record.complete(&first, &done("7"), START), taken);
    let second = Holder::new(&other, &grant);
    assert_eq!(
        record.complete(&second, &done("8"), START),
        WriteOutcome::Kept
    );
}

/// A record that goes with its lease takes the fence, the fingerprint and the checkpoint along.
#[test]
fn a_crashed_attempt_hands_over_its_checkpoint_and_its_fence_is_left_behind() {
    let mut record = Record::default();
    let first = hold(&mut record, "a", START);
    let left = Bytes::from_static(b"charged");
    let at = START + 50 * MS;
    assert_eq!(
        record.checkpoint(&first, &left, LEASE, at),
        WriteOutcome::Kept
    );
    let busy = record.claim(&claim("b"), at + (LEASE - 1) * MS);
    assert_eq!(
        busy,
        Claimed::Busy { remaining_ms: 1 },
        "the lease was extended"
    );
    let second = granted(record.claim(&claim("b"), at + LEASE * MS));
    assert!(second.fence > first.fence);
    assert_eq!((second.attempt, second.previous), (2, Previous::Ended));
    assert_eq!(second.checkpoint, Some(left));
}

/// Stale writers are what leases without owners are known for.
#[test]
fn a_zombie_changes_nothing_and_is_told_so() {
    let mut record = Record::default();
    let zombie = hold(&mut record, "a", START);
    let later = START + LEASE * MS;
    let holder = hold(&mut record, "b", later);
    let mut completed = record.clone();
    completed.complete(&holder, &done("7"), later);
    let mut released = record.clone();
    released.release(&holder, later);
    for mut record in [record, completed, released] {
        let before = record.clone();
        let lost = WriteOutcome::Lost(Loss::Taken);
        assert_eq!(record.extend(&zombie, LEASE, later), lost);
        let bytes = Bytes::from_static(b"x");
        assert_eq!(record.checkpoint(&zombie, &bytes, LEASE, later), lost);
        assert_eq!(record.complete(&zombie, &done("8"), later), lost);
        assert_eq!(record.release(&zombie, later), lost);
        assert_eq!(record.unknown(&zombie, later), lost);
        assert_eq!(record, before);
    }
}

/// The random value of a lock says who, but not when.
#[test]
fn owner_and_fence_must_both_be_right() {
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    let other_owner = Holder {
        owner: "b".into(),
        ..holder.clone()
    };
    let older_fence = Holder {
        fence: holder.fence - 1,
        ..holder
    };
    for wrong in [other_owner, older_fence] {
        let lost = WriteOutcome::Lost(Loss::Taken);
        assert_eq!(record.complete(&wrong, &done("8"), START), lost);
        assert_eq!(record.release(&wrong, START), lost);
    }
}

/// The record is lost, and the same owner claims the key for other work within the same microsecond.
#[test]
fn a_fence_that_is_given_twice_is_of_the_work_that_is_in_the_record() {
    let mut record = Record::default();
    let first = hold(&mut record, "a", START);
    let mut record = Record::default();
    let other = Claim {
        fingerprint: Bytes::from_static(b"other"),
        ..claim("a")
    };
    let second = Holder::new(&other, &granted(record.claim(&other, START)));
    assert_eq!(first.fence, second.fence);
    let taken = WriteOutcome::Lost(Loss::Taken);
    assert_eq!(record.complete(&first, &done("7"), START + MS), taken);
    assert_eq!(
        record.complete(&second, &done("8"), START + MS),
        WriteOutcome::Kept
    );
}

#[test]
fn a_lease_that_has_ended_is_still_the_holders_until_somebody_takes_over() {
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    let later = START + 2 * LEASE * MS;
    assert_eq!(record.extend(&holder, LEASE, later), WriteOutcome::Kept);
    let busy = record.claim(&claim("b"), later);
    assert_eq!(busy, Claimed::Busy { remaining_ms: 100 });
    let much_later = later + 2 * LEASE * MS;
    assert_eq!(
        record.complete(&holder, &done("7"), much_later),
        WriteOutcome::Kept
    );
}

#[test]
fn a_release_keeps_fence_attempts_fingerprint_and_checkpoint() {
    let mut record = Record::default();
    let first = hold(&mut record, "a", START);
    let left = Bytes::from_static(b"half");
    record.checkpoint(&first, &left, LEASE, START);
    assert_eq!(record.release(&first, START), WriteOutcome::Kept);
    assert_eq!(
        record.release(&first, START),
        WriteOutcome::Kept,
        "the answer was lost"
    );
    let over = WriteOutcome::Lost(Loss::Over);
    assert_eq!(record.extend(&first, LEASE, START), over);
    assert_eq!(record.complete(&first, &done("7"), START), over);
    let second = granted(record.claim(&claim("b"), START));
    assert_eq!(second.fence, first.fence + 1);
    assert_eq!((second.attempt, second.previous), (2, Previous::Released));
    assert_eq!(second.checkpoint, Some(left));
}

#[test]
fn an_unknown_outcome_blocks_until_it_is_resolved_or_a_claim_takes_over() {
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    assert_eq!(record.unknown(&holder, START), WriteOutcome::Kept);
    assert_eq!(
        record.unknown(&holder, START),
        WriteOutcome::Kept,
        "the answer was lost"
    );
    let unknown = Claimed::Unknown {
        fence: holder.fence,
        attempt: 1,
        age_ms: 900,
    };
    assert_eq!(record.claim(&claim("b"), START + 900 * MS), unknown);

    let bold = Claim {
        takeover: Takeover::Any,
        ..claim("c")
    };
    let mut taken = record.clone();
    let grant = granted(taken.claim(&bold, START));
    assert_eq!((grant.attempt, grant.previous), (2, Previous::Unknown));
    // The doubt does not go away because the attempt that looked into it crashed.
    let later = START + LEASE * MS;
    assert!(matches!(
        taken.claim(&claim("d"), later),
        Claimed::Unknown { .. }
    ));
    let again = granted(taken.claim(&bold_of("e"), later));
    assert_eq!(again.previous, Previous::Unknown);

    let resolution = StoreResolution::Done(done("7"));
    let other = record.resolve(holder.fence + 1, &resolution, START);
    assert_eq!(other, WriteOutcome::Lost(Loss::Taken));
    assert_eq!(
        record.resolve(holder.fence, &resolution, START),
        WriteOutcome::Kept
    );
    let second = record.resolve(holder.fence, &StoreResolution::Release, START);
    assert_eq!(
        second,
        WriteOutcome::Lost(Loss::Over),
        "the first word counts"
    );
    assert!(matches!(
        record.claim(&claim("b"), START),
        Claimed::Done { .. }
    ));
}

fn bold_of(owner: &str) -> Claim {
    Claim {
        takeover: Takeover::Any,
        ..claim(owner)
    }
}

#[test]
fn whoever_did_not_know_may_find_out_after_all() {
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    record.unknown(&holder, START);
    let mut released = record.clone();
    assert_eq!(
        record.complete(&holder, &done("7"), START),
        WriteOutcome::Kept
    );
    assert_eq!(released.release(&holder, START), WriteOutcome::Kept);
    let next = granted(released.claim(&claim("b"), START));
    assert_eq!(next.previous, Previous::Released);
}

/// Work that takes over in doubt, and gives the key back, has done nothing; what the attempt before it did, no record has
/// learnt.
#[test]
fn a_doubt_is_handed_on_by_a_release_unless_the_holder_found_out() {
    for (unknown, previous) in [(false, Previous::Ended), (true, Previous::Unknown)] {
        let mut record = Record::default();
        let first = hold(&mut record, "a", START);
        if unknown {
            record.unknown(&first, START);
        }
        let mut now = START;
        for attempt in 2..5 {
            now += LEASE * MS;
            let claim = bold_of("b");
            let grant = granted(record.claim(&claim, now));
            assert_eq!((grant.attempt, grant.previous), (attempt, previous));
            let holder = Holder::new(&claim, &grant);
            assert_eq!(record.release(&holder, now), WriteOutcome::Kept);
            let before = record.clone();
            assert_eq!(record.release(&holder, now + MS), WriteOutcome::Kept);
            assert_eq!(record, before, "the answer was lost");
            let careful = Claim {
                takeover: Takeover::Never,
                ..claim
            };
            let blocked = record.clone().claim(&careful, now);
            assert!(matches!(blocked, Claimed::Unknown { .. }), "{blocked:?}");

            let mut resolved = record.clone();
            let kept = resolved.resolve(holder.fence, &StoreResolution::Release, now);
            assert_eq!(kept, WriteOutcome::Kept);
            // The holder's release comes again, late.
            assert_eq!(resolved.release(&holder, now), WriteOutcome::Kept);
            let next = granted(resolved.claim(&careful, now));
            assert_eq!(next.previous, Previous::Released);
        }
        let claim = bold_of("c");
        let grant = granted(record.claim(&claim, now));
        let sure = Holder {
            previous: Previous::Released,
            ..Holder::new(&claim, &grant)
        };
        assert_eq!(record.release(&sure, now), WriteOutcome::Kept);
        let next = granted(record.claim(&bold_of("d"), now));
        assert_eq!(next.previous, Previous::Released);
    }
}

#[test]
fn with_no_takeover_a_crash_is_an_unknown_outcome() {
    let careful = |owner| Claim {
        takeover: Takeover::Never,
        ..claim(owner)
    };
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    let later = START + LEASE * MS;
    let held = record.resolve(holder.fence, &StoreResolution::Release, later - 1);
    assert_eq!(
        held,
        WriteOutcome::Lost(Loss::Taken),
        "another attempt is in progress"
    );
    let unknown = record.claim(&careful("b"), later);
    assert!(matches!(unknown, Claimed::Unknown { attempt: 1, .. }));
    let resolved = record.resolve(holder.fence, &StoreResolution::Release, later);
    assert_eq!(resolved, WriteOutcome::Kept);
    assert_eq!(granted(record.claim(&careful("b"), later)).attempt, 2);
}

#[test]
fn a_lost_record_is_brought_back_by_its_holder() {
    let mut record = Record::default();
    hold(&mut record, "x", START - 9);
    record = Record::default();
    let holder = hold(&mut record, "a", START);
    let later = START + 50 * MS;
    for step in 0..4 {
        let mut lost = Record::default();
        let restored = match step {
            0 => lost.extend(&holder, LEASE, later),
            1 => lost.checkpoint(&holder, &Bytes::new(), LEASE, later),
            2 => lost.complete(&holder, &done("7"), later),
            _ => lost.release(&holder, later),
        };
        assert_eq!(restored, WriteOutcome::Restored, "step {step}");
        let view = lost.view(later).unwrap();
        assert_eq!((view.fence, view.attempt), (holder.fence, 1));
        let phases = [Phase::Running, Phase::Running, Phase::Done, Phase::Released];
        assert_eq!(view.phase, phases[step]);
    }
}

#[test]
fn what_stands_is_not_brought_back_over_unless_it_is_older() {
    let mut record = Record::default();
    let old = hold(&mut record, "a", START);
    let gone_back = record.clone();
    let later = START + LEASE * MS;
    let new = hold(&mut record, "b", later);
    // Lost, and another claim came first.
    let mut taken = Record::default();
    hold(&mut taken, "c", later + 1);
    let lost = WriteOutcome::Lost(Loss::Taken);
    assert_eq!(taken.complete(&new, &done("7"), later + 1), lost);
    // A replica took over that had not heard of the second claim.
    let mut stale = gone_back;
    assert_eq!(stale.extend(&new, LEASE, later), WriteOutcome::Restored);
    assert_eq!(stale.complete(&old, &done("8"), later), lost);
    assert_eq!(stale.complete(&new, &done("7"), later), WriteOutcome::Kept);
    // Lost again, and the older one was first to bring it back: what was accepted stays.
    let mut again = Record::default();
    assert_eq!(
        again.complete(&old, &done("8"), later),
        WriteOutcome::Restored
    );
    let before = again.clone();
    assert_eq!(again.complete(&new, &done("7"), later), lost);
    assert_eq!(again.extend(&new, LEASE, later), lost);
    assert_eq!(again, before);
}

#[test]
fn a_holder_older_than_a_retention_brings_nothing_back() {
    let mut record = Record::default();
    let holder = hold(&mut record, "a", START);
    let last = START + RETENTION * MS;
    let mut lost = Record::default();
    assert_eq!(
        lost.complete(&holder, &done("7"), last),
        WriteOutcome::Restored
    );
    let mut lost = Record::default();
    let too_late = lost.complete(&holder, &done("7"), last + 1);
    assert_eq!(too_late, WriteOutcome::Lost(Loss::Gone));
    assert_eq!(lost, Record::default());
}

/// A lock that lives as long as its record keeps everybody out for a day after a crash.
#[test]
fn a_lease_ends_though_the_record_is_kept_and_though_the_clock_steps_back() {
    let mut record = Record::default();
    hold(&mut record, "a", START);
    let view = record.view(START).unwrap();
    assert_eq!((view.remaining_ms, view.expires_ms), (LEASE, RETENTION));
    let hour_back = START - 3_600_000 * MS;
    let busy = record.claim(&claim("b"), hour_back);
    assert_eq!(
        busy,
        Claimed::Busy {
            remaining_ms: LEASE
        }
    );
    let next = granted(record.claim(&claim("b"), hour_back + LEASE * MS));
    assert_eq!(next.fence, START + 1, "fences do not go back");
}

#[derive(Clone, Debug)]
enum Step {
    Claim(u8, Takeover),
    Extend(usize),
    Complete(usize),
    Release(usize),
    Unknown(usize),
    Pass(u64),
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    let takeover = prop_oneof![
        Just(Takeover::Never),
        Just(Takeover::Ended),
        Just(Takeover::Any)
    ];
    prop_oneof![
        4 => (0..3_u8, takeover).prop_map(|(owner, takeover)| Step::Claim(owner, takeover)),
        1 => (0..4_usize).prop_map(Step::Extend),
        2 => (0..4_usize).prop_map(Step::Complete),
        2 => (0..4_usize).prop_map(Step::Release),
        1 => (0..4_usize).prop_map(Step::Unknown),
        3 => (1..2 * RETENTION * MS).prop_map(Step::Pass),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    /// Over release, expiry and loss.
    #[test]
    fn fences_only_go_up_whatever_happens(steps in prop::collection::vec(step(), 1..80)) {
        let (mut record, mut now, mut last) = (Record::default(), START, 0);
        let mut holders: Vec<Holder> = Vec::new();
        let mut owners = 0;
        for step in steps {
            let of = |which: usize| holders.iter().rev().nth(which).cloned();
            match step {
                Step::Claim(owner, takeover) => {
                    // Now and then the same owner again: the answer was lost.
                    owners += u32::from(owner > 0);
                    let claim = Claim { owner: Arc::from(owners.to_string()), takeover, ..claim("") };
                    match record.claim(&claim, now) {
                        Claimed::New(grant) => {
                            prop_assert!(grant.fence > last, "{} after {last}", grant.fence);
                            last = grant.fence;
                            holders.push(Holder::new(&claim, &grant));
                        }
                        Claimed::Busy { remaining_ms } => {
                            prop_assert!((1..=LEASE).contains(&remaining_ms));
                        }
                        _ => {}
                    }
                }
                Step::Extend(which) => { of(which).map(|holder| record.extend(&holder, LEASE, now)); }
                Step::Complete(which) => { of(which).map(|holder| record.complete(&holder, &done("7"), now)); }
                Step::Release(which) => { of(which).map(|holder| record.release(&holder, now)); }
                Step::Unknown(which) => { of(which).map(|holder| record.unknown(&holder, now)); }
                Step::Pass(micros) => now += micros,
                Step::Lose => {
                    record = Record::default();
                    // What is asked of the clock: that it is beyond the last claim, of which there was not more than one
                    // a microsecond.
                    now = now.max(last) + 1;
                }
            }
        }
    }
}
