use std::sync::Arc;

use tokio::time::{advance, sleep};

use super::*;
use crate::{
    error::InvalidConfig,
    keyed::Keyed,
    limit::store::{Answer, Decision, Demand, InProcessLimits, LimitStore, StoreFailure},
};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn alone() -> PeerLimits {
    PeerLimits::builder("p").build().unwrap()
}

fn sharing(store: &InProcessLimits) -> PeerLimits {
    PeerLimits::builder("p")
        .share(store.clone())
        .build()
        .unwrap()
}

fn wait(peers: &PeerLimits, peer: &str) -> Duration {
    let rejected = peers.enter(peer).unwrap_err();
    assert_eq!(rejected.reason(), Reason::RateLimited);
    rejected.retry_after().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_left_alone_for_as_long_as_it_asked_and_no_other_is() {
    let peers = alone();
    peers.enter("a").unwrap().told(Said::NotBefore(30 * SECOND));
    assert_eq!(wait(&peers, "a"), 30 * SECOND);
    assert!(peers.enter("b").is_ok());
    advance(29 * SECOND + 999 * MS).await;
    assert_eq!(wait(&peers, "a"), MS);
    assert_eq!(peers.rejected(), 2);
    advance(MS).await;
    assert!(peers.enter("a").is_ok());
    assert_eq!(peers.wait_for("a"), None);
}

#[tokio::test(start_paused = true)]
async fn the_longest_word_counts_and_none_beyond_the_bound() {
    let peers = PeerLimits::builder("p")
        .longest(60 * SECOND)
        .build()
        .unwrap();
    let (one, two, three) = (peers.enter("a"), peers.enter("a"), peers.enter("a"));
    one.unwrap().told(Said::NotBefore(20 * SECOND));
    two.unwrap().told(Said::NotBefore(10 * SECOND));
    assert_eq!(wait(&peers, "a"), 20 * SECOND);
    three.unwrap().told(Said::NotBefore(Duration::MAX));
    assert_eq!(wait(&peers, "a"), 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_not_exceeded_and_calls_under_way_are_part_of_it() {
    let peers = alone();
    let first = peers.enter("a").unwrap();
    let under_way = [peers.enter("a").unwrap(), peers.enter("a").unwrap()];
    first.told(Said::NoMoreThan(5, 10 * SECOND));
    let three: Vec<_> = (0..3).map(|_| peers.enter("a").unwrap()).collect();
    assert_eq!(wait(&peers, "a"), 10 * SECOND);
    // A call that is over does not come back into the budget.
    drop((three, under_way));
    assert_eq!(wait(&peers, "a"), 10 * SECOND);
    advance(10 * SECOND).await;
    let next = peers.enter("a").unwrap();
    next.told(Said::NoMoreThan(0, SECOND));
    assert_eq!(wait(&peers, "a"), SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_one_instance_was_told_all_keep_to_and_the_first_word_counts() {
    let store = InProcessLimits::new();
    let (one, two, three) = (sharing(&store), sharing(&store), sharing(&store));
    let also = two.enter("a").unwrap();
    sleep(10 * MS).await;
    one.enter("a").unwrap().told(Said::NotBefore(30 * SECOND));
    also.told(Said::NotBefore(30 * SECOND));
    sleep(10 * MS).await;
    // One that has not called this peer before asks with its first call; the answer is for the next.
    assert!(three.enter("a").is_ok());
    sleep(10 * MS).await;
    let told = wait(&three, "a");
    assert!(told <= 30 * SECOND && told > 29 * SECOND, "{told:?}");
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
    one.enter("a").unwrap().told(Said::NotBefore(30 * SECOND));
    let mut calls = 0;
    while two.enter("a").is_ok() {
        calls += 1;
        assert!(calls <= 11, "not within the interval");
        sleep(100 * MS).await;
    }
    assert!(calls >= 1, "before anybody could know");
}

/// Counts the questions, and does not answer while it is away.
#[derive(Debug, Default)]
struct Watched {
    store: InProcessLimits,
    questions: std::sync::atomic::AtomicUsize,
    away: std::sync::atomic::AtomicBool,
}

impl LimitStore for Arc<Watched> {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> Answer<'a, Decision> {
        use std::sync::atomic::Ordering::SeqCst;
        self.questions.fetch_add(1, SeqCst);
        if self.away.load(SeqCst) {
            return Box::pin(async { Err(StoreFailure::new("away", false)) });
        }
        self.store.decide(name, subject, demands)
    }

    fn enrol<'a>(&'a self, name: &'a str, instance: &'a str, ttl: Duration) -> Answer<'a, u64> {
        self.store.enrol(name, instance, ttl)
    }
}

#[tokio::test(start_paused = true)]
async fn calls_ask_nothing_and_who_does_not_call_does_not_ask() {
    let watched = Arc::new(Watched::default());
    let peers = PeerLimits::builder("p")
        .share(watched.clone())
        .build()
        .unwrap();
    let asked = || watched.questions.load(std::sync::atomic::Ordering::SeqCst);
    for _ in 0..1000 {
        drop(peers.enter("a").unwrap());
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
        PeerLimits::builder("p")
            .share(watched.clone())
            .build()
            .unwrap()
    };
    let (one, two) = (share(), share());
    one.enter("a").unwrap().told(Said::NotBefore(3 * SECOND));
    sleep(SECOND).await;
    assert_eq!(wait(&one, "a"), 2 * SECOND);
    assert!(two.enter("a").is_ok());
    watched
        .away
        .store(false, std::sync::atomic::Ordering::SeqCst);
    sleep(3 * SECOND).await;
    one.enter("a").unwrap().told(Said::NotBefore(9 * SECOND));
    drop(two.enter("a"));
    sleep(2 * SECOND).await;
    assert!(two.enter("a").is_err());
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_handle() {
    let watched = Arc::new(Watched::default());
    let peers = PeerLimits::builder("p")
        .share(watched.clone())
        .build()
        .unwrap();
    let clone = peers.clone();
    drop(peers);
    clone.enter("a").unwrap().told(Said::NotBefore(SECOND));
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
    let peers = PeerLimits::builder("p").peers(bounds).build().unwrap();
    peers
        .enter("a")
        .unwrap()
        .told(Said::NotBefore(100 * SECOND));
    for number in 0..100 {
        drop(peers.enter(&number.to_string()));
    }
    assert!(peers.len() <= 8);
    assert_eq!(peers.wait_for("a"), Some(100 * SECOND));
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let field = |builder: PeerLimitsBuilder| {
        let error: InvalidConfig = builder.build().unwrap_err();
        error.field()
    };
    let builder = || PeerLimits::builder("p");
    assert_eq!(field(builder().longest(Duration::ZERO)), "longest");
    assert_eq!(field(builder().longest(Duration::MAX)), "longest");
    assert_eq!(field(builder().refresh(Duration::ZERO)), "refresh");
    assert_eq!(field(builder().peers(Keyed::new().max_keys(0))), "max_keys");
    assert_eq!(field(builder().share(InProcessLimits::new())), "share");
}
