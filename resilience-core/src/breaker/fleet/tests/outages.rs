//! The store is away, or answers are lost.

use super::{around::Around, *};

#[derive(Debug)]
pub(super) struct Flaky {
    inner: InProcessBreakers,
    down: Arc<AtomicBool>,
    /// Fails after the deed.
    loses_answers: Arc<AtomicBool>,
}

impl Around for Flaky {
    fn inner(&self) -> &InProcessBreakers {
        &self.inner
    }

    fn send<'a, T, F>(
        &'a self,
        step: impl FnOnce(InProcessBreakers) -> F + Send + 'static,
    ) -> StoreFuture<'a, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (down, lost) = (self.down.load(Relaxed), self.loses_answers.load(Relaxed));
        let inner = self.inner.clone();
        Box::pin(async move {
            if down {
                return Err(StoreError::new("down", false));
            }
            let answer = step(inner).await;
            if lost {
                Err(StoreError::new("lost", true))
            } else {
                answer
            }
        })
    }
}

pub(super) fn flaky() -> (InProcessBreakers, Arc<AtomicBool>, Arc<AtomicBool>, Flaky) {
    let inner = InProcessBreakers::new();
    let (down, lost, flaky) = flaky_over(&inner);
    (inner, down, lost, flaky)
}

/// A connection of its own to `inner`: whether it is down, and whether it loses answers.
pub(super) fn flaky_over(inner: &InProcessBreakers) -> (Arc<AtomicBool>, Arc<AtomicBool>, Flaky) {
    let (down, lost) = (Arc::default(), Arc::default());
    let flaky = Flaky {
        inner: inner.clone(),
        down: Arc::clone(&down),
        loses_answers: Arc::clone(&lost),
    };
    (down, lost, flaky)
}

#[tokio::test(start_paused = true)]
async fn calls_go_on_by_the_local_window_while_the_store_is_down() {
    let (_, down, _, store) = flaky();
    let breaker = builder(store).build().unwrap();
    pass(ms(50)).await;
    assert!(!breaker.snapshot().degraded);
    down.store(true, Relaxed);
    succeed(&breaker, 5);
    pass(ms(3_000)).await;
    assert!(breaker.snapshot().degraded);
    succeed(&breaker, 5);
    fail(&breaker, 10);
    assert_eq!(breaker.state(), State::Open);
    down.store(false, Relaxed);
    pass(ms(3_000)).await;
    assert!(!breaker.snapshot().degraded);
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
