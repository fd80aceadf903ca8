//! Work that goes on without its caller keeps the caller's place in the bulkheads around.

use tower::{Layer, Service, ServiceExt, service_fn};

use super::*;
use crate::{bulkhead::Bulkhead, deadline::Timeout, error::Rejected, idempotency::Key};

/// Handlers in progress, and the most of them at once.
#[derive(Clone, Default)]
struct Handlers {
    now: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
}

impl Handlers {
    async fn run(self, time: Duration) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        let _running = Running(Arc::clone(&self.now));
        tokio::time::sleep(time).await;
    }
}

struct Running(Arc<AtomicU32>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn bulkhead(places: usize) -> Bulkhead {
    let builder = Bulkhead::builder("handlers").max_concurrent(places);
    builder.build().unwrap()
}

type Taking = (String, Duration);

/// A handler that takes its time, with one effect per key.
fn handler(
    handle: &Idempotency,
    handlers: &Handlers,
) -> impl Service<Taking, Response = (), Error = Rejected, Future: Send> + Clone + use<> {
    let handlers = handlers.clone();
    let layer = handle.layer(|(key, _): &Taking| Some(Key::new(key.as_str())));
    layer.layer(service_fn(move |(_, time): Taking| {
        let running = handlers.clone().run(time);
        async move {
            running.await;
            Ok::<_, Rejected>(())
        }
    }))
}

#[tokio::test(start_paused = true)]
async fn handlers_whose_callers_go_away_are_never_more_than_the_places() {
    let (handle, handlers) = (handle(&InProcessIdempotency::new()), Handlers::default());
    let places = bulkhead(3);
    let service = places.layer().layer(handler(&handle, &handlers));
    for key in 0..60 {
        let call = service.clone().oneshot((key.to_string(), 100 * SECOND));
        // Goes away after a second.
        let _ = tokio::time::timeout(SECOND, call).await;
    }
    assert_eq!(handlers.most.load(SeqCst), 3);
    assert_eq!(places.snapshot().rejected_full, 57);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(
        (handlers.now.load(SeqCst), places.snapshot().in_flight),
        (0, 0)
    );
    // The outcomes are recorded, and their replay needs a place for a moment.
    service.oneshot(("2".into(), SECOND)).await.unwrap();
    assert_eq!(handle.snapshot().replayed, 1);
}

#[tokio::test(start_paused = true)]
async fn handlers_that_outlive_the_deadline_of_their_callers_are_never_more_than_the_places() {
    let (handle, handlers) = (handle(&InProcessIdempotency::new()), Handlers::default());
    let (places, deadline) = (bulkhead(4), Duration::from_millis(100));
    let timeout = Timeout::new("inbound", deadline).unwrap();
    let service = (timeout.layer(), places.layer()).layer(handler(&handle, &handlers));
    let forever = Duration::from_secs(86_400);
    let mut reasons = Vec::new();
    for key in 0..100 {
        let call = service.clone().oneshot((key.to_string(), forever));
        reasons.push(call.await.unwrap_err().reason());
    }
    assert_eq!(handlers.most.load(SeqCst), 4);
    let timed_out = reasons.iter().filter(|reason| **reason == Reason::TimedOut);
    assert_eq!(timed_out.count(), 4);
    assert_eq!(places.snapshot().rejected_full, 96);
    // A dependency that hangs keeps the places until the handlers' own time is over, and no longer.
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(
        (handlers.now.load(SeqCst), places.snapshot().in_flight),
        (0, 0)
    );
    service
        .oneshot(("new".into(), Duration::ZERO))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_has_ended_keeps_no_place_while_its_outcome_is_being_recorded() {
    let store = shaky::Shaky::default();
    let handle = Idempotency::builder("test")
        .store(store.clone())
        .build()
        .unwrap();
    let (places, handlers) = (bulkhead(1), Handlers::default());
    let service = places.layer().layer(handler(&handle, &handlers));
    let call = service.oneshot(("k".into(), 2 * SECOND));
    let _ = tokio::time::timeout(SECOND, call).await;
    store.down(true);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(
        (handlers.now.load(SeqCst), places.snapshot().in_flight),
        (0, 0)
    );
    assert_eq!(handle.snapshot().running, 1, "it is not recorded yet");
}
