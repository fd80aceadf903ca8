//! Rate limits: of one process, by key, and of a fleet.

use resilience_core::conformance::layer::{Ask, Instance, Plan, Subject};
use resilience_core::{
    keyed::Keyed,
    limit::{
        Quota, RateLimit, RateLimitBuilder,
        fleet::{FleetRateLimit, FleetRateLimitBuilder, LeaseRules, Mode},
        store::InProcessLimits,
    },
};

use super::{PLACES, SECOND};

/// More than any check calls, unless it wants to be rejected.
const TOKENS: u64 = 500;

#[test]
fn rate_limit() {
    let make = || async {
        let limit = limit().build().unwrap();
        Instance::new(move || limit.layer())
    };
    Subject::new("rate limit", make)
        .rejects_after(TOKENS as usize, Plan::Answer)
        .keeps_every_contract();
}

#[test]
fn rate_limit_that_lets_calls_wait() {
    let make = || async {
        let limit = limit().queue(PLACES, 10 * SECOND).build().unwrap();
        let counted = limit.clone();
        Instance::new(move || limit.layer()).held(move || counted.snapshot().waiting as u64)
    };
    let subject = Subject::new("rate limit that lets calls wait", make)
        .rejects_after(TOKENS as usize, Plan::Answer);
    waiting(subject).keeps_every_contract();
}

#[test]
fn rate_limit_that_lets_no_call_wait_so_long() {
    let make = || async {
        let limit = limit().queue(PLACES, SECOND / 2).build().unwrap();
        let counted = limit.clone();
        Instance::new(move || limit.layer()).held(move || counted.snapshot().waiting as u64)
    };
    Subject::new("rate limit that lets no call wait so long", make)
        .rejects_after(TOKENS as usize, Plan::Answer)
        .keeps_every_contract();
}

#[test]
fn keyed_rate_limit() {
    let make = || async {
        let limits = limit().keyed(Keyed::new()).unwrap();
        Instance::new(move || limits.layer(|_: &Ask| "key"))
    };
    Subject::new("keyed rate limit", make)
        .rejects_after(TOKENS as usize, Plan::Answer)
        .keeps_every_contract();
}

#[test]
fn shared_rate_limit() {
    for (name, mode) in [
        ("shared rate limit", Mode::Exact),
        ("leased rate limit", Mode::Leased(LeaseRules::new())),
        ("local rate limit", Mode::Local),
    ] {
        let make = move || async move {
            let limit = shared_limit().mode(mode).build().unwrap();
            Instance::new(move || limit.layer(|_: &Ask| "subject"))
        };
        Subject::new(name, make)
            .rejects_after(TOKENS as usize, Plan::Answer)
            .keeps_every_contract();
    }
}

#[test]
fn shared_rate_limit_that_lets_no_call_wait_so_long() {
    let make = || async {
        let limit = shared_limit().queue(PLACES, SECOND / 2).build().unwrap();
        let counted = limit.clone();
        Instance::new(move || limit.layer(|_: &Ask| "subject"))
            .held(move || counted.snapshot().waiting as u64)
    };
    Subject::new("shared rate limit that lets no call wait so long", make)
        .rejects_after(TOKENS as usize, Plan::Answer)
        .keeps_every_contract();
}

#[test]
fn shared_rate_limit_that_lets_calls_wait() {
    let make = || async {
        let limit = shared_limit().queue(PLACES, 10 * SECOND).build().unwrap();
        let counted = limit.clone();
        Instance::new(move || limit.layer(|_: &Ask| "subject"))
            .held(move || counted.snapshot().waiting as u64)
    };
    let subject = Subject::new("shared rate limit that lets calls wait", make)
        .rejects_after(TOKENS as usize, Plan::Answer);
    waiting(subject).keeps_every_contract();
}

fn shared_limit() -> FleetRateLimitBuilder {
    let quota = Quota::per(TOKENS, 500 * SECOND).unwrap();
    FleetRateLimit::builder("contract")
        .store(InProcessLimits::new())
        .limit("calls", quota)
}

fn limit() -> RateLimitBuilder {
    RateLimit::builder("contract").permits(TOKENS, 500 * SECOND)
}

/// A call that finds no token waits, and is not rejected.
fn waiting(subject: Subject) -> Subject {
    let reason = "a call that finds no token waits for one, and gets it";
    [
        "a_rejection_can_be_told_from_a_failure",
        "a_rejection_does_not_reach_the_service",
        "a_rejection_does_not_kill_a_buffer_above",
        "the_state_is_shared_by_clones_and_by_layers_of_one_handle",
        "it_takes_calls_again_after_rejecting",
    ]
    .into_iter()
    .fold(subject, |subject, contract| {
        subject.exempt(contract, reason)
    })
}
