//! The store is away, or answers are lost.

use super::*;

#[derive(Debug)]
pub(super) struct Flaky {
    inner: InProcessBreakers,
    down: Arc<AtomicBool>,
    /// Fails after the deed.
    loses_answers: Arc<AtomicBool>,
}

impl Flaky {
    fn through<'a, T: 'a>(&'a self, answer: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        let (down, lost) = (self.down.load(Relaxed), self.loses_answers.load(Relaxed));
        Box::pin(async move {
            if down {
                return Err(StoreError::new("down", false));
            }
            let answer = answer.await;
            if lost {
                Err(StoreError::new("lost", true))
            } else {
                answer
            }
        })
    }
}

/// Lazily: nothing is done before the first poll.
fn lazily<'a, T: 'a>(
    answer: impl Future<Output = Result<T, StoreError>> + Send + 'a,
) -> StoreFuture<'a, T> {
    Box::pin(answer)
}

impl BreakerStore for Flaky {
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView> {
        self.through(lazily(async move { self.inner.report(name, report).await }))
    }
    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        self.through(lazily(async move { self.inner.change(name, change).await }))
    }
    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        self.through(lazily(async move { self.inner.restore(name, known).await }))
    }
    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)> {
        self.through(lazily(async move {
            self.inner.lease(name, lease, budget, lease_ms).await
        }))
    }
    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        self.through(lazily(async move {
            self.inner.settle(name, lease, epoch, success).await
        }))
    }
    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        self.through(lazily(async move {
            self.inner.set_override(name, active_override, by).await
        }))
    }
    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        self.through(lazily(
            async move { self.inner.reset(name, by, cause).await },
        ))
    }
    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView> {
        self.through(lazily(async move { self.inner.view(name).await }))
    }
    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        self.inner.subscribe(name)
    }
}

pub(super) fn flaky() -> (InProcessBreakers, Arc<AtomicBool>, Arc<AtomicBool>, Flaky) {
    let (inner, down, lost) = (InProcessBreakers::new(), Arc::default(), Arc::default());
    let flaky = Flaky {
        inner: inner.clone(),
        down: Arc::clone(&down),
        loses_answers: Arc::clone(&lost),
    };
    (inner, down, lost, flaky)
}

#[tokio::test(start_paused = true)]
async fn calls_go_on_by_the_local_window_while_the_store_is_down() {
    let (_, down, _, store) = flaky();
    let breaker = builder(store).build().unwrap();
    pass(ms(50)).await;
    assert!(!breaker.fleet().unwrap().is_degraded());
    down.store(true, Relaxed);
    succeed(&breaker, 5);
    pass(ms(3_000)).await;
    assert!(breaker.fleet().unwrap().is_degraded());
    succeed(&breaker, 5);
    fail(&breaker, 10);
    assert_eq!(breaker.state(), State::Open);
    down.store(false, Relaxed);
    pass(ms(3_000)).await;
    assert!(!breaker.fleet().unwrap().is_degraded());
}

#[tokio::test(start_paused = true)]
async fn the_fleets_verdict_runs_out_by_itself_when_the_store_is_gone() {
    let (inner, down, _, store) = flaky();
    let breaker = builder(store).build().unwrap();
    let other = builder(inner).build().unwrap();
    pass(ms(50)).await;
    fail(&breaker, 5);
    fail(&other, 5);
    pass(ms(500)).await;
    assert_eq!(breaker.state(), State::Open);
    down.store(true, Relaxed);
    pass(ms(5_000)).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    for _ in 0..3 {
        assert_eq!(
            through_layer(&breaker, true).await,
            Ok(()),
            "probes of its own"
        );
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_report_whose_answer_was_lost_counts_once() {
    let (inner, down, lost, store) = flaky();
    let breaker = builder(store).build().unwrap();
    pass(ms(50)).await;
    succeed(&breaker, 3);
    lost.store(true, Relaxed);
    pass(ms(5_000)).await;
    assert_eq!(inner.view("payments").await.unwrap().window.total(), 3);
    lost.store(false, Relaxed);
    pass(ms(3_000)).await;
    assert_eq!(inner.view("payments").await.unwrap().window.total(), 3);
    down.store(true, Relaxed);
    succeed(&breaker, 4);
    pass(ms(5_000)).await;
    down.store(false, Relaxed);
    pass(ms(3_000)).await;
    let view = inner.view("payments").await.unwrap();
    assert_eq!(
        view.window.total(),
        4,
        "those of the time without a store, once; the others have aged out"
    );
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_breaker() {
    let store = InProcessBreakers::new();
    let breaker = builder(store.clone()).build().unwrap();
    pass(ms(50)).await;
    let alive = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    drop(breaker);
    pass(ms(3_000)).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), alive - 1);
    assert_eq!(alive, 1);
}

#[test]
fn a_shared_breaker_outside_of_a_runtime_is_refused_by_name() {
    let error = builder(InProcessBreakers::new()).build().unwrap_err();
    assert_eq!(error.field(), "shared");
}
