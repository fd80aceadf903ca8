//! Peers that are no tower layers: called around the bare service, as their documentation shows it.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use failsafe::{Config, backoff, failure_policy, futures::CircuitBreaker as _};
use governor::{Quota, RateLimiter, clock::MonotonicClock};
use recloser::{AsyncRecloser, Recloser};
use tower::service_fn;

use crate::subject::{Failure, Request, Subject, answer, key_in_turn};

pub(crate) const FAILSAFE: &str = "failsafe, default (rate over time)";
pub(crate) const RECLOSER: &str = "recloser, count window";
pub(crate) const GOVERNOR: &str = "governor check";
pub(crate) const GOVERNOR_KEYED: &str = "governor check, keyed";
pub(crate) const GOVERNOR_256: &str = "governor check, 256 keys in turn";
pub(crate) const GOVERNOR_100000: &str = "governor check, 100,000 keys in turn";

pub(super) fn subjects() -> Vec<Subject> {
    vec![
        failsafe_consecutive().on_two_cores(),
        failsafe_default().on_two_cores(),
        recloser().on_two_cores(),
        governor_check().on_two_cores(),
        governor_std_clock(),
        governor_keyed(),
        governor_in_turn(GOVERNOR_256, 256),
        governor_in_turn(GOVERNOR_100000, 100_000),
    ]
}

/// The cheapest policy that failsafe has: no window at all.
fn failsafe_consecutive() -> Subject {
    let backoff = backoff::exponential(Duration::from_secs(5), Duration::from_secs(60));
    let policy = failure_policy::consecutive_failures(10, backoff);
    let breaker = Config::new().failure_policy(policy).build();
    let service = service_fn(move |request| breaker.call(answer::<Failure>(request)));
    Subject::new("failsafe, consecutive failures", service)
}

/// failsafe's default: a moving average of the success rate over 30 s, or consecutive failures.
fn failsafe_default() -> Subject {
    let breaker = Config::new().build();
    let service = service_fn(move |request| breaker.call(answer::<Failure>(request)));
    Subject::new(FAILSAFE, service)
}

/// A count window of 100 calls, its default.
fn recloser() -> Subject {
    let breaker = AsyncRecloser::from(Recloser::custom().error_rate(0.5).closed_len(100).build());
    let service = service_fn(move |request| breaker.call(answer::<Failure>(request)));
    Subject::new(RECLOSER, service)
}

/// One cell of a quota that is never used up, quanta's clock (the default).
fn governor_check() -> Subject {
    let limiter = Arc::new(RateLimiter::direct(quota()));
    let service = service_fn(move |request| {
        limiter.check().expect("below the limit");
        answer::<Failure>(request)
    });
    Subject::new(GOVERNOR, service)
}

fn governor_std_clock() -> Subject {
    let limiter = Arc::new(RateLimiter::direct_with_clock(quota(), MonotonicClock));
    let service = service_fn(move |request| {
        limiter.check().expect("below the limit");
        answer::<Failure>(request)
    });
    Subject::new("governor check, std clock", service)
}

fn governor_keyed() -> Subject {
    let limiter = Arc::new(RateLimiter::keyed(quota()));
    let service = service_fn(move |request: Request| {
        limiter.check_key(&7_u64).expect("below the limit");
        answer::<Failure>(request)
    });
    Subject::new(GOVERNOR_KEYED, service)
}

fn governor_in_turn(name: &'static str, keys: u64) -> Subject {
    let limiter = Arc::new(RateLimiter::keyed(quota()));
    for key in 0..keys {
        limiter.check_key(&key).expect("below the limit");
    }
    let mut n = 0;
    let service = service_fn(move |request: Request| {
        n += 1;
        let key = key_in_turn(n, keys);
        limiter.check_key(&key).expect("below the limit");
        answer::<Failure>(request)
    });
    Subject::new(name, service)
}

const fn quota() -> Quota {
    Quota::per_second(NonZeroU32::MAX)
}
