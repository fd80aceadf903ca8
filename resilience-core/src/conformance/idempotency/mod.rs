//! One suite for every store of idempotency records, asked through the trait.
//!
//! Each check takes a fresh key, so that all can run on one server. Times are real: leases are so long that they do
//! not end while a check runs, or so short that their end is waited for with a bound.

mod bounds;
mod loss;
mod steps;
mod unknown;

use std::{sync::Arc, time::Duration};

use crate::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Completion, Grant, Holder, Phase, Takeover, WriteOutcome},
};
use bytes::Bytes;

use crate::conformance::eventually;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const SOON: Duration = Duration::from_secs(10);
const NAME: &str = "conformance";

/// Runs every check on `store`; `flush` makes it forget everything.
pub async fn all(store: &Arc<dyn IdempotencyStore>, flush: &(dyn Fn() + Sync)) {
    let it = &**store;
    steps::a_claim_is_granted_once_and_repeated_to_its_owner(it).await;
    steps::an_outcome_is_replayed_byte_for_byte(it).await;
    steps::an_outcome_is_forgotten_when_its_time_is_over(it).await;
    steps::other_work_under_the_key_is_a_mismatch_in_every_phase(it).await;
    steps::a_key_that_was_given_back_is_free_for_other_work(it).await;
    steps::a_lease_that_ends_is_taken_over_with_the_checkpoint(it).await;
    steps::a_lease_that_ended_is_the_holders_while_nobody_came(it).await;
    steps::an_extended_lease_does_not_end(it).await;
    steps::a_zombie_changes_nothing_and_is_told(it).await;
    steps::owner_and_fence_must_both_be_right(it).await;
    steps::a_release_keeps_what_is_known(it).await;
    steps::every_step_can_be_repeated(it).await;
    unknown::an_unknown_outcome_blocks_until_resolved(it).await;
    unknown::an_unknown_outcome_is_taken_over_by_who_wants_to(it).await;
    unknown::a_release_after_a_crash_says_nothing_of_the_crash(it).await;
    unknown::a_crash_blocks_who_does_not_take_over(it).await;
    unknown::a_live_claim_is_not_resolved(it).await;
    bounds::a_record_outlives_its_lease_and_is_forgotten_in_the_end(it).await;
    bounds::names_and_keys_do_not_leak_into_each_other(it).await;
    bounds::what_makes_no_sense_is_refused(it).await;
    bounds::the_largest_is_taken(it).await;
    bounds::whoever_waits_is_told(it).await;
    bounds::a_crowd_gets_one_grant(store).await;
    loss::a_lost_record_is_brought_back_by_its_holder(it, flush).await;
    loss::a_lost_record_is_not_brought_back_over_a_newer_one(it, flush).await;
    loss::fences_go_up_over_every_loss(it, flush).await;
}

fn claim_of(owner: &str) -> Claim {
    Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"\x00work\xff"),
        lease_ms: HOUR,
        retention_ms: DAY,
        takeover: Takeover::Ended,
    }
}

/// A lease that is over when it is asked about.
fn brief(owner: &str) -> Claim {
    Claim {
        lease_ms: 1,
        ..claim_of(owner)
    }
}

fn done(outcome: &'static [u8]) -> Completion {
    Completion {
        outcome: Bytes::from_static(outcome),
        ttl_ms: DAY,
    }
}

async fn claim(store: &dyn IdempotencyStore, key: &str, claim: &Claim) -> Claimed {
    store.claim(NAME, key, claim).await.expect("an answer")
}

#[track_caller]
fn granted(claimed: Claimed) -> Grant {
    match claimed {
        Claimed::New(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

/// Claims `key`, waiting for the end of a lease that ends soon.
async fn hold_by(store: &dyn IdempotencyStore, key: &str, wanted: &Claim) -> (Holder, Grant) {
    let claiming = async {
        loop {
            match claim(store, key, wanted).await {
                Claimed::Busy { remaining_ms } if remaining_ms < 1_000 => {
                    tokio::time::sleep(Duration::from_millis(remaining_ms)).await;
                }
                other => break granted(other),
            }
        }
    };
    let grant = tokio::time::timeout(SOON, claiming).await.expect("granted");
    (Holder::new(wanted, &grant), grant)
}

async fn hold(store: &dyn IdempotencyStore, key: &str, owner: &str) -> Holder {
    hold_by(store, key, &claim_of(owner)).await.0
}

async fn complete(
    store: &dyn IdempotencyStore,
    key: &str,
    holder: &Holder,
    outcome: &'static [u8],
) -> WriteOutcome {
    let completed = store.complete(NAME, key, holder, &done(outcome)).await;
    completed.expect("an answer")
}

async fn release(store: &dyn IdempotencyStore, key: &str, holder: &Holder) -> WriteOutcome {
    store.release(NAME, key, holder).await.expect("an answer")
}

async fn extend(store: &dyn IdempotencyStore, key: &str, holder: &Holder) -> WriteOutcome {
    let extended = store.extend(NAME, key, holder, HOUR).await;
    extended.expect("an answer")
}

async fn save(
    store: &dyn IdempotencyStore,
    key: &str,
    holder: &Holder,
    checkpoint: &'static [u8],
    lease_ms: u64,
) -> WriteOutcome {
    let checkpoint = Bytes::from_static(checkpoint);
    let saved = store.checkpoint(NAME, key, holder, &checkpoint, lease_ms);
    saved.await.expect("an answer")
}

async fn phase(store: &dyn IdempotencyStore, key: &str) -> Option<Phase> {
    let view = store.get(NAME, key).await.expect("an answer");
    view.map(|view| view.phase)
}

#[track_caller]
fn replayed(claimed: Claimed) -> Bytes {
    match claimed {
        Claimed::Done { outcome, .. } => outcome,
        other => panic!("not done: {other:?}"),
    }
}

async fn lease_is_over(store: &dyn IdempotencyStore, key: &str) {
    eventually("the lease is over", SOON, || async {
        let view = store.get(NAME, key).await.expect("an answer");
        view.is_some_and(|view| view.remaining_ms == 0)
    })
    .await;
}
