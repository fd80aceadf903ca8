//! A fleet that uses every pattern on a server whose clock steps by an hour, forward and back.

use std::{path::Path, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::mixed::{Fleet, Mixed};
use crate::{clock_steps, lasting::Lasting, redis_clock::Clock};

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct ClockSteps {
    /// How much too long something lasted, at most.
    pub longest_overrun: Duration,
    /// Steps of the clock.
    pub steps: usize,
    /// What the fleet did meanwhile.
    pub fleet: Mixed,
}

const PROCESSES: usize = 4;
const HOUR: Duration = Duration::from_secs(3600);
/// For how long the clock steps.
const LASTING: Duration = Duration::from_secs(20);

/// Runs the fleet; `program` is the binary `torture`.
///
/// # Panics
/// If the servers or processes do not start.
pub async fn clock_steps_under_load(program: &Path) -> ClockSteps {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let mut fleet = Fleet::open(server.url(), true).await;
    for _ in 0..PROCESSES {
        fleet.start(program).await.expect("it knows what to do");
    }
    fleet.dependency_is(true).await;
    // What is to last begins between two steps.
    let quiet = Mutex::new(());
    let steps = async {
        let (start, mut steps) = (Instant::now(), 0);
        while start.elapsed() < LASTING {
            {
                let _quiet = quiet.lock().await;
                clock.set_ahead(HOUR);
            }
            sleep(Duration::from_millis(fastrand::u64(100..900))).await;
            {
                let _quiet = quiet.lock().await;
                clock.set_back(Duration::ZERO);
            }
            sleep(Duration::from_millis(fastrand::u64(100..900))).await;
            steps += 2;
        }
        clock.set_back(HOUR);
        steps + 1
    };
    let outages = async {
        // The last one is over before the clock is set back for good.
        for _ in 0..3 {
            fleet.dependency_is(false).await;
            fleet.dependency_is(true).await;
        }
    };
    let overruns = async {
        let (start, mut longest, mut round) = (Instant::now(), 0.0_f64, 0);
        while start.elapsed() < LASTING {
            round += 1;
            let redis = clock_steps::connect(&server.url(), &format!("round-{round}")).await;
            let lasting = {
                let _quiet = quiet.lock().await;
                Lasting::begin(redis).await
            };
            let overruns = lasting.overruns().await;
            longest = overruns
                .iter()
                .map(|(_, over)| *over)
                .fold(longest, f64::max);
        }
        longest
    };
    let (steps, (), longest) = tokio::join!(steps, outages, overruns);
    fleet.dependency_is(false).await;
    fleet.dependency_is(true).await;
    // Full at the beginning, and once more for the hour that seems to have passed.
    let fleet = fleet.end(2).await;
    ClockSteps {
        longest_overrun: Duration::from_secs_f64(longest.max(0.0)),
        steps,
        fleet,
    }
}
