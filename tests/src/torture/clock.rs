//! A fleet that uses every pattern on a server whose clock steps by an hour, forward and back.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep};

use super::mixed::{Fleet, Mixed};
use crate::{
    clock_steps,
    lasting::{Lasting, SHORT},
    redis_clock::Clock,
};

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
    let steps = async {
        let (start, mut longest, mut steps) = (Instant::now(), 0.0_f64, 0);
        while start.elapsed() < LASTING {
            // Each begins with one of the two, and sees the other one.
            let is_ahead = steps % 4 == 0;
            set(&clock, is_ahead);
            let redis = clock_steps::connect(&server.url(), &format!("round-{steps}")).await;
            let lasting = Lasting::begin(redis).await;
            let swing = async {
                for is_ahead in [!is_ahead, is_ahead] {
                    sleep(SHORT.mul_f64(fastrand::f64())).await;
                    set(&clock, is_ahead);
                }
            };
            let (overruns, ()) = tokio::join!(lasting.overruns(), swing);
            let overruns = overruns.iter().map(|(_, over)| *over);
            (longest, steps) = (overruns.fold(longest, f64::max), steps + 2);
        }
        clock.set_back(HOUR);
        (longest, steps + 1)
    };
    let outages = async {
        // The last one is over before the clock is set back for good.
        for _ in 0..3 {
            fleet.dependency_is(false).await;
            fleet.dependency_is(true).await;
        }
    };
    let ((longest, steps), ()) = tokio::join!(steps, outages);
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

fn set(clock: &Clock, is_ahead: bool) {
    if is_ahead {
        clock.set_ahead(HOUR);
    } else {
        clock.set_back(Duration::ZERO);
    }
}
