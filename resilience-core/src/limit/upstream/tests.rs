use std::sync::Arc;

use tokio::time::{advance, sleep};

use super::*;
use crate::{
    error::InvalidConfig,
    fleet::FleetOptions,
    keyed::Keyed,
    limit::store::{Demand, InProcessLimits, LimitStore, StoreDecision, StoreError, StoreFuture},
};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn alone() -> UpstreamLimits {
    UpstreamLimits::builder("p").build().unwrap()
}

fn sharing(store: &InProcessLimits) -> UpstreamLimits {
    UpstreamLimits::builder("p")
        .store(store.clone())
        .build()
        .unwrap()
}

fn wait(upstreams: &UpstreamLimits, upstream: &str) -> Duration {
    let rejected = upstreams.enter(upstream).unwrap_err();
    assert_eq!(rejected.reason(), Reason::RateLimited);
    rejected.retry_after().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_left_alone_for_as_long_as_it_asked_and_no_other_is() {
    let upstreams = alone();
    upstreams
        .enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(30 * SECOND));
    assert_eq!(wait(&upstreams, "a"), 30 * SECOND);
    assert!(upstreams.enter("b").is_ok());
    advance(29 * SECOND + 999 * MS).await;
    assert_eq!(wait(&upstreams, "a"), MS);
    assert_eq!(upstreams.snapshot().rejected, 2);
    advance(MS).await;
    assert!(upstreams.enter("a").is_ok());
    assert_eq!(upstreams.wait_for("a"), None);
}

#[tokio::test(start_paused = true)]
async fn the_longest_word_counts_and_none_beyond_the_bound() {
    let upstreams = UpstreamLimits::builder("p")
        .longest(60 * SECOND)
        .build()
        .unwrap();
    let (one, two, three) = (
        upstreams.enter("a"),
        upstreams.enter("a"),
        upstreams.enter("a"),
    );
    one.unwrap().observe(Advertised::RetryAfter(20 * SECOND));
    two.unwrap().observe(Advertised::RetryAfter(10 * SECOND));
    assert_eq!(wait(&upstreams, "a"), 20 * SECOND);
    three
        .unwrap()
        .observe(Advertised::RetryAfter(Duration::MAX));
    assert_eq!(wait(&upstreams, "a"), 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_not_exceeded_and_calls_under_way_are_part_of_it() {
    let upstreams = alone();
    let first = upstreams.enter("a").unwrap();
    let under_way = [upstreams.enter("a").unwrap(), upstreams.enter("a").unwrap()];
    first.observe(Advertised::Remaining(5, 10 * SECOND));
    let three: Vec<_> = (0..3).map(|_| upstreams.enter("a").unwrap()).collect();
    assert_eq!(wait(&upstreams, "a"), 10 * SECOND);
    // A call that is over does not come back into the budget.
    drop((three, under_way));
    assert_eq!(wait(&upstreams, "a"), 10 * SECOND);
    advance(10 * SECOND).await;
    let next = upstreams.enter("a").unwrap();
    next.observe(Advertised::Remaining(0, SECOND));
    assert_eq!(wait(&upstreams, "a"), SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_one_instance_was_told_all_keep_to_and_the_first_word_counts() {
    let store = InProcessLimits::new();
    let (one, two, three) = (sharing(&store), sharing(&store), sharing(&store));
    let also = two.enter("a").unwrap();
    sleep(10 * MS).await;
    one.enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(30 * SECOND));
    also.observe(Advertised::RetryAfter(30 * SECOND));
    sleep(10 * MS).await;
    // One that has not called this peer before asks with its first call; the answer is for the next.
    assert!(three.enter("a").is_ok());
    sleep(10 * MS).await;
    let observe = wait(&three, "a");
    assert!(
        observe <= 30 * SECOND && observe > 29 * SECOND,
        "{observe:?}"
    );
    assert!(three.enter("b").is_ok());
    // Told twice, it is not twice as long.
    sleep(30 * SECOND).await;
    for instance in [&one, &two, &three] {
        assert!(instance.enter("a").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_goes_on_calling_hears_within_the_interval() {
    let store = InProcessLimits::new();
    let (one, two) = (sharing(&store), sharing(&store));
    drop(two.enter("a").unwrap());
    sleep(100 * MS).await;
    one.enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(30 * SECOND));
    let mut calls = 0;
    while two.enter("a").is_ok() {
        calls += 1;
        assert!(calls <= 11, "not within the interval");
        sleep(100 * MS).await;
    }
    assert!(calls >= 1, "before anybody could know");
}

/// Counts the questions, and fails or hangs when it is told to.
#[derive(Debug, Default)]
struct Watched {
    store: InProcessLimits,
    questions: std::sync::atomic::AtomicUsize,
    away: std::sync::atomic::AtomicBool,
    hangs: std::sync::atomic::AtomicBool,
}

impl LimitStore for Arc<Watched> {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        use std::sync::atomic::Ordering::SeqCst;
        self.questions.fetch_add(1, SeqCst);
        if self.hangs.load(SeqCst) {
            return Box::pin(std::future::pending());
        }
        if self.away.load(SeqCst) {
            return Box::pin(async { Err(StoreError::new("away", false)) });
        }
        self.store.decide(name, subject, demands)
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        self.store.heartbeat(name, instance, ttl)
    }
}

#[tokio::test(start_paused = true)]
async fn calls_ask_nothing_and_who_does_not_call_does_not_ask() {
    let watched = Arc::new(Watched::default());
    let upstreams = UpstreamLimits::builder("p")
        .store(watched.clone())
        .build()
        .unwrap();
    let asked = || watched.questions.load(std::sync::atomic::Ordering::SeqCst);
    for _ in 0..1000 {
        drop(upstreams.enter("a").unwrap());
        sleep(10 * MS).await;
    }
    // Ten seconds.
    assert!((9..=12).contains(&asked()), "{}", asked());
    let before = asked();
    sleep(60 * SECOND).await;
    assert!(asked() <= before + 1, "{} after {before}", asked());
}

#[tokio::test(start_paused = true)]
async fn without_its_store_each_instance_goes_by_what_it_hears() {
    let watched = Arc::new(Watched::default());
    watched
        .away
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let share = || {
        UpstreamLimits::builder("p")
            .store(watched.clone())
            .build()
            .unwrap()
    };
    let (one, two) = (share(), share());
    one.enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(3 * SECOND));
    sleep(SECOND).await;
    assert_eq!(wait(&one, "a"), 2 * SECOND);
    assert!(two.enter("a").is_ok());
    watched
        .away
        .store(false, std::sync::atomic::Ordering::SeqCst);
    sleep(3 * SECOND).await;
    one.enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(9 * SECOND));
    drop(two.enter("a"));
    sleep(2 * SECOND).await;
    assert!(two.enter("a").is_err());
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_handle() {
    let watched = Arc::new(Watched::default());
    let upstreams = UpstreamLimits::builder("p")
        .store(watched.clone())
        .build()
        .unwrap();
    let clone = upstreams.clone();
    drop(upstreams);
    clone
        .enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(SECOND));
    drop(clone);
    sleep(10 * MS).await;
    assert_eq!(Arc::strong_count(&watched), 1, "the task holds the store");
    // And has said before what there was to say.
    let late = sharing(&watched.store);
    drop(late.enter("a"));
    sleep(10 * MS).await;
    assert!(late.enter("a").is_err());
}

#[tokio::test(start_paused = true)]
async fn strangers_cannot_make_it_large_and_who_is_left_alone_is_not_forgotten() {
    let bounds = Keyed::new().max_keys(8);
    let upstreams = UpstreamLimits::builder("p")
        .upstreams(bounds)
        .build()
        .unwrap();
    upstreams
        .enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(100 * SECOND));
    for number in 0..100 {
        drop(upstreams.enter(&number.to_string()));
    }
    assert!(upstreams.snapshot().upstreams <= 8);
    assert_eq!(upstreams.wait_for("a"), Some(100 * SECOND));
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let field = |builder: UpstreamLimitsBuilder| {
        let error: InvalidConfig = builder.build().unwrap_err();
        error.field()
    };
    let builder = || UpstreamLimits::builder("p");
    assert_eq!(field(builder().longest(Duration::ZERO)), "longest");
    assert_eq!(field(builder().longest(Duration::MAX)), "longest");
    assert_eq!(field(builder().refresh(Duration::ZERO)), "refresh");
    assert_eq!(
        field(builder().upstreams(Keyed::new().max_keys(0))),
        "max_keys"
    );
    assert_eq!(field(builder().store(InProcessLimits::new())), "store");
    assert_eq!(field(builder().fleet(FleetOptions::new())), "fleet");
    let heartbeat = FleetOptions::new().heartbeat(SECOND);
    let shared = || builder().store(InProcessLimits::new());
    assert_eq!(field(shared().fleet(heartbeat)), "heartbeat");
    let open = FleetOptions::new().on_outage(crate::fleet::OnOutage::FailOpen);
    assert_eq!(field(shared().fleet(open)), "on_outage");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_hangs_nothing_and_is_told_when_it_is_back() {
    use std::sync::atomic::Ordering::SeqCst;
    let watched = Arc::new(Watched::default());
    watched.hangs.store(true, SeqCst);
    let build = || {
        let builder = UpstreamLimits::builder("p").store(watched.clone());
        builder.build().unwrap()
    };
    let (one, two) = (build(), build());
    let start = tokio::time::Instant::now();
    let permits = ["a", "b", "c", "d"].map(|upstream| one.enter(upstream).unwrap());
    for permit in permits {
        permit.observe(Advertised::RetryAfter(30 * SECOND));
    }
    assert_eq!(wait(&one, "d"), 30 * SECOND);
    assert_eq!(start.elapsed(), Duration::ZERO);
    sleep(5 * SECOND).await;
    assert!(one.snapshot().degraded);
    assert_eq!(wait(&one, "d"), 25 * SECOND);
    watched.hangs.store(false, SeqCst);
    sleep(3 * SECOND).await;
    assert!(!one.snapshot().degraded);
    for upstream in ["a", "b", "c", "d"] {
        drop(two.enter(upstream));
    }
    sleep(2 * SECOND).await;
    for upstream in ["a", "b", "c", "d"] {
        let told = wait(&two, upstream);
        assert!(
            told <= 20 * SECOND + 10 * MS && told > 19 * SECOND,
            "{told:?}"
        );
    }
    watched.hangs.store(true, SeqCst);
    one.enter("e")
        .unwrap()
        .observe(Advertised::RetryAfter(SECOND));
    let start = tokio::time::Instant::now();
    one.shutdown(5 * SECOND).await.unwrap();
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_shares_what_was_not_shared_yet() {
    let store = InProcessLimits::new();
    let upstreams = sharing(&store);
    upstreams
        .enter("a")
        .unwrap()
        .observe(Advertised::RetryAfter(30 * SECOND));
    upstreams.shutdown(SECOND).await.unwrap();
    let late = sharing(&store);
    drop(late.enter("a"));
    sleep(10 * MS).await;
    assert!(late.enter("a").is_err());
}

#[tokio::test(start_paused = true)]
async fn the_layer_rejects_while_a_server_wants_no_calls_and_its_permit_observes() {
    use tower::{Layer, ServiceExt, service_fn};

    use crate::completion::{Completion, Guard};

    /// Observes a pause of as many seconds as the response says.
    #[derive(Clone)]
    struct Observe;

    impl Completion<u64, Permit> for Observe {
        type Response = u64;

        fn hold(&self, seconds: u64, verdict: crate::Verdict, mut permit: Permit) -> u64 {
            permit.settle(verdict);
            if seconds > 0 {
                permit.observe(Advertised::RetryAfter(Duration::from_secs(seconds)));
            }
            seconds
        }
    }

    let upstreams = alone();
    let service = crate::admission::AdmissionLayer {
        policy: upstreams.by(|(server, _): &(&'static str, u64)| *server),
        completion: Observe,
    }
    .layer(service_fn(|(_, seconds): (&'static str, u64)| async move {
        Ok::<_, Rejected>(seconds)
    }));
    assert_eq!(service.clone().oneshot(("a", 0)).await, Ok(0));
    assert_eq!(service.clone().oneshot(("a", 30)).await, Ok(30));
    let rejected = service.clone().oneshot(("a", 0)).await.unwrap_err();
    assert_eq!(rejected.retry_after(), Some(30 * SECOND));
    assert_eq!(service.oneshot(("b", 0)).await, Ok(0));
}
