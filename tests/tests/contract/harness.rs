//! The harness itself: it passes what is sound, and sees every flaw it was built to see.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::conformance::layer::{
    CONTRACTS, Instance, Plan, Subject,
    broken::{BrokenLayer, Flaw, PLACES},
    examine,
};
use resilience_core::{Pattern, Reason, Rejected};
use tower::{
    BoxError,
    layer::{layer_fn, util::Identity},
    limit::ConcurrencyLimitLayer,
    load_shed::{LoadShed, error::Overloaded},
    timeout::TimeoutLayer,
    util::MapErr,
};

fn breaches(subject: &Subject) -> Vec<&'static str> {
    examine(subject)
        .iter()
        .map(|breach| breach.contract)
        .collect()
}

fn broken(flaw: Flaw) -> Subject {
    let make = move || async move {
        let taken = Arc::<AtomicUsize>::default();
        let held = Arc::clone(&taken);
        Instance::new(move || BrokenLayer::new(flaw, &taken)).held(move || held.load(SeqCst) as u64)
    };
    let saturation = if flaw == Flaw::WaitsWithReadinessHeld {
        Plan::Fail
    } else {
        Plan::Hang
    };
    Subject::new("a broken layer", make).rejects_after(PLACES, saturation)
}

#[track_caller]
fn is_seen(flaw: Flaw, contracts: &[&str]) {
    let mut subject = broken(flaw);
    if flaw == Flaw::RetriesUnready {
        subject = subject.makes_further_attempts();
    }
    let seen = examine(&subject);
    for contract in contracts {
        assert!(
            seen.iter().any(|breach| breach.contract == *contract),
            "{flaw:?}: {contract} not seen, but {seen:#?}"
        );
    }
}

macro_rules! every_flaw_is_seen {
    ($($test:ident: $flaw:ident breaks $($contract:ident)+;)*) => {$(
        #[test]
        fn $test() {
            is_seen(Flaw::$flaw, &[$(stringify!($contract)),+]);
        }
    )*
        /// No flaw and no contract is left out.
        #[test]
        fn every_contract_is_shown_to_fail() {
            let shown = [$($(stringify!($contract)),+),*];
            let all = CONTRACTS.iter().map(|contract| contract.name);
            let missing: Vec<_> = all.filter(|name| !shown.contains(name)).collect();
            assert!(missing.is_empty(), "no layer is shown to break {missing:?}");
        }
    };
}

every_flaw_is_seen! {
    a_clone_in_call_without_readiness_is_seen: CallsAClone breaks
        calls_only_the_clone_that_was_polled_ready works_over_a_concurrency_limit_of_one
        works_over_a_buffer;
    an_attempt_without_readiness_is_seen: RetriesUnready breaks
        calls_only_the_clone_that_was_polled_ready waiting_for_the_next_attempt_takes_few_polls;
    a_place_reserved_in_poll_ready_is_seen: ReservesWhenReady breaks
        idle_clones_hold_nothing;
    a_place_kept_with_the_future_is_seen: KeepsItsPlaceWithTheFuture breaks
        a_finished_call_holds_nothing_while_its_future_lives;
    a_service_readied_ahead_is_seen: ReadiesAhead breaks
        a_readied_clone_that_is_dropped_frees_what_is_below works_over_a_concurrency_limit_of_one
        works_under_a_buffer;
    a_leak_on_drop_is_seen: LeaksOnDrop breaks
        a_dropped_call_gives_back_what_it_held;
    a_leak_on_panic_is_seen: LeaksOnPanic breaks
        a_panic_in_the_inner_future_leaks_nothing a_panic_in_the_inner_call_leaks_nothing;
    a_panic_that_becomes_an_error_is_seen: SwallowsPanics breaks
        a_panic_in_the_inner_future_leaks_nothing;
    a_future_that_wakes_itself_is_seen: WakesItselfForAnswers breaks
        waiting_for_an_answer_takes_few_polls;
    a_service_that_wakes_itself_is_seen: WakesItselfForReadiness breaks
        waiting_for_readiness_takes_few_polls;
    a_queue_that_wakes_itself_is_seen: WaitsForAPlaceAwake breaks
        waiting_for_a_place_takes_few_polls;
    a_lost_answer_is_seen: LosesTheAnswer breaks
        an_answer_wakes_who_waits_for_it;
    a_lost_readiness_is_seen: LosesReadiness breaks
        readiness_wakes_all_who_wait_for_it;
    a_lost_place_is_seen: WaitsForAPlaceUnwoken breaks
        a_place_wakes_who_waits_for_it;
    a_stale_waker_is_seen: KeepsTheFirstWaker breaks
        the_last_waker_is_the_one_that_is_woken;
    a_rejection_in_poll_ready_is_seen: RejectsWhenPolledReady breaks
        a_rejection_does_not_kill_a_buffer_above;
    a_swallowed_error_of_readiness_is_seen: SwallowsReadinessErrors breaks
        an_error_of_readiness_is_passed_on;
    a_wrapped_error_is_seen: WrapsErrors breaks
        an_error_of_the_service_is_passed_on_as_it_is;
    a_rejection_in_disguise_is_seen: RejectsWithAString breaks
        a_rejection_can_be_told_from_a_failure;
    a_rejected_call_that_was_sent_is_seen: SendsWhatItRejects breaks
        a_rejection_does_not_reach_the_service;
    readiness_kept_with_a_rejection_is_seen: KeepsReadinessWhenRejecting breaks
        a_rejected_caller_does_not_keep_what_it_readied_below;
    a_state_of_its_own_in_every_layer_is_seen: CountsPerLayer breaks
        the_state_is_shared_by_clones_and_by_layers_of_one_handle;
    a_stale_note_of_waiting_is_seen: RemembersWaiting breaks
        a_dropped_wait_for_readiness_leaves_no_trace;
    a_layer_that_never_recovers_is_seen: NeverRecovers breaks
        it_takes_calls_again_after_rejecting a_dropped_call_among_many_gives_back_what_it_held;
    a_deadline_that_runs_from_readiness_is_seen: AgesWhenReady breaks
        readiness_keeps_for_an_hour;
    a_leak_of_a_panic_in_poll_ready_is_seen: HoldsAPlaceToAsk breaks
        a_panic_in_the_inner_readiness_leaks_nothing;
    a_place_below_held_while_waiting_is_seen: WaitsWithReadinessHeld breaks
        readiness_below_is_not_held_while_waiting;
}

#[test]
fn a_layer_without_a_flaw_passes() {
    broken(Flaw::None).keeps_every_contract();
}

#[test]
fn no_layer_at_all_passes() {
    Subject::new("nothing", || async { Instance::new(Identity::new) }).keeps_every_contract();
}

/// It rejects where others wait, and passes for the rest, once its error can be told from a failure.
#[test]
fn towers_load_shed_passes() {
    let overloaded = |error: BoxError| match error.is::<Overloaded>() {
        true => Rejected::new(Pattern::LoadShed, Reason::Overloaded, "tower").into(),
        false => error,
    };
    let shed = move || layer_fn(move |inner| MapErr::new(LoadShed::new(inner), overloaded));
    Subject::new(
        "tower's load shed",
        move || async move { Instance::new(shed) },
    )
    .exempt(
        "readiness_wakes_all_who_wait_for_it",
        "it is always ready: no caller waits",
    )
    .keeps_every_contract();
}

#[test]
fn towers_timeout_passes() {
    let timeout = || TimeoutLayer::new(Duration::from_secs(60));
    Subject::new(
        "tower's timeout",
        move || async move { Instance::new(timeout) },
    )
    .keeps_every_contract();
}

/// Its permits are taken in `poll_ready`, and live as long as the future.
#[test]
fn towers_concurrency_limit_holds_permits_in_idle_clones() {
    let limit = || async {
        let layer = tower::limit::GlobalConcurrencyLimitLayer::new(PLACES);
        Instance::new(move || layer.clone())
    };
    let seen = breaches(&Subject::new("tower's concurrency limit", limit));
    assert_eq!(
        seen,
        [
            "idle_clones_hold_nothing",
            "a_finished_call_holds_nothing_while_its_future_lives"
        ]
    );
}

/// A layer that spins where no count is kept is given up rather than waited for.
#[test]
fn the_limit_that_is_made_per_layer_is_seen() {
    let limit = || async { Instance::new(|| ConcurrencyLimitLayer::new(1)) };
    let seen = breaches(&Subject::new("a limit of one", limit));
    assert!(seen.contains(&"idle_clones_hold_nothing"), "{seen:?}");
}

#[test]
fn a_layer_by_function_is_as_good_as_any() {
    Subject::new("a function", || async {
        Instance::new(|| layer_fn(|inner| inner))
    })
    .keeps_every_contract();
}
