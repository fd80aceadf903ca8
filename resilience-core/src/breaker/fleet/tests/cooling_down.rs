//! The dependency itself says when to come back.

use super::{outages::flaky, *};

fn asked_to_wait(seconds: u64) -> Verdict {
    Verdict::Transient {
        retry_after: Some(Duration::from_secs(seconds)),
    }
}

fn polite(store: &InProcessBreakers, max: Duration) -> CircuitBreaker {
    let open_for = OpenFor::exponential(ms(5_000), ms(60_000)).jitter(0.0);
    builder(store.clone())
        .open_for(open_for.honour_retry_after(max))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_learned_by_one_instance_cools_down_the_fleet() {
    let store = InProcessBreakers::new();
    let fleet: Vec<_> = (0..3).map(|_| polite(&store, ms(120_000))).collect();
    pass(ms(50)).await;
    for _ in 0..10 {
        call(&fleet[0], asked_to_wait(90)).unwrap();
    }
    pass(ms(20)).await;
    assert_eq!(states(&fleet), [State::Open; 3]);
    for breaker in &fleet {
        let left = breaker.snapshot().open_for.unwrap();
        assert!(left > ms(89_000) && left <= ms(90_000), "{left:?}");
    }
    pass(ms(91_000)).await;
    for breaker in &fleet {
        let _ = through_layer(breaker, true).await;
        pass(ms(200)).await;
    }
    assert_eq!(states(&fleet), [State::Closed; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_is_capped_for_the_fleet_too() {
    let store = InProcessBreakers::new();
    let fleet: Vec<_> = (0..2).map(|_| polite(&store, ms(20_000))).collect();
    pass(ms(50)).await;
    for _ in 0..10 {
        call(&fleet[0], asked_to_wait(86_400)).unwrap();
    }
    pass(ms(20)).await;
    let left = fleet[1].snapshot().open_for.unwrap();
    assert!(left > ms(19_000) && left <= ms(20_000), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_that_is_not_honoured_moves_nobody() {
    let fleet = fleet(&InProcessBreakers::new(), 3);
    pass(ms(50)).await;
    for _ in 0..10 {
        call(&fleet[0], asked_to_wait(90)).unwrap();
    }
    pass(ms(1_000)).await;
    assert_eq!(
        states(&fleet),
        [State::Open, State::Closed, State::Closed],
        "alone, by its own window"
    );
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_a_failed_probe_cools_down_the_fleet() {
    let store = InProcessBreakers::new();
    let fleet: Vec<_> = (0..2).map(|_| polite(&store, ms(120_000))).collect();
    pass(ms(50)).await;
    fleet.iter().for_each(|breaker| fail(breaker, 9));
    pass(ms(500)).await;
    assert_eq!(states(&fleet), [State::Open; 2]);
    pass(ms(5_000)).await;
    let mut probe = None;
    for _ in 0..20 {
        probe = probe.or_else(|| fleet[0].acquire().ok());
        pass(ms(100)).await;
    }
    probe.expect("one of the probes").settle(asked_to_wait(100));
    pass(ms(50)).await;
    let left = fleet[1].snapshot().open_for.unwrap();
    assert!(left > ms(99_000) && left <= ms(100_000), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_dependency_asked_for_is_passed_on_when_the_store_is_back() {
    let (inner, down, _, store) = flaky();
    let open_for = OpenFor::fixed(ms(5_000)).honour_retry_after(ms(120_000));
    let one = builder(store).open_for(open_for).build().unwrap();
    let other = builder(inner).build().unwrap();
    pass(ms(50)).await;
    down.store(true, Relaxed);
    for _ in 0..10 {
        call(&one, asked_to_wait(60)).unwrap();
    }
    pass(ms(5_000)).await;
    assert_eq!(other.state(), State::Closed);
    down.store(false, Relaxed);
    pass(ms(3_000)).await;
    let left = other.snapshot().open_for.unwrap();
    assert!(left > ms(50_000) && left <= ms(55_000), "{left:?}");
}
