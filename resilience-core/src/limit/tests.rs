//! The limit as its users hold it.

pub(super) mod oracle;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, ServiceExt, service_fn};
use tower_test::mock;

use super::*;
use crate::{
    Error, InvalidConfig,
    deadline::{self, Deadline},
    error::{Pattern, Reason},
    keyed::Keyed,
    test_log::events_of,
};

const SECOND: Duration = Duration::from_secs(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Ten per second, ten at once.
fn ten() -> RateLimitBuilder {
    RateLimit::builder("ten").permits(10, SECOND)
}

fn drained(builder: RateLimitBuilder) -> RateLimit {
    let limit = builder.build().unwrap();
    limit.try_acquire(limit.snapshot().capacity).unwrap();
    limit
}

#[test]
fn bad_settings_are_refused_by_name() {
    let field = |made: Result<RateLimit, InvalidConfig>| made.unwrap_err().field();
    assert_eq!(field(ten().permits(0, SECOND).build()), "permits");
    assert_eq!(field(ten().permits(1, Duration::ZERO).build()), "period");
    assert_eq!(field(ten().burst(0).build()), "burst");
    assert_eq!(field(ten().burst(u64::MAX).build()), "burst");
    assert_eq!(field(ten().queue(0, SECOND).build()), "queue");
    assert_eq!(field(ten().queue(1, Duration::ZERO).build()), "queue");
    let keyed = ten().keyed::<u32>(Keyed::new().max_keys(0));
    assert_eq!(keyed.unwrap_err().field(), "max_keys");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_says_when_to_come_back_to_the_microsecond() {
    let limit = drained(ten());
    advance(Duration::from_micros(30_001)).await;
    let rejected = limit.try_acquire(1).unwrap_err();
    assert_eq!(rejected.pattern(), Pattern::RateLimit);
    assert_eq!(rejected.reason(), Reason::RateLimited);
    let wait = rejected.retry_after().unwrap();
    // The clock may stand within a microsecond.
    assert!(
        wait.abs_diff(Duration::from_micros(69_999)) <= Duration::from_micros(1),
        "{wait:?}"
    );
    advance(wait - Duration::from_micros(2)).await;
    assert!(limit.try_acquire(1).is_err());
    advance(Duration::from_micros(2)).await;
    assert!(limit.try_acquire(1).is_ok());
    assert_eq!(limit.snapshot().rejected_limited, 2);
}

#[tokio::test(start_paused = true)]
async fn what_can_never_pass_is_told_so_and_does_not_wait() {
    let limit = drained(ten().queue(8, 3600 * SECOND));
    for rejected in [limit.try_acquire(11), limit.acquire(11).await] {
        let rejected = rejected.unwrap_err();
        assert_eq!(rejected.reason(), Reason::TooCostly);
        assert_eq!(rejected.retry_after(), None);
    }
    assert_eq!(limit.snapshot().rejected_too_costly, 2);
}

#[tokio::test(start_paused = true)]
async fn zero_passes_an_empty_bucket_and_a_refund_fills_no_more_than_there_is_room_for() {
    let limit = drained(ten());
    assert!(limit.try_acquire(0).is_ok());
    limit.refund(3);
    assert_eq!(limit.snapshot().remaining, 3);
    limit.refund(u64::MAX);
    assert_eq!(limit.snapshot().remaining, 10);
    assert!(limit.try_acquire(10).is_ok());
    assert!(limit.try_acquire(1).is_err());
}

/// Peers run the inner service first and ask afterwards.
#[tokio::test(start_paused = true)]
async fn a_rejected_request_never_reaches_the_service() {
    let calls = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&calls);
    let inner = service_fn(move |cost: u64| {
        seen.fetch_add(1, SeqCst);
        async move { Ok::<_, Error<Infallible>>(cost) }
    });
    let limit = ten().build().unwrap();
    let service = limit.layer().cost(|cost: &u64| *cost).layer(inner);
    assert_eq!(service.clone().oneshot(8).await, Ok(8));
    let rejected = service.clone().oneshot(3).await.unwrap_err();
    let wait = rejected.rejected().unwrap().retry_after().unwrap();
    assert_eq!(wait, ms(100));
    assert_eq!(service.oneshot(2).await, Ok(2));
    assert_eq!(calls.load(SeqCst), 2);
}

/// Acquires in tasks of their own, in this order; when each was served, in milliseconds from the first.
struct Crowd {
    served: Arc<Mutex<Vec<(u64, u64)>>>,
    start: Instant,
}

impl Crowd {
    fn new() -> Self {
        Self {
            served: Arc::default(),
            start: Instant::now(),
        }
    }

    async fn joins(&self, limit: &RateLimit, cost: u64) -> JoinHandle<()> {
        let (limit, served, start) = (limit.clone(), Arc::clone(&self.served), self.start);
        let task = tokio::spawn(async move {
            if limit.acquire(cost).await.is_ok() {
                let after = u64::try_from(start.elapsed().as_millis()).unwrap();
                served.lock().unwrap().push((cost, after));
            }
        });
        tokio::task::yield_now().await;
        task
    }

    fn served(&self) -> Vec<(u64, u64)> {
        self.served.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_order_of_arrival_and_nobody_overtakes() {
    let limit = drained(ten().queue(10, 10 * SECOND));
    let crowd = Crowd::new();
    for cost in [3, 1, 2] {
        crowd.joins(&limit, cost).await;
    }
    assert_eq!(limit.snapshot().waiting, 3);
    advance(ms(200)).await;
    let behind = limit.try_acquire(1).unwrap_err().retry_after().unwrap();
    assert_eq!(
        behind,
        ms(500),
        "behind all who wait, though there is a token"
    );
    assert!(limit.try_acquire(0).is_ok());
    sleep(SECOND).await;
    // A timer of tokio's is good to a millisecond.
    let served = crowd.served();
    let costs: Vec<_> = served.iter().map(|(cost, _)| *cost).collect();
    assert_eq!(costs, [3, 1, 2]);
    for ((_, at), due) in served.iter().zip([300, 400, 600]) {
        assert!((due..=due + 2).contains(at), "{served:?}");
    }
    assert_eq!(limit.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_costs_nothing_and_those_behind_move_up() {
    let limit = drained(ten().queue(10, 10 * SECOND));
    let crowd = Crowd::new();
    let first = crowd.joins(&limit, 9).await;
    let _second = crowd.joins(&limit, 1).await;
    let third = crowd.joins(&limit, 8).await;
    crowd.joins(&limit, 2).await;
    first.abort();
    third.abort();
    sleep(SECOND).await;
    let served = crowd.served();
    assert!(
        matches!(served[..], [(1, 100..=102), (2, 300..=302)]),
        "{served:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_would_wait_too_long_or_finds_the_line_full_is_told_at_once() {
    let limit = drained(ten().queue(2, ms(1500)));
    let crowd = Crowd::new();
    crowd.joins(&limit, 10).await;
    let start = Instant::now();
    let late = limit.acquire(6).await.unwrap_err();
    assert_eq!(late.reason(), Reason::RateLimited);
    assert_eq!(late.retry_after(), Some(ms(1600)));
    crowd.joins(&limit, 1).await;
    assert!(limit.acquire(0).await.is_ok(), "nothing takes no place");
    let full = limit.acquire(1).await.unwrap_err();
    assert_eq!(full.retry_after(), Some(ms(1200)));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_their_deadline() {
    let limit = drained(ten().queue(10, 10 * SECOND));
    let within = |time, cost| {
        let limit = limit.clone();
        deadline::scope(
            Deadline::after(time),
            async move { limit.acquire(cost).await },
        )
    };
    let start = Instant::now();
    assert!(within(ms(299), 3).await.is_err());
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(within(ms(302), 3).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn tokens_put_back_serve_who_waits_at_once() {
    let limit = drained(ten().queue(10, 10 * SECOND));
    let crowd = Crowd::new();
    crowd.joins(&limit, 5).await;
    crowd.joins(&limit, 5).await;
    limit.refund(5);
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
    assert_eq!(crowd.served(), [(5, 0)]);
    assert_eq!(limit.snapshot().waiting, 1);
}

/// The tokens are there and the service is not ready: the call is not made, so it costs nothing.
#[tokio::test(start_paused = true)]
async fn a_call_dropped_between_its_turn_and_the_readiness_below_costs_nothing() {
    let limit = drained(ten().queue(10, 10 * SECOND));
    let (mut below, mut handle) = mock::spawn_layer::<(), (), _>(limit.layer());
    handle.allow(1);
    assert_ready_ok!(below.poll_ready());
    let mut call = task::spawn(below.call(()));
    handle.allow(0);
    assert_pending!(call.poll());
    sleep(ms(101)).await;
    assert_pending!(call.poll());
    assert_eq!(
        (limit.snapshot().remaining, limit.snapshot().waiting),
        (0, 0)
    );
    drop(call);
    assert_eq!(limit.snapshot().remaining, 1);
}

#[tokio::test(start_paused = true)]
async fn keys_have_their_own_quota_and_the_family_is_bounded_without_forgetting_who_used_theirs() {
    let large = Quota::per(100, SECOND).unwrap();
    let small = Quota::per(1, SECOND).unwrap();
    let limits = ten()
        .keyed_with(Keyed::new().max_keys(4), move |key: &u32| {
            if *key == 0 { large } else { small }
        })
        .unwrap();
    assert!(limits.check(&0, 100).is_ok());
    for key in 1..4 {
        assert!(limits.check(&key, 1).is_ok());
        assert!(limits.check(&key, 1).is_err());
    }
    // All four are in use: the fifth and the sixth share one, by the quota of the builder.
    assert!(limits.check(&5, 9).is_ok());
    assert!(limits.check(&6, 1).is_ok());
    assert!(limits.check(&6, 1).is_err());
    assert_eq!(limits.len(), 4);
    assert!(limits.check(&1, 1).is_err(), "no room was made");
    advance(2 * SECOND).await;
    assert!(limits.check(&7, 1).is_ok());
    assert!(limits.len() <= 4);
    assert_eq!(limits.snapshot().rejected_limited, 5);
}

#[tokio::test(start_paused = true)]
async fn a_keyed_layer_charges_each_key_what_its_requests_cost() {
    let limits = ten().keyed(Keyed::new()).unwrap();
    let echo = service_fn(|(who, cost): (&'static str, u64)| async move {
        Ok::<_, Rejected>(format!("{who} {cost}"))
    });
    let service = limits
        .layer(|(who, _): &(&'static str, u64)| *who)
        .cost(|(_, cost): &(&'static str, u64)| *cost)
        .layer(echo);
    assert!(service.clone().oneshot(("a", 10)).await.is_ok());
    assert!(service.clone().oneshot(("a", 1)).await.is_err());
    assert!(service.clone().oneshot(("b", 10)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_rejection_leaves_an_event_and_a_passing_call_none() {
    let limit = ten().build().unwrap();
    let events = events_of(|| {
        limit.try_acquire(10).unwrap();
        limit.try_acquire(2).unwrap_err();
        limit.try_acquire(20).unwrap_err();
    });
    assert_eq!(events.len(), 2, "{events:?}");
    for part in ["rejected", "rate_limit", "ten", "rate_limited", "200ms"] {
        assert!(events[0].contains(part), "{events:?}");
    }
    assert!(events[1].contains("too_costly"), "{events:?}");
}
