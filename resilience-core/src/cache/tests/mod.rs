//! Tests of the cache over a paused clock, with one process or several that share a store.

mod aside;
mod change;
mod fleet;
mod options;
mod outage;
mod stale;
mod through;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::advance};

use super::{Cache, CacheBuilder, InProcessCache};

type Strings = Cache<String, String>;

const SECOND: Duration = Duration::from_secs(1);

fn builder() -> CacheBuilder<String, String> {
    Cache::builder("things").ttl(SECOND * 60).jitter(0.0)
}

fn local() -> Strings {
    builder().build().unwrap()
}

/// Handles of two processes that share a store.
fn fleet() -> (Strings, Strings, InProcessCache) {
    fleet_of(|builder| builder)
}

fn fleet_of(
    set: impl Fn(CacheBuilder<String, String>) -> CacheBuilder<String, String>,
) -> (Strings, Strings, InProcessCache) {
    let store = InProcessCache::new();
    let make = || set(builder()).store(store.clone()).build().unwrap();
    (make(), make(), store)
}

/// The truth, which counts how often it is asked.
#[derive(Clone, Debug, Default)]
struct Truth {
    asked: Arc<AtomicUsize>,
    /// Loads wait for it, if there is one.
    gate: Option<Arc<Notify>>,
}

#[derive(Debug, PartialEq)]
struct Down;

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("down")
    }
}

impl std::error::Error for Down {}

impl Truth {
    /// One whose loads wait until they are let go.
    fn gated() -> (Self, Arc<Notify>) {
        let gate = Arc::new(Notify::new());
        let truth = Self {
            gate: Some(Arc::clone(&gate)),
            ..Self::default()
        };
        (truth, gate)
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    /// A load that returns `value`.
    fn load(&self, value: &str) -> impl FnOnce() -> Loading<Result<String, Down>> + Send + use<> {
        self.answer(Ok(value.to_owned()))
    }

    fn fail(&self) -> impl FnOnce() -> Loading<Result<String, Down>> + Send + use<> {
        self.answer(Err(Down))
    }

    fn nothing(&self) -> impl FnOnce() -> Loading<Result<Option<String>, Down>> + Send + use<> {
        self.answer(Ok(None))
    }

    fn answer<T: Send + 'static>(&self, answer: T) -> impl FnOnce() -> Loading<T> + Send + use<T> {
        let truth = self.clone();
        move || {
            truth.asked.fetch_add(1, SeqCst);
            Box::pin(async move {
                if let Some(gate) = &truth.gate {
                    gate.notified().await;
                }
                answer
            })
        }
    }
}

type Loading<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// Lets other tasks run until they wait.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

async fn pass(time: Duration) {
    advance(time).await;
    settle().await;
}

async fn value(cache: &Strings, key: &str) -> Option<String> {
    cache.get(key).await.map(|value| (*value).clone())
}
