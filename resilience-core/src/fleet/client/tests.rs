use std::{
    future::{pending, ready},
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32},
};

use tokio::time::timeout;

use super::*;

/// A store that answers, fails or hangs, as the test sets it.
struct Fickle {
    mood: AtomicU8,
    asked: AtomicU32,
    sharded: AtomicBool,
}

const ANSWERS: u8 = 0;
const FAILS: u8 = 1;
const HANGS: u8 = 2;
const SHARD_FAILS: u8 = 3;

impl Fickle {
    fn step(&self) -> StoreFuture<'_, u32> {
        let asked = self.asked.fetch_add(1, Relaxed) + 1;
        match self.mood.load(Relaxed) {
            ANSWERS => Box::pin(ready(Ok(asked))),
            FAILS => Box::pin(ready(Err(StoreError::new("refused", false)))),
            SHARD_FAILS => Box::pin(ready(Err(StoreError::new("refused", false).partial()))),
            _ => Box::pin(pending()),
        }
    }

    fn turns(&self, mood: u8) {
        self.mood.store(mood, Relaxed);
    }
}

impl Probe for Fickle {
    fn probe<'a>(&'a self, _: &'a str) -> StoreFuture<'a, ()> {
        let step = self.step();
        Box::pin(async { step.await.map(drop) })
    }

    fn is_sharded(&self) -> bool {
        self.sharded.load(Relaxed)
    }
}

fn client(mood: u8) -> StoreClient<Fickle> {
    let store = Fickle {
        mood: AtomicU8::new(mood),
        asked: AtomicU32::new(0),
        sharded: AtomicBool::new(false),
    };
    let settings = FleetSettings {
        name: None,
        instance: "one".into(),
        budget: Duration::from_millis(100),
        heartbeat: Duration::from_secs(2),
        on_outage: OnOutage::Local,
        expected_instances: None,
    };
    StoreClient::new(Arc::new(store), Pattern::RateLimit, "api".into(), &settings)
}

async fn becomes_available(client: &StoreClient<Fickle>) {
    let by = Instant::now() + Duration::from_secs(5);
    while !client.is_available() {
        assert!(Instant::now() < by, "still unavailable");
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_costs_a_call_its_budget_and_then_nothing() {
    let client = client(HANGS);
    for expected in [100, 100, 100, 0, 0] {
        let began = Instant::now();
        client.call(Fickle::step).await.unwrap_err();
        assert_eq!(began.elapsed().as_millis(), expected);
    }
    assert_eq!(client.errors(), 3);
}

/// Calls about the keys of the other shards would be refused with those about its own.
#[tokio::test(start_paused = true)]
async fn a_shard_that_fails_does_not_make_the_whole_store_unavailable() {
    let client = client(SHARD_FAILS);
    client.store().sharded.store(true, Relaxed);
    for mood in [SHARD_FAILS, HANGS] {
        client.store().turns(mood);
        for _ in 0..10 {
            client.call(Fickle::step).await.unwrap_err();
        }
        assert!(client.is_available());
    }
    assert_eq!(client.errors(), 20, "each call asked");
    client.store().turns(FAILS);
    for _ in 0..3 {
        client.call(Fickle::step).await.unwrap_err();
    }
    assert!(!client.is_available(), "the whole store fails");
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_store_is_asked_by_one_task_until_it_answers() {
    let client = client(FAILS);
    for _ in 0..10 {
        client.call(Fickle::step).await.unwrap_err();
    }
    assert!(!client.is_available());
    assert_eq!(client.store().asked.load(Relaxed), 3);
    sleep(Duration::from_secs(60)).await;
    let asked = client.store().asked.load(Relaxed);
    // At most once in 25 ms, at least once a second.
    assert!((60..2_400).contains(&asked), "{asked}");
    client.store().turns(ANSWERS);
    becomes_available(&client).await;
    client.call(Fickle::step).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_gives_back_is_tried_while_the_store_is_unavailable_and_until_it_is_too_late() {
    let client = client(HANGS);
    for _ in 0..3 {
        client.call(Fickle::step).await.unwrap_err();
    }
    let store = Arc::clone(client.store());
    let heals = async {
        sleep(Duration::from_secs(3)).await;
        store.turns(ANSWERS);
    };
    let until = Instant::now() + Duration::from_secs(10);
    let (given_back, ()) = tokio::join!(client.call_until(until, Fickle::step), heals);
    given_back.unwrap();

    client.store().turns(HANGS);
    let began = Instant::now();
    let late = client.call_until(began + Duration::from_secs(2), Fickle::step);
    assert!(late.await.unwrap_err().ambiguous);
    assert!(
        began.elapsed() <= Duration::from_millis(2_100),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_clear_refusal_after_a_lost_answer_is_still_ambiguous() {
    let client = client(HANGS);
    let store = Arc::clone(client.store());
    let turns = async {
        sleep(Duration::from_millis(50)).await;
        store.turns(FAILS);
    };
    let until = Instant::now() + Duration::from_secs(1);
    let (answer, ()) = tokio::join!(client.call_until(until, Fickle::step), turns);
    assert!(answer.unwrap_err().ambiguous);
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_woken_when_the_store_is_available_again() {
    let client = client(FAILS);
    let agent = Waker::new();
    client.wake_on_return(agent.clone());
    for _ in 0..3 {
        client.call(Fickle::step).await.unwrap_err();
    }
    client.store().turns(ANSWERS);
    timeout(Duration::from_secs(5), agent.woken())
        .await
        .unwrap();
    assert!(client.is_available());
}

#[test]
fn an_outage_that_outlives_a_runtime_ends_in_the_next() {
    let client = client(FAILS);
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    };
    runtime().block_on(async {
        for _ in 0..3 {
            client.call(Fickle::step).await.unwrap_err();
        }
    });
    client.store().turns(ANSWERS);
    runtime().block_on(async {
        client.call(Fickle::step).await.unwrap_err();
        becomes_available(&client).await;
    });
}

#[tokio::test(start_paused = true)]
async fn a_dropped_step_says_nothing_about_the_store() {
    let client = client(HANGS);
    for _ in 0..10 {
        let step = client.call(Fickle::step);
        timeout(Duration::from_millis(10), step).await.unwrap_err();
    }
    assert!(client.is_available());
    assert_eq!(client.errors(), 0);
}
