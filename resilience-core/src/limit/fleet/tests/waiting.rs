//! Calls that wait for their tokens, reservations, and the layer.

use std::{
    convert::Infallible,
    sync::{Mutex, atomic::AtomicU32},
};

use tokio::{task::JoinHandle, time::Instant};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, ServiceExt, service_fn};
use tower_test::mock;

use super::*;
use crate::{
    Error,
    deadline::{self, Deadline},
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn per_second(server: &Server) -> FleetRateLimitBuilder {
    FleetRateLimit::builder("ten")
        .store(server.clone())
        .limit("per-second", per(10, SECOND))
}

async fn drained(builder: FleetRateLimitBuilder) -> FleetRateLimit {
    let limit = builder.build().unwrap();
    settled().await;
    limit.check("t", 10).await.unwrap();
    limit
}

/// Calls in tasks of their own; which was served when, in milliseconds from the first.
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

    async fn joins(&self, limit: &FleetRateLimit, cost: u64) -> JoinHandle<()> {
        let (limit, served, start) = (limit.clone(), Arc::clone(&self.served), self.start);
        let task = tokio::spawn(async move {
            if limit.acquire("t", cost).await.is_ok() {
                let after = u64::try_from(start.elapsed().as_millis()).unwrap();
                served.lock().unwrap().push((cost, after));
            }
        });
        // Long enough for the store to have answered.
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        task
    }

    fn served(&self) -> Vec<(u64, u64)> {
        self.served.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_no_length_or_time_is_refused() {
    let server = Server::default();
    for builder in [
        per_second(&server).queue(0, SECOND),
        per_second(&server).queue(1, Duration::ZERO),
    ] {
        assert_eq!(builder.build().unwrap_err().field(), "queue");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_order_of_arrival_and_few_questions_are_asked() {
    for mode in [Mode::Exact, Mode::Leased(LeaseRules::new())] {
        let server = Server::default();
        let limit = drained(per_second(&server).mode(mode).queue(10, 10 * SECOND)).await;
        server.asked();
        let crowd = Crowd::new();
        for cost in [3, 1, 2] {
            crowd.joins(&limit, cost).await;
        }
        assert_eq!(limit.snapshot().waiting, 3);
        advance(ms(200)).await;
        assert!(limit.acquire("u", 1).await.is_ok(), "another line");
        sleep(SECOND).await;
        let served = crowd.served();
        let costs: Vec<_> = served.iter().map(|(cost, _)| *cost).collect();
        assert_eq!(costs, [3, 1, 2]);
        for ((_, at), due) in served.iter().zip([300, 400, 600]) {
            assert!((due - 2..=due + 22).contains(at), "{served:?}");
        }
        assert_eq!(limit.snapshot().waiting, 0);
        assert!(server.asked() < 20);
        assert_eq!(limit.snapshot().rejected_limited, 0, "no call was rejected");
    }
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_leaves_the_line_and_those_behind_move_up() {
    let server = Server::default();
    let limit = drained(per_second(&server).queue(10, 10 * SECOND)).await;
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
        matches!(served[..], [(1, 98..=104), (2, 298..=306)]),
        "{served:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_would_wait_too_long_or_finds_the_line_full_is_told_at_once() {
    let server = Server::default();
    let limit = drained(per_second(&server).queue(2, ms(1500))).await;
    let crowd = Crowd::new();
    crowd.joins(&limit, 10).await;
    let start = Instant::now();
    let late = limit.acquire("t", 6).await.unwrap_err();
    assert_eq!(late.reason(), Reason::RateLimited);
    assert!(late.retry_after().unwrap().abs_diff(ms(1600)) < ms(2));
    assert!(
        limit.acquire("t", 0).await.is_ok(),
        "nothing takes no place"
    );
    crowd.joins(&limit, 1).await;
    let full = limit.acquire("t", 1).await.unwrap_err();
    assert!(full.retry_after().unwrap().abs_diff(ms(1200)) < ms(2));
    let never = limit.acquire("t", 11).await.unwrap_err();
    assert_eq!(never.reason(), Reason::TooCostly);
    assert!(start.elapsed() < ms(1));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_their_deadline() {
    let server = Server::default();
    let limit = drained(per_second(&server).queue(10, 10 * SECOND)).await;
    let within = |time, cost| {
        let limit = limit.clone();
        deadline::scope(Deadline::after(time), async move {
            limit.acquire("t", cost).await
        })
    };
    let start = Instant::now();
    assert!(within(ms(299), 3).await.is_err());
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(within(ms(303), 3).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_was_reserved_is_settled_by_what_was_used() {
    for mode in [Mode::Exact, Mode::Leased(LeaseRules::new()), Mode::Local] {
        let server = Server::default();
        let limit = ten(&server).mode(mode).build().unwrap();
        let left = async |limit: &FleetRateLimit| {
            limit.return_leases().await.unwrap();
            match mode {
                Mode::Local => limit.ask("t", 0).await.limits().next().unwrap().remaining,
                _ => limit.peek("t").await.unwrap().binding().unwrap().remaining,
            }
        };
        let reserved = limit.reserve("t", 6).await.unwrap();
        assert_eq!(left(&limit).await, 4, "{mode:?}");
        assert!(reserved.settle(1).await.unwrap().is_paid());
        assert_eq!(left(&limit).await, 9, "{mode:?}");
        let reserved = limit.reserve("t", 2).await.unwrap();
        assert!(reserved.settle(5).await.unwrap().is_paid());
        assert_eq!(left(&limit).await, 4, "{mode:?}");
        let reserved = limit.reserve("t", 2).await.unwrap();
        let settled = reserved.settle(20).await.unwrap();
        assert_eq!(settled.unpaid().collect::<Vec<_>>(), [("per-hour", 16)]);
        assert_eq!(left(&limit).await, 0, "{mode:?}");
        let _ = limit.reset("t").await;
        if mode != Mode::Local {
            drop(limit.reserve("t", 6).await.unwrap());
            assert_eq!(left(&limit).await, 4, "unsettled, it is kept");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reservation_on_several_limits_puts_back_on_one_and_takes_on_the_other() {
    let server = Server::default();
    let limit = FleetRateLimit::builder("api")
        .store(server.clone())
        .limit("requests", per(10, HOUR))
        .limit("bytes", per(1000, HOUR))
        .build()
        .unwrap();
    let reserved = limit
        .reserve("t", [("requests", 5), ("bytes", 100)])
        .await
        .unwrap();
    server.asked();
    let settled = reserved
        .settle([("requests", 1), ("bytes", 700)])
        .await
        .unwrap();
    assert!(settled.is_paid());
    assert_eq!(server.asked(), 1, "both in one round trip");
    let left: Vec<_> = limit
        .peek("t")
        .await
        .unwrap()
        .limits()
        .map(|l| l.remaining)
        .collect();
    assert_eq!(left, [9, 300]);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_counted_is_not_settled() {
    let server = Server::default();
    let limit = ten(&server).shadow(true).build().unwrap();
    assert!(limit.check("t", 10).await.is_ok());
    let shadowed = limit.reserve("t", 5).await.unwrap();
    assert!(shadowed.decision().is_shadowed());
    assert!(shadowed.settle(0).await.unwrap().is_paid());
    let left = limit.peek("t").await.unwrap().binding().unwrap().remaining;
    assert_eq!(left, 0, "no tokens out of nothing");
}

/// Peers run the inner service first and ask afterwards.
#[tokio::test(start_paused = true)]
async fn a_rejected_request_never_reaches_the_service_and_each_pays_for_itself() {
    let server = Server::default();
    let calls = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&calls);
    let inner = service_fn(move |(_, cost): (&'static str, u64)| {
        seen.fetch_add(1, SeqCst);
        async move { Ok::<_, Error<Infallible>>(cost) }
    });
    let limit = ten(&server).build().unwrap();
    let service = limit
        .layer(|(who, _): &(&'static str, u64)| *who)
        .costs(|(_, cost): &(&'static str, u64)| *cost)
        .layer(inner);
    assert_eq!(service.clone().oneshot(("a", 8)).await, Ok(8));
    for _ in 0..3 {
        let rejected = service.clone().oneshot(("a", 3)).await.unwrap_err();
        let wait = rejected.rejected().unwrap().retry_after().unwrap();
        assert!(wait.abs_diff(SECOND * 360) < SECOND, "{wait:?}");
    }
    assert_eq!(service.clone().oneshot(("b", 10)).await, Ok(10));
    assert_eq!(service.oneshot(("a", 2)).await, Ok(2));
    assert_eq!(calls.load(SeqCst), 3);
}

/// The tokens are there and the service is not ready: the call is not made, so it costs nothing.
#[tokio::test(start_paused = true)]
async fn a_request_dropped_between_its_turn_and_the_readiness_below_puts_its_tokens_back() {
    let server = Server::default();
    let limit = ten(&server).build().unwrap();
    let layer = limit.layer(|(): &()| "t");
    let (mut below, mut handle) = mock::spawn_layer::<(), (), _>(layer);
    handle.allow(1);
    assert_ready_ok!(below.poll_ready());
    let mut call = task::spawn(below.call(()));
    handle.allow(0);
    while limit.peek("t").await.unwrap().binding().unwrap().remaining == 10 {
        assert_pending!(call.poll());
    }
    assert_pending!(call.poll());
    drop(call);
    settled().await;
    let left = limit.peek("t").await.unwrap().binding().unwrap().remaining;
    assert_eq!(left, 10);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_in_the_line_of_their_subject() {
    let server = Server::default();
    let limit = drained(per_second(&server).queue(10, SECOND)).await;
    let echo = service_fn(|cost: u64| async move { Ok::<_, Error<Infallible>>(cost) });
    let service = limit
        .layer(|_: &u64| "t")
        .costs(|cost: &u64| *cost)
        .layer(echo);
    let start = Instant::now();
    assert_eq!(service.clone().oneshot(3).await, Ok(3));
    assert!((ms(299)..ms(305)).contains(&start.elapsed()));
    assert!(service.oneshot(11).await.is_err());
}
