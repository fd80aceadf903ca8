//! The layers of this toolkit, in their default configuration unless said otherwise.

use std::time::Duration;

use resilience_core::{
    Coalesce, Error,
    breaker::{CircuitBreaker, CircuitBreakerBuilder, Window, fleet::InProcessBreakers},
    bulkhead::{Bulkhead, BulkheadBuilder},
    deadline::Timeout,
    keyed::Keyed,
    limit::{KeyedRateLimit, RateLimit, RateLimitBuilder},
    retry::{Replayable, Retry},
    shed::LoadShed,
};
use tower::{ServiceBuilder, service_fn};

use super::tower_own::{LIMIT, PATIENCE};
use crate::subject::{Failure, Request, Subject, answer, key_in_turn};

pub(crate) const TIME_WINDOW: &str = "breaker, time window";
pub(crate) const COUNT_WINDOW: &str = "breaker, count window";
pub(crate) const SLOW_CALLS: &str = "breaker, time window, slow calls";
pub(crate) const SHARED: &str = "breaker, time window, shared";
pub(crate) const KEYED: &str = "breaker, keyed";
pub(crate) const DEADLINE: &str = "deadline";
pub(crate) const RETRY: &str = "retry, budget";
pub(crate) const BULKHEAD: &str = "bulkhead";
pub(crate) const BULKHEAD_KEYED: &str = "bulkhead, keyed";
pub(crate) const LIMIT_CHECK: &str = "rate limit check";
pub(crate) const LIMIT_CHECK_KEYED: &str = "rate limit check, keyed";
pub(crate) const LIMIT_CHECK_256: &str = "rate limit check, 256 keys in turn";
pub(crate) const LIMIT_CHECK_100000: &str = "rate limit check, 100,000 keys in turn";
pub(crate) const RATE_LIMIT: &str = "rate limit";
pub(crate) const SHED: &str = "load shed";
pub(crate) const COALESCE_PASSING: &str = "coalesce, without a key";
pub(crate) const FIVE: &str = "five (deadline, retry, breaker, bulkhead, shed)";

pub(super) fn subjects() -> Vec<Subject> {
    let mut subjects = breakers();
    subjects.extend(others());
    subjects.extend(limits());
    subjects
}

/// The checks called as governor's are, without a layer: by the same quota, which is never used up.
fn limits() -> Vec<Subject> {
    let bare = service_fn(answer::<Error<Failure>>);
    let limit = rate_limit().build().expect("a valid limit");
    let check = limit.clone();
    let check = service_fn(move |request| {
        check.try_acquire(1).expect("below the limit");
        answer::<Failure>(request)
    });
    let limits = rate_limit().keyed(Keyed::new()).expect("valid limits");
    let check_keyed = service_fn(move |request: Request| {
        limits.check(&7_u64, 1).expect("below the limit");
        answer::<Failure>(request)
    });
    let layered = ServiceBuilder::new().layer(limit.layer()).service(bare);
    vec![
        Subject::new(LIMIT_CHECK, check).on_two_cores(),
        Subject::new(LIMIT_CHECK_KEYED, check_keyed),
        limit_check_in_turn(LIMIT_CHECK_256, 256),
        limit_check_in_turn(LIMIT_CHECK_100000, 100_000),
        Subject::new(RATE_LIMIT, layered).on_two_cores(),
    ]
}

/// The limits of `keys` keys are there from the start.
fn limit_check_in_turn(name: &'static str, keys: u64) -> Subject {
    let limits = limits_of(keys);
    let mut n = 0;
    let check = service_fn(move |request: Request| {
        n += 1;
        let key = key_in_turn(n, keys);
        limits.check(&key, 1).expect("below the limit");
        answer::<Failure>(request)
    });
    Subject::new(name, check)
}

/// A family with a limit for each of `keys` keys.
pub(crate) fn limits_of(keys: u64) -> KeyedRateLimit<u64> {
    let most = usize::try_from(keys).expect("fits");
    let limits = rate_limit().keyed(Keyed::new().max_keys(most));
    let limits = limits.expect("valid limits");
    for key in 0..keys {
        limits.check(&key, 1).expect("below the limit");
    }
    limits
}

fn rate_limit() -> RateLimitBuilder {
    RateLimit::builder("bench").permits(u32::MAX.into(), Duration::from_secs(1))
}

fn breakers() -> Vec<Subject> {
    let bare = service_fn(answer::<Error<Failure>>);
    let time = breaker().build().expect("a valid breaker");
    let count = breaker().window(Window::count(100));
    let count = count.build().expect("a valid breaker");
    let slow = breaker().slow_calls(Duration::from_millis(500), 0.8);
    let slow = slow.build().expect("a valid breaker");
    // A call that passes never meets the store, whichever it is.
    let shared = breaker().store(InProcessBreakers::new());
    let shared = shared.build().expect("a valid breaker");
    let keyed = breaker().keyed(Keyed::new()).expect("valid breakers");
    let stack = || ServiceBuilder::new();
    vec![
        Subject::new(TIME_WINDOW, stack().layer(time.layer()).service(bare)).on_two_cores(),
        Subject::new(COUNT_WINDOW, stack().layer(count.layer()).service(bare)).on_two_cores(),
        Subject::new(SLOW_CALLS, stack().layer(slow.layer()).service(bare)).on_two_cores(),
        Subject::new(SHARED, stack().layer(shared.layer()).service(bare)).on_two_cores(),
        Subject::new(KEYED, stack().layer(keyed.layer(key)).service(bare)).on_two_cores(),
    ]
}

fn others() -> Vec<Subject> {
    let bare = service_fn(answer::<Error<Failure>>);
    let deadline = Timeout::new("bench", PATIENCE).expect("a valid timeout");
    let breaker = breaker().build().expect("a valid breaker");
    let bulkheads = bulkhead().keyed(Keyed::new()).expect("valid bulkheads");
    let bulkhead = bulkhead().build().expect("a valid bulkhead");
    let shed = LoadShed::new("bench");
    let calls = Coalesce::builder("bench").build().expect("a valid handle");
    let passing = calls.layer(|_| None::<u64>);
    let stack = || ServiceBuilder::new();
    // Shed innermost, where it finds out whether the service itself is ready; the rest in the order that the crate's
    // documentation recommends.
    let five = stack()
        .layer(deadline.layer())
        .layer(retry().layer())
        .layer(bulkhead.layer())
        .layer(breaker.layer())
        .layer(shed.layer());
    vec![
        Subject::new(DEADLINE, stack().layer(deadline.layer()).service(bare)).on_two_cores(),
        Subject::new(RETRY, stack().layer(retry().layer()).service(bare)).on_two_cores(),
        Subject::new(BULKHEAD, stack().layer(bulkhead.layer()).service(bare)).on_two_cores(),
        Subject::new(
            BULKHEAD_KEYED,
            stack().layer(bulkheads.layer(key)).service(bare),
        ),
        Subject::new(SHED, stack().layer(shed.layer()).service(bare)),
        Subject::new(COALESCE_PASSING, stack().layer(passing).service(bare)),
        Subject::new(FIVE, five.service(bare)).on_two_cores(),
    ]
}

/// A time window of ten seconds, a failure rate of one half over at least twenty calls: the default, and what the
/// peers are set to.
fn breaker() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("bench")
}

/// Three attempts, and the default budget: 20 % and 10 per second.
fn retry() -> Retry {
    Retry::builder("bench").build().expect("a valid retry")
}

/// May be sent again, like a GET.
impl Replayable for Request {
    fn replay(&self) -> Option<Self> {
        Some(*self)
    }
}

/// Without a queue, as it is by default: rejects when it is full.
fn bulkhead() -> BulkheadBuilder {
    Bulkhead::builder("bench").max_concurrent(LIMIT)
}

/// Sixteen keys in turn.
const fn key(request: &Request) -> u64 {
    request.0 % 16
}
