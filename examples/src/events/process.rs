//! Processes that are killed and stopped: threads with a runtime each.

use std::{
    future::Future,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Builder,
    sync::{Notify, watch},
    time::sleep,
};

/// How long a step of a process takes, in milliseconds.
const STEP_MS: RangeInclusive<u64> = 4..=10;
/// In one of this number of steps, the process is killed.
const KILLED: u32 = 25;
/// In one of this number of steps, all of the process stands still.
const STOPPED: u32 = 150;
/// How long it does: longer than a lease.
const STOP: Duration = Duration::from_millis(300);

/// The processes that follow each other in one place.
#[derive(Debug)]
pub(super) struct Lives {
    seed: u64,
    ended: watch::Receiver<bool>,
}

impl Lives {
    pub(super) const fn new(seed: u64, ended: watch::Receiver<bool>) -> Self {
        Self { seed, ended }
    }

    /// Runs processes that do `work`, one after the other; how many of them were killed.
    pub(super) fn run<F: Future<Output = ()>>(mut self, work: impl Fn(Life) -> F) -> u64 {
        let mut killed = 0;
        while !*self.ended.borrow() {
            let life = Life::new(self.seed.wrapping_add(killed << 8), killed);
            let runtime = Builder::new_current_thread().enable_time().build();
            let runtime = runtime.expect("a runtime without sockets");
            runtime.block_on(async {
                tokio::select! {
                    () = work(life.clone()) => {}
                    () = life.0.killed.notified() => killed += 1,
                    // Without its sender, the scene has ended too.
                    _ = self.ended.wait_for(|&ended| ended) => {}
                }
            });
            // The runtime is dropped, and every task of the process with it.
        }
        killed
    }
}

/// One process.
#[derive(Clone, Debug)]
pub(super) struct Life(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    random: Mutex<fastrand::Rng>,
    killed: Notify,
}

impl Life {
    fn new(seed: u64, number: u64) -> Self {
        Self(Arc::new(Shared {
            name: format!("pod-{seed}-{number}"),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            killed: Notify::new(),
        }))
    }

    /// The name of the process, which no other one has.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// A step of the work. The process may be killed or stopped in it.
    pub(super) async fn step(&self) {
        let (ms, is_last, stops) = {
            let random = self.0.random.lock();
            let mut random = random.unwrap_or_else(PoisonError::into_inner);
            let (last, stops) = (random.u32(..KILLED), random.u32(..STOPPED));
            (random.u64(STEP_MS), last == 0, stops == 0)
        };
        sleep(Duration::from_millis(ms)).await;
        if is_last {
            self.0.killed.notify_one();
            std::future::pending::<()>().await;
        }
        if stops {
            // It has one thread.
            std::thread::sleep(STOP);
        }
    }
}
