//! The checks, one function for each contract.

macro_rules! ensure {
    ($holds:expr, $($seen:tt)+) => {
        if !$holds {
            return Err(format!($($seen)+));
        }
    };
}

macro_rules! contracts {
    ($($module:ident :: $name:ident)*) => {
        /// Every contract.
        pub const CONTRACTS: &[Contract] = &[$(
            Contract { name: stringify!($name), check: |subject| Box::pin($module::$name(subject)) },
        )*];
    };
}

mod cancellation;
mod errors;
mod panics;
mod readiness;
mod rejections;
mod waiting;

use tower::{BoxError, Service, ServiceExt};

use super::{Answer, Ask, Contract, Fault, Plan, Stack, bounded};

contracts! {
    readiness::calls_only_the_clone_that_was_polled_ready
    readiness::works_over_a_concurrency_limit_of_one
    readiness::works_over_a_buffer
    readiness::works_under_a_buffer
    readiness::idle_clones_hold_nothing
    readiness::a_readied_clone_that_is_dropped_frees_what_is_below
    readiness::a_finished_call_holds_nothing_while_its_future_lives
    readiness::readiness_keeps_for_an_hour
    cancellation::a_dropped_call_gives_back_what_it_held
    cancellation::a_dropped_call_among_many_gives_back_what_it_held
    cancellation::a_dropped_wait_for_readiness_leaves_no_trace
    panics::a_panic_in_the_inner_call_leaks_nothing
    panics::a_panic_in_the_inner_future_leaks_nothing
    panics::a_panic_in_the_inner_readiness_leaks_nothing
    waiting::waiting_for_an_answer_takes_few_polls
    waiting::waiting_for_readiness_takes_few_polls
    waiting::waiting_for_a_place_takes_few_polls
    waiting::waiting_for_the_next_attempt_takes_few_polls
    waiting::an_answer_wakes_who_waits_for_it
    waiting::readiness_wakes_all_who_wait_for_it
    waiting::a_place_wakes_who_waits_for_it
    waiting::the_last_waker_is_the_one_that_is_woken
    waiting::readiness_below_is_not_held_while_waiting
    errors::an_error_of_readiness_is_passed_on
    errors::an_error_of_the_service_is_passed_on_as_it_is
    rejections::a_rejection_can_be_told_from_a_failure
    rejections::a_rejection_does_not_reach_the_service
    rejections::a_rejected_caller_does_not_keep_what_it_readied_below
    rejections::a_rejection_does_not_kill_a_buffer_above
    rejections::the_state_is_shared_by_clones_and_by_layers_of_one_handle
    rejections::it_takes_calls_again_after_rejecting
}

/// Readies the service and makes one call.
async fn call(service: &mut Stack, plan: Plan) -> Result<Answer, BoxError> {
    service.ready().await?.call(Ask::from(plan)).await
}

/// A call may end in an answer, in a failure that was asked for, or in a rejection.
fn is_expected(result: &Result<Answer, BoxError>) -> bool {
    use crate::ServiceError;
    match result {
        Ok(_) => true,
        Err(error) => error.is::<Fault>() || error.as_rejected().is_some(),
    }
}

/// Makes one call for each plan, each on a clone and a task of its own, all at once.
async fn call_at_once(
    service: &Stack,
    plans: impl IntoIterator<Item = Plan>,
) -> Vec<Result<Answer, BoxError>> {
    let start = |plan| {
        let mut service = service.clone();
        tokio::spawn(bounded(async move { call(&mut service, plan).await }))
    };
    let tasks: Vec<_> = plans.into_iter().map(start).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap_or_else(|error| Err(error.into())));
    }
    results
}
