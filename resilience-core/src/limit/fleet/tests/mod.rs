//! The handle, over the store of this process and over one that fails on order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::{advance, sleep};
use tokio_test::task;

mod leases;
mod outage;
mod shares;
mod waiting;

use super::*;
use crate::{
    InvalidConfig,
    error::Reason,
    fleet::{FleetOptions, MemberStore, OnOutage, StoreHandle},
    limit::{
        Quota,
        store::{Demand, InProcessLimits, LimitStore, StoreDecision, StoreFuture},
    },
    test_log::events_of,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn per(permits: u64, period: Duration) -> Quota {
    Quota::per(permits, period).unwrap()
}

/// The store of this process, as a server that can be lost and counts what it is asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    pub(super) inner: InProcessLimits,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    down: AtomicBool,
    hung: AtomicBool,
    decisions: AtomicU64,
}

impl Server {
    pub(super) fn down(&self, down: bool) {
        self.state.down.store(down, SeqCst);
    }

    pub(super) fn hang(&self, hung: bool) {
        self.state.hung.store(hung, SeqCst);
    }

    /// How many decisions it was asked for since the last time this was called.
    pub(super) fn asked(&self) -> u64 {
        self.state.decisions.swap(0, SeqCst)
    }

    async fn fare(&self) -> Result<(), StoreError> {
        if self.state.hung.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.state.down.load(SeqCst) {
            return Err(StoreError::new("down", false));
        }
        // An answer takes a moment, in which others come in.
        tokio::task::yield_now().await;
        Ok(())
    }
}

impl LimitStore for Server {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        self.state.decisions.fetch_add(1, SeqCst);
        Box::pin(async move {
            self.fare().await?;
            self.inner.decide(name, subject, demands).await
        })
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            self.fare().await?;
            self.inner.heartbeat(name, instance, ttl).await
        })
    }
}

fn ten(server: &Server) -> FleetRateLimitBuilder {
    FleetRateLimit::builder("ten")
        .store(server.clone())
        .limit("per-hour", per(10, HOUR))
}

/// Enough for the agent to have said that this instance is there.
async fn settled() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn bad_settings_are_refused_by_name() {
    let server = Server::default();
    let field = |made: Result<FleetRateLimit, InvalidConfig>| made.unwrap_err().field();
    let none = FleetRateLimit::builder("none").store(server.clone());
    assert_eq!(field(none.build()), "limit");
    let twice = ten(&server).limit("per-hour", per(1, HOUR));
    assert_eq!(field(twice.build()), "limit");
    for (options, name) in [
        (FleetOptions::new().budget(Duration::ZERO), "budget"),
        (FleetOptions::new().heartbeat(Duration::ZERO), "heartbeat"),
        (FleetOptions::new().instance(""), "instance"),
    ] {
        assert_eq!(field(ten(&server).fleet(options).build()), name);
    }
    assert_eq!(field(ten(&server).near(1.5).build()), "near");
}

#[tokio::test(start_paused = true)]
async fn all_limits_are_charged_or_none_in_one_round_trip_and_the_answer_says_it_all() {
    let server = Server::default();
    let limit = FleetRateLimit::builder("api")
        .store(server.clone())
        .limit("requests", per(10, HOUR))
        .limit("bytes", per(1000, HOUR))
        .build()
        .unwrap();
    let costs = |bytes| Costs::each(1).on("bytes", bytes);
    let decision = limit.check("t", costs(900)).await.unwrap();
    assert_eq!(decision.binding().unwrap().name, "bytes");
    let left = |decision: &Decision| decision.limits().map(|l| l.remaining).collect::<Vec<_>>();
    assert_eq!(left(&decision), [9, 100]);
    assert_eq!(server.asked(), 1);
    let refused = limit.ask("t", costs(200)).await;
    assert_eq!(server.asked(), 1);
    assert!(!refused.is_admitted());
    assert_eq!(left(&refused), [9, 100], "neither was charged");
    assert_eq!(refused.retry_after(), Some(SECOND * 360));
    assert_eq!(refused.binding().unwrap().full_in, SECOND * 3240);
    let rejected = refused.rejected().unwrap();
    assert_eq!(rejected.reason(), Reason::RateLimited);
    assert_eq!(rejected.retry_after(), Some(SECOND * 360));
    let never = limit.check("t", costs(1001)).await.unwrap_err();
    assert_eq!(
        (never.reason(), never.retry_after()),
        (Reason::TooCostly, None)
    );
    assert!(
        limit.check("u", costs(1000)).await.is_ok(),
        "another subject"
    );
}

#[tokio::test(start_paused = true)]
async fn who_looks_takes_nothing_and_what_is_put_back_can_be_taken_again() {
    let server = Server::default();
    let limit = ten(&server).build().unwrap();
    let left = async || limit.peek("t").await.unwrap().binding().unwrap().remaining;
    assert!(limit.check("t", 10).await.is_ok());
    assert!(limit.check("t", 1).await.is_err());
    assert_eq!(left().await, 0);
    limit.refund("t", 3).await.unwrap();
    assert_eq!(left().await, 3);
    assert!(limit.check("t", 3).await.is_ok(), "refused from memory");
    limit.reset("t").await.unwrap();
    assert_eq!(left().await, 10);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_refused_without_asking_until_it_would_pass_and_no_longer() {
    let server = Server::default();
    let limit = FleetRateLimit::builder("api")
        .store(server.clone())
        .limit("per-second", per(10, SECOND))
        .build()
        .unwrap();
    assert!(limit.check("t", 10).await.is_ok());
    let first = limit.ask("t", 5).await;
    assert_eq!(server.asked(), 2);
    let start = tokio::time::Instant::now();
    for _ in 0..1000 {
        let refused = limit.ask("t", 5).await;
        assert_eq!(refused.decided_by(), DecidedBy::Memory);
        assert_eq!(refused.retry_after(), first.retry_after());
    }
    assert_eq!(server.asked(), 0);
    advance(Duration::from_millis(100)).await;
    assert!(
        limit.check("t", 1).await.is_ok(),
        "costs less than what is missing"
    );
    assert!(limit.check("t", 5).await.is_err());
    let wait = first.retry_after().unwrap();
    advance(wait - start.elapsed()).await;
    // One token was spent meanwhile, so the store refuses, but it is asked.
    let again = limit.ask("t", 5).await;
    assert_eq!(again.decided_by(), DecidedBy::Store);
    advance(again.retry_after().unwrap() + Duration::from_micros(1)).await;
    assert!(limit.check("t", 5).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_changes_counts_from_the_next_decision_on_and_keeps_the_tokens() {
    let server = Server::default();
    let plans = Plans::new();
    let plan = |permits| Plan::new().limit("per-hour", per(permits, HOUR)).unwrap();
    let limit = ten(&server).plans(plans.clone()).build().unwrap();
    assert!(limit.check("t", 10).await.is_ok());
    assert!(limit.check("t", 1).await.is_err());
    plans.set("t", plan(3600 * 1000));
    let upgraded = limit.ask("t", 1).await;
    assert_eq!(
        upgraded.decided_by(),
        DecidedBy::Store,
        "refused by the old plan"
    );
    assert!(upgraded.retry_after().unwrap() <= Duration::from_millis(1));
    advance(SECOND).await;
    assert!(limit.check("t", 1000).await.is_ok());
    plans.set("t", Plan::new());
    let free = limit.check("t", 1 << 40).await.unwrap();
    assert_eq!(free.decided_by(), DecidedBy::Unlimited);
    assert_eq!(free.limits().count(), 0);
    plans.remove("t");
    assert!(limit.check("t", 1).await.is_err(), "what was used is used");

    let by_tier = move |tenant: &str| tenant.starts_with("gold-").then(|| plan(1000));
    let limit = ten(&server).plan_of(by_tier).build().unwrap();
    assert!(limit.check("gold-1", 1000).await.is_ok());
    assert_eq!(
        limit.check("other", 11).await.unwrap_err().reason(),
        Reason::TooCostly
    );
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_everything_passes_and_is_counted() {
    let server = Server::default();
    let limit = ten(&server).shadow(true).build().unwrap();
    for number in 0..15 {
        let decision = limit.check("t", 1).await.unwrap();
        assert_eq!(decision.is_shadowed(), number >= 10);
        assert_eq!(decision.retry_after().unwrap().is_zero(), number < 10);
    }
    limit.set_shadow(false);
    assert!(limit.check("t", 1).await.is_err());
    assert_eq!(limit.snapshot().rejected_limited, 1);
    assert_eq!(
        (limit.snapshot().shadowed, limit.snapshot().admitted),
        (5, 15)
    );
}

async fn lost(server: &Server, limit: &FleetRateLimit) {
    server.down(true);
    while !limit.snapshot().degraded {
        let _ = limit.ask("lost", 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_gone_the_policy_has_the_word_and_nobody_waits() {
    let server = Server::default();
    for (policy, passes) in [(OnOutage::FailOpen, true), (OnOutage::FailClosed, false)] {
        let options = FleetOptions::new().on_outage(policy);
        let limit = ten(&server).fleet(options).build().unwrap();
        settled().await;
        lost(&server, &limit).await;
        server.hang(true);
        let start = tokio::time::Instant::now();
        for _ in 0..100 {
            let decision = limit.ask("t", 1).await;
            assert_eq!(decision.is_admitted(), passes);
            assert_eq!(decision.decided_by(), DecidedBy::Policy);
            assert_eq!(decision.limits().count(), 0, "not known");
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        let rejected = limit.check("t", 1).await.err();
        assert_eq!(
            rejected.map(|rejected| rejected.reason()),
            (!passes).then_some(Reason::StoreUnreachable)
        );
        server.hang(false);
        server.down(false);
        sleep(SECOND).await;
        assert!(!limit.snapshot().degraded, "the agent finds out by itself");
        assert_eq!(limit.ask("t", 1).await.decided_by(), DecidedBy::Store);
    }
}

/// A server that hangs costs each call the budget, and soon nothing.
#[tokio::test(start_paused = true)]
async fn no_call_waits_for_the_store_for_longer_than_the_budget() {
    let server = Server::default();
    let budget = Duration::from_millis(20);
    let options = FleetOptions::new()
        .on_outage(OnOutage::FailOpen)
        .budget(budget);
    let limit = ten(&server).fleet(options).build().unwrap();
    settled().await;
    server.hang(true);
    for number in 0..10 {
        let start = tokio::time::Instant::now();
        assert!(limit.ask("t", 1).await.is_admitted());
        assert_eq!(start.elapsed() > Duration::ZERO, number < 3);
        assert!(start.elapsed() <= budget + Duration::from_millis(2));
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_gone_the_shares_of_the_instances_add_up_to_the_limit() {
    let server = Server::default();
    let limits: Vec<_> = (0..4)
        .map(|_| {
            let builder = FleetRateLimit::builder("api").store(server.clone());
            builder
                .limit("per-second", per(10, SECOND))
                .build()
                .unwrap()
        })
        .collect();
    // One after the other they have come in; after another heartbeat all know of all.
    sleep(5 * SECOND).await;
    for limit in &limits {
        assert_eq!(
            (
                limit.snapshot().live_instances,
                limit.snapshot().local_parts
            ),
            (4, Some(4))
        );
        assert!(limit.ask("t", 1).await.is_admitted());
        assert!(!limit.snapshot().degraded);
    }
    server.down(true);
    let take_all = async || {
        let mut taken = 0;
        for limit in &limits {
            while limit.ask("t", 1).await.is_admitted() {
                taken += 1;
            }
        }
        taken
    };
    assert_eq!(
        take_all().await,
        6,
        "a fourth of what each knows to be left: nine, eight, seven, six"
    );
    for _ in 0..5 {
        sleep(2 * SECOND).await;
        assert_eq!(
            take_all().await,
            8,
            "a fourth of ten is two, for each of four"
        );
    }
    let slow = &limits[0];
    assert!(slow.ask("t", 2).await.retry_after().unwrap() > Duration::from_millis(700));
    assert_eq!(slow.ask("t", 1).await.decided_by(), DecidedBy::LocalShare);
    // Who is gone is no longer counted, once the store is back.
    server.down(false);
    drop(limits);
    let last = ten(&server).build().unwrap();
    sleep(3 * SECOND).await;
    assert_eq!(last.snapshot().live_instances, 1);
}

#[tokio::test(start_paused = true)]
async fn one_event_says_that_the_store_is_gone_and_one_that_it_is_back() {
    let server = Server::default();
    let limit = ten(&server).build().unwrap();
    settled().await;
    let ask = || {
        let mut asked = task::spawn(limit.refund("t", 1));
        while asked.poll().is_pending() {}
    };
    let events = events_of(|| {
        server.down(true);
        (0..10).for_each(|_| {
            let refused = task::spawn(limit.ask("t", 1)).poll();
            assert!(refused.is_ready());
        });
        server.down(false);
        (0..10).for_each(|_| ask());
    });
    let of_the_store: Vec<_> = events
        .iter()
        .filter(|event| event.contains("store "))
        .collect();
    assert_eq!(of_the_store.len(), 2, "{events:?}");
    for part in ["store unavailable", "rate_limit", "ten", "down", "local"] {
        assert!(of_the_store[0].contains(part), "{events:?}");
    }
    assert!(of_the_store[1].contains("store available"), "{events:?}");
}
