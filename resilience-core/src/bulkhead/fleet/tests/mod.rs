//! The handle, its task and its layer over a store that fails on demand; the record by itself is in `record.rs` here.

mod calls;
mod carry;
mod faults;
mod hanging;
mod queue;
mod record;
mod shares;
mod shutdown;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use super::*;
use crate::{
    Reason, ServiceError,
    fleet::{FleetOptions, OnOutage, StoreHandle},
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const LEASE: Duration = Duration::from_secs(10);

/// How the store fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Fine,
    /// Nothing is done, and it says so.
    Down,
    /// All is done, and the answer gets lost.
    Mute,
    /// Nothing is done and nothing is said.
    Hung,
    /// All is done and nothing is said.
    Stuck,
}

/// A store in this process that fails on demand, and counts what it is asked.
#[derive(Clone, Debug, Default)]
struct Faulty {
    inner: InProcessBulkheads,
    mode: Arc<Mutex<Mode>>,
    /// Wishes, heartbeats, releases.
    asked: Arc<[AtomicUsize; 3]>,
}

impl Faulty {
    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn asked(&self) -> [usize; 3] {
        self.asked.each_ref().map(|count| count.load(SeqCst))
    }

    fn fail<'a, T: Send + 'a>(
        &'a self,
        what: Option<usize>,
        step: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        if let Some(what) = what {
            self.asked[what].fetch_add(1, SeqCst);
        }
        let mode = *self.mode.lock().unwrap();
        Box::pin(async move {
            match mode {
                Mode::Fine => step().await,
                Mode::Down => Err(StoreError::new("down", false)),
                Mode::Mute => {
                    step().await?;
                    Err(StoreError::new("timed out", true))
                }
                Mode::Hung => std::future::pending().await,
                Mode::Stuck => {
                    step().await?;
                    std::future::pending().await
                }
            }
        })
    }
}

impl BulkheadStore for Faulty {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        request: &'a AcquireRequest,
    ) -> StoreFuture<'a, Admission> {
        self.fail(Some(0), || self.inner.acquire(name, request))
    }

    fn renew<'a>(
        &'a self,
        name: &'a str,
        beat: &'a Heartbeat,
    ) -> StoreFuture<'a, (Vec<bool>, BulkheadView)> {
        self.fail(Some(1), || self.inner.renew(name, beat))
    }

    fn release<'a>(&'a self, name: &'a str, releases: &'a [Release]) -> StoreFuture<'a, Vec<bool>> {
        self.fail(Some(2), || self.inner.release(name, releases))
    }

    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BulkheadView> {
        self.fail(None, || self.inner.view(name))
    }

    fn subscribe(&self, name: &str) -> Wakeups {
        self.inner.subscribe(name)
    }
}

fn of(store: &Faulty, places: usize) -> FleetBulkheadBuilder {
    FleetBulkhead::builder("reports")
        .store(store.clone())
        .max_concurrent(places)
        .lease(LEASE)
}

fn on_outage(policy: OnOutage) -> FleetOptions {
    FleetOptions::new().on_outage(policy)
}

fn build(store: &Faulty, places: usize) -> FleetBulkhead {
    of(store, places).build().unwrap()
}

async fn in_flight(store: &Faulty) -> u64 {
    store.inner.view("reports").await.unwrap().in_flight
}

#[track_caller]
fn reason<T>(result: Result<T, impl ServiceError>) -> Reason {
    let error = result.err().expect("rejected");
    error.as_rejected().expect("by us").reason()
}

/// Lets the task do what is due at this moment.
async fn settle() {
    tokio::time::sleep(ms(1)).await;
}
