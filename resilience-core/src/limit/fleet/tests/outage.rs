//! A store that never answers, and one with a heartbeat of its own.

use tokio::{task::JoinSet, time::Instant};

use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// More than three budgets, one for each answer until the store is unavailable.
const BOUND: Duration = Duration::from_millis(350);

fn modes() -> [Mode; 2] {
    [Mode::Exact, Mode::Leased(LeaseRules::new())]
}

/// Every method of the handle ends, with each policy; soon none of them takes any time.
#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_hangs_nothing() {
    for mode in modes() {
        for policy in [OnOutage::FailOpen, OnOutage::FailClosed, OnOutage::Local] {
            let server = Server::default();
            let options = FleetOptions::new().on_outage(policy).expected_instances(1);
            let limit = ten(&server).mode(mode).fleet(options).build().unwrap();
            limit.peek("t").await.unwrap();
            server.hang(true);
            let start = Instant::now();
            let reserved = limit.reserve("t", 1).await;
            assert_eq!(reserved.is_ok(), policy != OnOutage::FailClosed);
            let _ = limit.check("t", 1).await;
            limit.peek("t").await.unwrap_err();
            assert!(start.elapsed() <= BOUND, "{:?}", start.elapsed());
            if let Ok(reserved) = reserved {
                assert!(reserved.settle(0).await.is_ok(), "settled in this process");
            }
            let start = Instant::now();
            for _ in 0..100 {
                let admitted = limit.check("u", 1).await.is_ok();
                match policy {
                    OnOutage::FailOpen => assert!(admitted),
                    OnOutage::FailClosed => assert!(!admitted),
                    OnOutage::Local => {}
                }
                limit.peek("t").await.unwrap_err();
            }
            assert_eq!(start.elapsed(), Duration::ZERO, "{mode:?} {policy:?}");
            // Steps that give back are attempted all the same.
            limit.refund("t", 1).await.unwrap_err();
            limit.reset("t").await.unwrap_err();
            let _ = limit.return_leases().await;
            limit.shutdown(5 * SECOND).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_their_turn_end_in_time_when_the_store_stops_answering() {
    for mode in modes() {
        let server = Server::default();
        let limit = ten(&server)
            .mode(mode)
            .queue(100, 2 * SECOND)
            .build()
            .unwrap();
        settled().await;
        limit.check("t", 10).await.unwrap();
        drop(limit.ask("t", 1).await);
        server.hang(true);
        let mut crowd = JoinSet::new();
        let start = Instant::now();
        for _ in 0..50 {
            let limit = limit.clone();
            crowd.spawn(async move { limit.acquire("t", 1).await.is_ok() });
        }
        crowd.join_all().await;
        assert!(
            start.elapsed() <= 2 * SECOND + BOUND,
            "{mode:?}: {:?}",
            start.elapsed()
        );
        assert_eq!(limit.snapshot().waiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_whose_store_never_answers_ends_within_its_bound() {
    let server = Server::default();
    let limit = ten(&server)
        .mode(Mode::Leased(LeaseRules::new()))
        .build()
        .unwrap();
    for subject in 0..1_000 {
        limit.check(&subject.to_string(), 1).await.unwrap();
    }
    server.hang(true);
    let start = Instant::now();
    limit.shutdown(5 * SECOND).await.unwrap();
    assert!(start.elapsed() <= 3 * SECOND, "{:?}", start.elapsed());
}

/// A store with a membership, which counts the heartbeats of the limits.
#[derive(Clone, Debug)]
struct Membered {
    inner: InProcessLimits,
    handle: StoreHandle,
    heartbeats: Arc<AtomicU64>,
}

/// As many live instances as the test says.
#[derive(Debug)]
struct Members(AtomicU64);

impl MemberStore for Members {
    fn heartbeat<'a>(&'a self, _: &'a str, _: Duration) -> StoreFuture<'a, u64> {
        Box::pin(std::future::ready(Ok(self.0.load(SeqCst))))
    }
}

impl LimitStore for Membered {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        self.inner.decide(name, subject, demands)
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        self.heartbeats.fetch_add(1, SeqCst);
        self.inner.heartbeat(name, instance, ttl)
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.handle)
    }
}

/// The heartbeat of the store's handle says who is live; the limits' own only who uses them.
#[tokio::test(start_paused = true)]
async fn with_a_membership_a_limit_enrols_rarely_and_counts_live_members_only() {
    let (inner, members) = (InProcessLimits::new(), Arc::new(Members(3.into())));
    let heartbeats = Arc::new(AtomicU64::new(0));
    let build = || {
        let store = Membered {
            inner: inner.clone(),
            handle: StoreHandle::with_members(Arc::clone(&members) as _),
            heartbeats: Arc::clone(&heartbeats),
        };
        FleetRateLimit::builder("api")
            .store(store)
            .limit("per-hour", per(10, HOUR))
            .build()
            .unwrap()
    };
    let limits = [build(), build(), build()];
    let live = || {
        limits
            .each_ref()
            .map(|limit| limit.snapshot().live_instances)
    };
    sleep(10 * SECOND).await;
    assert_eq!(live(), [3; 3], "also the first to come");
    sleep(26 * 60 * SECOND).await;
    let sent = heartbeats.swap(0, SeqCst);
    assert!(sent <= 45, "{sent} instead of 2,350");
    // An instance that dies stays enrolled, and is no member any more.
    members.0.store(2, SeqCst);
    sleep(5 * SECOND).await;
    assert_eq!(live(), [2; 3]);
    // Members that do not use this limit have no share of it.
    members.0.store(9, SeqCst);
    sleep(5 * SECOND).await;
    assert_eq!(live(), [3; 3]);
    limits[1].shutdown(SECOND).await.unwrap();
    let listed = inner.heartbeat("api", "looks", ms(1)).await.unwrap();
    assert_eq!(listed, 3, "two that are left, and the one that looks");
}
