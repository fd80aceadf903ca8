//! One suite for every store of shared rate limits, asked through the trait.
//!
//! Each check takes a fresh name, so that all can run on one server. Times are real: quotas are so slow that a token
//! does not come while a check runs, or so fast that one is waited for with a bound.

use std::{sync::Arc, time::Duration};

use crate::limit::{
    Quota,
    store::{Demand, LimitStore, StoreDecision},
    token_bucket::LimitOutcome,
};

use crate::conformance::eventually;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(10);
const ADMITTED: LimitOutcome = LimitOutcome::Admitted { binding: 0 };

/// Runs every check on `store`.
pub async fn all(store: &Arc<dyn LimitStore>) {
    let it = &**store;
    an_unknown_bucket_is_full_and_a_look_changes_nothing(it).await;
    what_was_taken_is_gone_and_a_refusal_takes_nothing(it).await;
    a_wait_is_exact_enough_to_be_believed(it).await;
    what_can_never_be_had_is_impossible(it).await;
    a_refund_fills_no_more_than_there_is_room_for(it).await;
    several_limits_are_charged_together_or_not_at_all(it).await;
    a_new_plan_keeps_the_tokens(it).await;
    subjects_names_and_limits_do_not_leak_into_each_other(it).await;
    a_bucket_that_is_full_again_takes_all_of_it(it).await;
    demands_that_make_no_sense_are_refused(it).await;
    numbers_at_their_bounds_are_exact(it).await;
    a_crowd_gets_exactly_what_there_is(store).await;
    instances_are_counted_while_they_are_heard_of(it).await;
}

fn per(permits: u64, period: Duration) -> Quota {
    Quota::per(permits, period).expect("a valid quota")
}

fn demand(limit: &str, quota: Quota, cost: i64) -> Demand<'_> {
    Demand { limit, quota, cost }
}

async fn ask(store: &dyn LimitStore, name: &str, demands: &[Demand<'_>]) -> StoreDecision {
    store
        .decide(name, "subject", demands)
        .await
        .expect("an answer")
}

async fn one(store: &dyn LimitStore, name: &str, quota: Quota, cost: i64) -> StoreDecision {
    ask(store, name, &[demand("limit", quota, cost)]).await
}

fn left(decision: &StoreDecision) -> Vec<u64> {
    decision
        .limits
        .iter()
        .map(|limit| limit.remaining)
        .collect()
}

async fn an_unknown_bucket_is_full_and_a_look_changes_nothing(store: &dyn LimitStore) {
    for _ in 0..3 {
        let decision = one(store, "unknown", per(5, HOUR), 0).await;
        assert_eq!(decision.outcome, ADMITTED);
        assert_eq!((left(&decision), decision.limits[0].full_in), (vec![5], 0));
    }
}

async fn what_was_taken_is_gone_and_a_refusal_takes_nothing(store: &dyn LimitStore) {
    let quota = per(5, HOUR);
    assert_eq!(left(&one(store, "taken", quota, 3).await), [2]);
    for _ in 0..20 {
        let refused = one(store, "taken", quota, 3).await;
        let LimitOutcome::Wait { binding: 0, micros } = refused.outcome else {
            panic!("{refused:?}");
        };
        // A token takes 720 s, and this check took less than ten.
        assert!((710_000_000..=720_000_000).contains(&micros), "{micros}");
        assert_eq!(left(&refused), [2]);
    }
    let last = one(store, "taken", quota, 2).await;
    assert_eq!((last.outcome, left(&last)), (ADMITTED, vec![0]));
    assert!(!one(store, "taken", quota, 1).await.outcome.is_admitted());
    assert!(one(store, "taken", quota, 0).await.outcome.is_admitted());
}

async fn a_wait_is_exact_enough_to_be_believed(store: &dyn LimitStore) {
    let quota = per(10, Duration::from_secs(1));
    for _ in 0..3 {
        // However long the calls take, one of them finds nothing.
        let wait = loop {
            let decision = one(store, "wait", quota, 1).await;
            match decision.retry_after().expect("it can be had") {
                Duration::ZERO => {}
                wait => break wait,
            }
        };
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        tokio::time::sleep(wait).await;
        let then = one(store, "wait", quota, 1).await;
        assert_eq!(then.outcome, ADMITTED, "after {wait:?}");
    }
}

async fn what_can_never_be_had_is_impossible(store: &dyn LimitStore) {
    let quota = per(5, HOUR);
    for cost in [6, i64::MAX] {
        let refused = one(store, "impossible", quota, cost).await;
        assert_eq!(refused.outcome, LimitOutcome::Impossible { binding: 0 });
        assert_eq!((refused.retry_after(), left(&refused)), (None, vec![5]));
    }
}

async fn a_refund_fills_no_more_than_there_is_room_for(store: &dyn LimitStore) {
    let quota = per(5, HOUR);
    one(store, "refund", quota, 5).await;
    assert_eq!(left(&one(store, "refund", quota, -2).await), [2]);
    assert_eq!(left(&one(store, "refund", quota, i64::MIN).await), [5]);
    assert_eq!(left(&one(store, "refund", quota, -1).await), [5]);
    assert!(!one(store, "refund", quota, 6).await.outcome.is_admitted());
}

async fn several_limits_are_charged_together_or_not_at_all(store: &dyn LimitStore) {
    let (calls, bytes) = (per(10, HOUR), per(1_000, HOUR));
    let both = |bytes_cost| {
        [
            demand("calls", calls, 1),
            demand("bytes", bytes, bytes_cost),
        ]
    };
    let first = ask(store, "several", &both(900)).await;
    assert_eq!(first.outcome, LimitOutcome::Admitted { binding: 1 });
    assert_eq!(left(&first), [9, 100]);
    let refused = ask(store, "several", &both(200)).await;
    assert!(
        matches!(refused.outcome, LimitOutcome::Wait { binding: 1, micros } if micros > 300_000_000),
        "{refused:?}"
    );
    assert_eq!(left(&refused), [9, 100], "neither was charged");
    let impossible = ask(store, "several", &both(1_001)).await;
    assert_eq!(impossible.outcome, LimitOutcome::Impossible { binding: 1 });
    let settled = ask(store, "several", &[demand("bytes", bytes, -600)]).await;
    assert_eq!(left(&settled), [700], "each can be asked alone");
    assert_eq!(left(&ask(store, "several", &both(200)).await), [8, 500]);
}

async fn a_new_plan_keeps_the_tokens(store: &dyn LimitStore) {
    let (slow, fast) = (per(10, 24 * HOUR), per(100, Duration::from_secs(1)));
    one(store, "plans", slow, 10).await;
    let upgraded = one(store, "plans", fast, 1).await.retry_after();
    assert!(
        upgraded <= Some(Duration::from_millis(10)),
        "waits as on the old plan: {upgraded:?}"
    );
    eventually("the new rate", SOON, || async {
        one(store, "plans", fast, 1).await.outcome.is_admitted()
    })
    .await;
    let hourly = per(100, HOUR);
    assert_eq!(left(&one(store, "plans-2", hourly, 95).await), [5]);
    let downgraded = one(store, "plans-2", slow, 0).await;
    assert_eq!(left(&downgraded), [5], "what was used is not handed back");
}

async fn subjects_names_and_limits_do_not_leak_into_each_other(store: &dyn LimitStore) {
    let quota = per(5, HOUR);
    let take = async |name: &str, subject: &str, limit: &str| {
        let decision = store
            .decide(name, subject, &[demand(limit, quota, 5)])
            .await;
        decision.expect("an answer").outcome
    };
    for (name, subject, limit) in [
        ("leak", "a", "l"),
        ("leak", "a", "m"),
        ("leak", "b", "l"),
        ("leak:a", "b", "l"),
        ("leak", "a:b", "l"),
        ("leak", "a}:l", "l"),
        ("leak", "", "l"),
        ("leak", "", ""),
        ("leak", "ä 🦀\n", "l"),
        ("leak", &"long".repeat(200), "l"),
    ] {
        assert_eq!(
            take(name, subject, limit).await,
            ADMITTED,
            "{name} {subject} {limit}"
        );
        assert!(!take(name, subject, limit).await.is_admitted());
    }
}

async fn a_bucket_that_is_full_again_takes_all_of_it(store: &dyn LimitStore) {
    let quota = per(50, Duration::from_millis(50));
    one(store, "full", quota, 50).await;
    eventually("it is full again", SOON, || async {
        one(store, "full", quota, 0).await.limits[0].full_in == 0
    })
    .await;
    assert_eq!(one(store, "full", quota, 50).await.outcome, ADMITTED);
}

async fn demands_that_make_no_sense_are_refused(store: &dyn LimitStore) {
    let twice = [demand("same", per(5, HOUR), 1); 2];
    for demands in [&[][..], &twice] {
        let failure = store.decide("sense", "subject", demands).await.unwrap_err();
        assert!(!failure.ambiguous, "{failure}");
    }
    // Nothing was taken.
    let all = ask(store, "sense", &[demand("same", per(5, HOUR), 0)]).await;
    assert_eq!(all.limits[0].full_in, 0);
}

async fn numbers_at_their_bounds_are_exact(store: &dyn LimitStore) {
    let largest = Quota::per(1, Duration::from_micros(1))
        .and_then(|quota| quota.burst((1 << 53) - 2))
        .expect("the largest burst");
    let took = one(store, "bounds", largest, (1 << 53) - 2).await;
    assert_eq!(took.outcome, ADMITTED);
    assert_eq!(took.limits[0].full_in, (1 << 53) - 2);
    let years = Quota::per(1, Duration::from_micros((1 << 53) - 2)).expect("the slowest rate");
    assert_eq!(one(store, "bounds-2", years, 1).await.outcome, ADMITTED);
    let refused = one(store, "bounds-2", years, 1).await;
    let wait = refused.retry_after().expect("it can be had").as_micros();
    assert!(
        ((1 << 53) - 60_000_000..=(1 << 53) - 2).contains(&wait),
        "{wait}"
    );
}

/// How many calls are admitted of 20 tasks that make `calls` calls each.
async fn admitted_to_a_crowd(
    store: &Arc<dyn LimitStore>,
    subject: &'static str,
    quota: Quota,
    calls: u32,
) -> u32 {
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut got = 0;
                for _ in 0..calls {
                    let decision = one(&*store, subject, quota, 1).await;
                    got += u32::from(decision.outcome.is_admitted());
                }
                got
            })
        })
        .collect();
    let mut got = 0;
    for task in tasks {
        got += task.await.expect("no panic");
    }
    got
}

async fn a_crowd_gets_exactly_what_there_is(store: &Arc<dyn LimitStore>) {
    let quota = per(100, HOUR);
    let got = admitted_to_a_crowd(store, "crowd", quota, 10).await;
    assert_eq!(got, 100);
}

async fn instances_are_counted_while_they_are_heard_of(store: &dyn LimitStore) {
    let heartbeat = async |name: &str, instance: &str, ttl| {
        store
            .heartbeat(name, instance, ttl)
            .await
            .expect("an answer")
    };
    assert_eq!(heartbeat("live", "one", HOUR).await, 1);
    assert_eq!(heartbeat("live", "two", Duration::from_millis(50)).await, 2);
    assert_eq!(heartbeat("live-2", "three", HOUR).await, 1, "another name");
    assert_eq!(heartbeat("live:}", "ä 🦀", HOUR).await, 1, "any name");
    eventually("the second is forgotten", SOON, || async {
        heartbeat("live", "one", HOUR).await == 1
    })
    .await;
    assert_eq!(heartbeat("live", "two", HOUR).await, 2, "it comes back");
    assert_eq!(
        heartbeat("live", "one", Duration::ZERO).await,
        1,
        "it leaves"
    );
    assert_eq!(heartbeat("live", "one", Duration::ZERO).await, 1, "twice");
    assert_eq!(
        heartbeat("live", "two", Duration::ZERO).await,
        0,
        "no instance is left"
    );
}

/// What holds for a store whose limits are divided over 2 to 10 sub-buckets.
pub async fn split(store: &Arc<dyn LimitStore>) {
    sub_buckets_hold_all_of_a_burst_together_and_no_more(store).await;
    sub_buckets_are_charged_by_several_limits_or_not_at_all(&**store).await;
    subjects_whose_names_look_like_sub_buckets_are_subjects(&**store).await;
    demands_that_make_no_sense_are_refused(&**store).await;
}

async fn sub_buckets_hold_all_of_a_burst_together_and_no_more(store: &Arc<dyn LimitStore>) {
    let quota = per(103, HOUR);
    let mut got = admitted_to_a_crowd(store, "split-crowd", quota, 20).await;
    assert!(got <= 103, "{got}");
    // The last tokens are found by chance.
    for _ in 0..2_000 {
        if got == 103 {
            break;
        }
        let decision = one(&**store, "split-crowd", quota, 1).await;
        got += u32::from(decision.outcome.is_admitted());
    }
    assert_eq!(got, 103);
    for _ in 0..100 {
        let refused = one(&**store, "split-crowd", quota, 1).await;
        assert!(
            matches!(refused.outcome, LimitOutcome::Wait { .. }),
            "{refused:?}"
        );
    }
}

async fn sub_buckets_are_charged_by_several_limits_or_not_at_all(store: &dyn LimitStore) {
    let (calls, bytes) = (per(100, HOUR), per(1_000, HOUR));
    let mut admitted = 0;
    for _ in 0..200 {
        let demands = [demand("calls", calls, 1), demand("bytes", bytes, 20)];
        let decision = ask(store, "split-several", &demands).await;
        admitted += u32::from(decision.outcome.is_admitted());
    }
    assert!((40..=50).contains(&admitted), "{admitted}");
    // The bytes are used up, or nearly; half of the calls were never charged.
    let mut left = 0;
    for _ in 0..200 {
        let decision = ask(store, "split-several", &[demand("calls", calls, 1)]).await;
        left += u32::from(decision.outcome.is_admitted());
    }
    assert!(
        (90..=100).contains(&(left + admitted)),
        "{left} and {admitted}"
    );
}

async fn subjects_whose_names_look_like_sub_buckets_are_subjects(store: &dyn LimitStore) {
    let quota = per(20, HOUR);
    for subject in ["a", "a~0", "a~1", "a~", "~0"] {
        let mut got = 0;
        for _ in 0..100 {
            let demands = [demand("limit", quota, 1)];
            let decision = store.decide("split-names", subject, &demands).await;
            got += u32::from(decision.expect("an answer").outcome.is_admitted());
        }
        assert!((15..=20).contains(&got), "{subject}: {got}");
    }
}
