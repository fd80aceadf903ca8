//! Stacks as they are described, and the orders that are warned of.

use std::{convert::Infallible, fmt, time::Duration};

use serde_json::json;
use tower::{
    BoxError, Layer, ServiceBuilder, ServiceExt,
    buffer::BufferLayer,
    limit::ConcurrencyLimitLayer,
    util::{BoxCloneService, MapErrLayer, option_layer},
};

use super::*;
use crate::{
    Bulkhead, CircuitBreaker, Fallback, FleetBulkhead, FleetRateLimit, Keyed, LoadShed, Quota,
    RateLimit, Retry, Timeout, UpstreamLimits,
    admission::{Admission, AdmissionLayer, Admit, Refused},
    bulkhead::fleet::InProcessBulkheads,
    execute::{self, Execute, Stack},
    limit::store::InProcessLimits,
    retry::Always,
    test_log,
};

const SECOND: Duration = Duration::from_secs(1);

fn timeout(name: &str, after: Duration) -> Timeout {
    Timeout::new(name, after).unwrap()
}

fn retry(attempts: u32) -> Retry {
    Retry::builder("r").max_attempts(attempts).build().unwrap()
}

fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder("c").build().unwrap()
}

fn bulkhead(queue: bool) -> Bulkhead {
    let bulkhead = Bulkhead::builder("b").max_concurrent(3);
    match queue {
        true => bulkhead.queue(4, SECOND).build().unwrap(),
        false => bulkhead.build().unwrap(),
    }
}

fn rate_limit() -> RateLimit {
    let quota = Quota::per(10, SECOND).unwrap().burst(20).unwrap();
    RateLimit::builder("l").quota(quota).build().unwrap()
}

fn rules<L: Layer<Execute>>(layers: L) -> Vec<Rule>
where
    L::Service: fmt::Debug,
{
    let warnings = describe(&layers.layer(Execute)).warnings();
    warnings.into_iter().map(|warning| warning.rule).collect()
}

fn lines(stack: &impl fmt::Debug) -> Vec<String> {
    let text = describe(stack).to_string();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn every_layer_is_listed_with_its_name_and_settings() {
    let places = FleetBulkhead::builder("fb").store(InProcessBulkheads::new());
    let places = places.max_concurrent(5).queue(6, SECOND).build().unwrap();
    let fleet = FleetRateLimit::builder("fl").store(InProcessLimits::new());
    let fleet = fleet.limit("x", Quota::per(1, SECOND).unwrap());
    let fleet = fleet.build().unwrap();
    let count = CircuitBreaker::builder("n").consecutive_failures(2);
    let hosts = CircuitBreaker::builder("hosts").keyed::<u8>(Keyed::new());
    let tenants = Bulkhead::builder("tenants").keyed::<u8>(Keyed::new());
    let keys = RateLimit::builder("keys").quota(Quota::per(1, SECOND).unwrap());
    let keys = keys.keyed::<u8>(Keyed::new()).unwrap();
    let upstreams = UpstreamLimits::builder("u").build().unwrap();
    let stack = ServiceBuilder::new()
        .layer(Fallback::value("f", 1).layer())
        .layer(LoadShed::new("s").layer())
        .layer(timeout("d", 2 * SECOND).layer())
        .layer(retry(3).layer())
        .layer(rate_limit().layer())
        .layer(keys.layer(|_: &u8| 1))
        .layer(fleet.layer(|_: &u8| "subject"))
        .layer(upstreams.layer(|_: &u8| "host"))
        .layer(bulkhead(true).layer())
        .layer(tenants.unwrap().layer(|_: &u8| 1))
        .layer(places.layer())
        .layer(count.build().unwrap().layer())
        .layer(hosts.unwrap().layer(|_: &u8| 1))
        .layer(timeout("d", SECOND).layer().per_attempt())
        .service(Execute);
    let expected = [
        "fallback `f`",
        "load shed `s`",
        "deadline `d` (after 2s)",
        "retry `r` (max_attempts 3)",
        "rate limit `l` (permits 10, period 1s, burst 20)",
        "rate limit `keys` (per_key)",
        "rate limit `fl` (fleet)",
        "rate limit `u` (upstream)",
        "bulkhead `b` (max_concurrent 3, queue 4)",
        "bulkhead `tenants` (per_key)",
        "bulkhead `fb` (max_concurrent 5, fleet, queue 6)",
        "circuit breaker `n` (window 10s, failure_rate 0.5, consecutive_failures 2)",
        "circuit breaker `hosts` (per_key)",
        "deadline `d` (after 1s, per_attempt)",
    ];
    let nested: Vec<String> = (expected.iter().enumerate())
        .map(|(depth, line)| format!("{:indent$}{line}", "", indent = 2 * depth))
        .collect();
    assert_eq!(lines(&stack), nested);
    assert_eq!(describe(&stack).warnings(), []);
}

#[test]
fn a_description_can_be_serialized() {
    let stack = timeout("d", SECOND).layer().layer(Execute);
    let expected = json!([
        {"pattern": "deadline", "name": "d", "settings": {"after": 1.0}, "depth": 0},
    ]);
    assert_eq!(serde_json::to_value(describe(&stack)).unwrap(), expected);
    let stack = breaker().layer().layer(retry(2).layer().layer(Execute));
    let warning = serde_json::to_value(describe(&stack).warnings()).unwrap();
    assert_eq!(warning[0]["rule"], "retry_below_breaker");
    assert_eq!(warning[0]["below"]["settings"]["max_attempts"], 2);
}

#[tokio::test]
async fn foreign_layers_are_looked_through_and_a_box_ends_the_description() {
    let stack = ServiceBuilder::new()
        .layer(timeout("outer", SECOND).layer())
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(option_layer(Some(bulkhead(false).layer())))
        .layer(MapErrLayer::new(|error: BoxError| error))
        .layer(retry(3).layer().replay(Always));
    let names = |parts: &[Part]| -> Vec<String> {
        parts.iter().map(|part| part.name().to_owned()).collect()
    };
    let inner = tower::service_fn(async |_: u8| Ok::<_, BoxError>(1));
    let stack = stack.service(inner);
    assert_eq!(names(describe(&stack).parts()), ["outer", "b", "r"]);

    let boxed: BoxCloneService<u8, u8, BoxError> = stack.clone().boxed_clone();
    let around = breaker().layer().layer(boxed);
    assert_eq!(names(describe(&around).parts()), ["c"]);
    let buffered = BufferLayer::new(1).layer(stack);
    assert_eq!(describe(&buffered).parts(), []);
}

#[test]
fn a_policy_of_another_crate_is_listed_without_a_name() {
    #[derive(Clone, Debug)]
    struct Any;
    impl Admit<u8> for Any {
        type Permit = crate::bulkhead::Permit;
        type Wait = std::future::Ready<Result<Self::Permit, crate::Rejected>>;
        fn admit(&self, _: &u8) -> Admission<Self::Permit, Self::Wait> {
            Err(Refused::no(crate::Rejected::new(
                Pattern::custom("any"),
                crate::Reason::Overloaded,
                "any",
            )))
        }
    }
    let inner = timeout("d", SECOND).layer().layer(Execute);
    let stack = AdmissionLayer::new(Any).layer(inner);
    assert_eq!(lines(&stack), ["admission", "  deadline `d` (after 1s)"]);
}

/// Two services beside each other, and handles, as a user's service may hold them.
#[test]
fn branches_are_told_apart_and_handles_are_no_layers() {
    #[derive(Clone, Debug)]
    #[expect(dead_code, reason = "formatted")]
    struct Both<A, B> {
        one: A,
        other: B,
        bulkhead: Bulkhead,
        guarded: execute::Guarded<execute::StackService>,
    }
    let both = Both {
        one: breaker().layer().layer(Execute),
        other: retry(3).layer().layer(Execute),
        bulkhead: bulkhead(true),
        guarded: Stack::builder().retry(&retry(3)).build(),
    };
    let around = timeout("d", SECOND).layer().layer(both);
    let expected = [
        "deadline `d` (after 1s)",
        "  circuit breaker `c` (window 10s, failure_rate 0.5)",
        "  retry `r` (max_attempts 3)",
    ];
    assert_eq!(lines(&around), expected);
    assert_eq!(describe(&around).warnings(), [], "they are not nested");
}

#[test]
fn the_documented_order_has_no_warnings() {
    let layers = ServiceBuilder::new()
        .layer(Fallback::value("f", ()).layer())
        .layer(timeout("call", 2 * SECOND).layer())
        .layer(retry(3).layer())
        .layer(rate_limit().layer())
        .layer(bulkhead(true).layer())
        .layer(breaker().layer())
        .layer(timeout("attempt", SECOND).layer());
    assert_eq!(rules(layers), []);
}

#[test]
fn orders_that_defeat_themselves_are_found() {
    let two = ServiceBuilder::new();
    let call = timeout("call", SECOND);
    let fallback = || Fallback::value("f", ()).layer();

    let layers = two.clone().layer(breaker().layer()).layer(retry(3).layer());
    assert_eq!(rules(layers), [Rule::RetryBelowBreaker]);
    let layers = two.clone().layer(breaker().layer()).layer(retry(1).layer());
    assert_eq!(rules(layers), [], "it makes one attempt");

    let layers = two.clone().layer(retry(2).layer()).layer(retry(3).layer());
    assert_eq!(rules(layers), [Rule::RetryBelowRetry]);

    let layers = two.clone().layer(retry(3).layer()).layer(call.layer());
    assert_eq!(rules(layers), [Rule::DeadlineBelowRetry]);
    let layers = two.clone().layer(retry(3).layer());
    assert_eq!(rules(layers.layer(call.layer().per_attempt())), []);

    let outer = ServiceBuilder::new().layer(call.layer());
    for (inner, expected) in [
        (SECOND / 2, &[][..]),
        (SECOND, &[Rule::DeadlineWithoutEffect]),
        (2 * SECOND, &[Rule::DeadlineWithoutEffect]),
    ] {
        let layers = outer.clone().layer(retry(3).layer());
        let layers = layers.layer(timeout("attempt", inner).layer());
        assert_eq!(rules(layers), expected, "{inner:?}");
    }
    let chosen = call.layer().per_request(|_: &u8| None);
    let layers = ServiceBuilder::new().layer(chosen).layer(call.layer());
    assert_eq!(rules(layers), [], "the outer one may be longer");

    let layers = two.clone().layer(retry(3).layer()).layer(fallback());
    assert_eq!(rules(layers), [Rule::FallbackHidesFailures]);
    let layers = two.clone().layer(breaker().layer()).layer(fallback());
    assert_eq!(rules(layers), [Rule::FallbackHidesFailures]);

    let below = |queue| {
        ServiceBuilder::new()
            .layer(breaker().layer())
            .layer(bulkhead(queue).layer())
    };
    assert_eq!(rules(below(true)), [Rule::QueueBelowBreaker]);
    assert_eq!(rules(below(false)), []);

    let twice = breaker();
    let layers = two.clone().layer(twice.layer()).layer(twice.layer());
    assert_eq!(rules(layers), [Rule::Repeated]);
    let other = CircuitBreaker::builder("other").build().unwrap();
    let layers = two.layer(twice.layer()).layer(other.layer());
    assert_eq!(rules(layers), []);
}

#[test]
fn keys_below_a_retry_are_found_also_below_a_foreign_layer() {
    struct Keys<S>(S);
    impl<S: fmt::Debug> fmt::Debug for Keys<S> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let _entered = enter(|| Part::new(IDEMPOTENCY_KEYS, ""));
            f.debug_tuple("Keys").field(&self.0).finish()
        }
    }
    impl<S: Clone> Clone for Keys<S> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }
    let inner = ConcurrencyLimitLayer::new(1).layer(Keys(Execute));
    let stack = retry(3).layer().layer(inner);
    let warnings = describe(&stack).warnings();
    assert_eq!(warnings[0].rule, Rule::KeyBelowRetry);
    let text = "idempotency_keys is below retry `r`: each attempt gets a key of its own";
    assert!(warnings[0].to_string().starts_with(text), "{}", warnings[0]);
    let keys_above = Keys(retry(3).layer().layer(Execute));
    assert_eq!(describe(&keys_above).warnings(), []);
}

#[test]
fn a_rule_is_told_once_per_layer_above() {
    let call = timeout("call", SECOND);
    let layers = ServiceBuilder::new()
        .layer(retry(3).layer())
        .layer(call.layer())
        .layer(timeout("attempt", SECOND / 2).layer());
    assert_eq!(rules(layers), [Rule::DeadlineBelowRetry]);
}

#[test]
fn warnings_are_emitted_when_a_stack_is_built_and_once() {
    let log = test_log::listen();
    let count = || log.events().len();
    let wrong = || {
        ServiceBuilder::new()
            .layer(breaker().layer())
            .layer(retry(3).layer())
    };

    let guarded = execute::guard(wrong());
    assert_eq!(count(), 1);
    assert_eq!(
        guarded.describe().warnings()[0].rule,
        Rule::RetryBelowBreaker
    );

    let checked = ServiceBuilder::new()
        .layer(CheckOrder::new())
        .layer(breaker().layer());
    let checked = checked.layer(retry(3).layer());
    let _first = checked.clone().service(Execute);
    let _second = checked.service(Execute);
    assert_eq!(count(), 2);

    let stack = |attempt| {
        let call = timeout("call", SECOND);
        let attempt = timeout("attempt", attempt);
        let stack = Stack::builder().timeout(&call).retry(&retry(3));
        stack.attempt_timeout(&attempt).build()
    };
    assert_eq!(stack(SECOND / 2).describe().parts().len(), 3);
    assert_eq!(count(), 2);
    stack(SECOND);
    assert_eq!(count(), 3);
}

#[test]
fn a_stack_may_describe_another_one_and_a_panic_ends_only_its_own_description() {
    struct Panics;
    impl fmt::Debug for Panics {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("on purpose");
        }
    }
    struct Nested;
    impl fmt::Debug for Nested {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let inner = describe(&breaker().layer().layer(Execute));
            assert_eq!(inner.parts().len(), 1);
            let panicking = || describe(&Panics);
            assert!(std::panic::catch_unwind(panicking).is_err());
            let _entered = enter(|| Part::new(Pattern::Deadline, "outer"));
            f.write_str("Nested")
        }
    }
    assert_eq!(lines(&Nested), ["deadline `outer`"]);
}

#[tokio::test]
async fn a_checked_stack_is_the_stack_itself() {
    let stack = CheckOrder::new().layer(tower::service_fn(async |n: u8| Ok::<_, Infallible>(n)));
    assert_eq!(stack.oneshot(7).await, Ok(7));
}
