//! Connections to the store are cut while the fleet is half-open: its probes are as many as it was built for.

use std::sync::atomic::AtomicUsize;

use super::{outages::flaky_over, *};

/// An instance, and its connection to the store.
struct Instance {
    breaker: CircuitBreaker,
    down: Arc<AtomicBool>,
    loses_answers: Arc<AtomicBool>,
}

/// A fleet that is half-open by the clock, and what has reached its dependency.
struct HalfOpenFleet {
    store: InProcessBreakers,
    instances: Vec<Instance>,
    reached: Arc<AtomicUsize>,
}

impl HalfOpenFleet {
    async fn new(size: usize) -> Self {
        let store = InProcessBreakers::new();
        let instance = |_| {
            let (down, loses_answers, flaky) = flaky_over(&store);
            Instance {
                breaker: builder(flaky).build().unwrap(),
                down,
                loses_answers,
            }
        };
        let instances: Vec<Instance> = (0..size).map(instance).collect();
        pass(ms(50)).await;
        for instance in &instances {
            fail(&instance.breaker, 9);
        }
        pass(ms(500)).await;
        for instance in &instances {
            assert_eq!(instance.breaker.state(), State::Open);
        }
        pass(ms(5_000)).await;
        let reached = Arc::default();
        Self {
            store,
            instances,
            reached,
        }
    }

    /// A call that hangs once it reaches the dependency.
    fn call(&self, of: usize) {
        let reached = Arc::clone(&self.reached);
        let service = tower::ServiceBuilder::new()
            .layer(self.instances[of].breaker.layer())
            .service_fn(move |()| {
                reached.fetch_add(1, Relaxed);
                std::future::pending::<Result<(), Error<()>>>()
            });
        tokio::spawn(tower::ServiceExt::oneshot(service, ()));
    }

    fn reached(&self) -> usize {
        self.reached.load(Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn cut_connections_send_no_probe_above_the_budget() {
    for seed in 0..8 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let fleet = HalfOpenFleet::new(6).await;
        // Probes hang: a verdict falls when the first of them is late, after eight seconds.
        for _ in 0..25 {
            for instance in &fleet.instances {
                instance.down.store(rng.u8(0..3) == 0, Relaxed);
                instance.loses_answers.store(rng.u8(0..3) == 0, Relaxed);
            }
            for of in 0..6 {
                fleet.call(of);
            }
            pass(ms(rng.u64(10..300))).await;
            assert!(fleet.reached() <= 3, "seed {seed}: {}", fleet.reached());
        }
        assert!(fleet.reached() > 0, "seed {seed}: none was sent");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_cut_off_for_long_sends_its_own_budget_and_no_more() {
    let fleet = HalfOpenFleet::new(2).await;
    fleet.instances[0].down.store(true, Relaxed);
    for _ in 0..4 {
        fleet.call(1);
    }
    pass(ms(100)).await;
    assert_eq!(fleet.reached(), 3, "the fleet's");
    let cut_off = tokio::time::Instant::now();
    while fleet.reached() == 3 {
        fleet.call(0);
        pass(ms(100)).await;
    }
    let cut_off = cut_off.elapsed();
    assert!((ms(3_800)..ms(6_000)).contains(&cut_off), "{cut_off:?}");
    for _ in 0..10 {
        fleet.call(0);
        pass(ms(10)).await;
    }
    assert_eq!(fleet.reached(), 6, "and its own");
}

/// The answer is lost, and so are those of all repetitions.
#[tokio::test(start_paused = true)]
async fn a_probe_that_was_granted_without_an_answer_goes_back_to_the_fleet() {
    let fleet = HalfOpenFleet::new(2).await;
    let leased = async || fleet.store.view("payments").await.unwrap().leased;
    fleet.instances[0].loses_answers.store(true, Relaxed);
    let (breaker, asked) = (
        fleet.instances[0].breaker.clone(),
        Arc::new(AtomicBool::new(false)),
    );
    let call = tokio::spawn({
        let asked = Arc::clone(&asked);
        async move {
            let result = through_layer(&breaker, true).await;
            asked.store(true, Relaxed);
            result
        }
    });
    pass(ms(20)).await;
    assert_eq!(leased().await, 1, "once, however often it is asked for");
    while !asked.load(Relaxed) {
        assert_eq!(leased().await, 1);
        pass(ms(10)).await;
    }
    let rejected = call.await.unwrap().unwrap_err();
    assert!(
        matches!(rejected, Error::Rejected(rejected) if rejected.reason() == Reason::NoProbeLeft)
    );
    fleet.instances[0].loses_answers.store(false, Relaxed);
    pass(ms(1_500)).await;
    assert_eq!(leased().await, 0);
}

/// A question whose answer was lost is repeated: the call is made with the probe that was granted the first time.
#[tokio::test(start_paused = true)]
async fn a_request_for_a_probe_is_repeated_under_its_id() {
    let fleet = HalfOpenFleet::new(2).await;
    fleet.instances[0].loses_answers.store(true, Relaxed);
    fleet.call(0);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    fleet.instances[0].loses_answers.store(false, Relaxed);
    pass(ms(200)).await;
    assert_eq!(fleet.reached(), 1);
    assert_eq!(fleet.store.view("payments").await.unwrap().leased, 1);
}
