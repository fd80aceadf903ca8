//! The task that speaks for this instance: tells the store that it is there, and finds out when a store that was
//! lost is back.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    builder::Mode,
    limiter::{Limiter, within},
};

/// Ends soon after the last handle is gone: what is leased goes back, and the instance is taken off the list.
pub(super) async fn run(core: Arc<Limiter>) {
    let mut next_beat = Instant::now();
    let mut probe = FIRST_PROBE;
    let mut next_sweep = Instant::now() + sweep_interval(&core);
    while !core.health.is_closing() {
        tokio::select! {
            () = sleep_until(next_beat), if is_social(&core) => {
                beat(&core, core.settings.heartbeat * 3).await;
                next_beat = Instant::now() + pause(&core, probe);
                probe = if core.health.is_degraded() {
                    LAST_PROBE.min(probe * 2)
                } else {
                    FIRST_PROBE
                };
            }
            () = sleep_until(next_sweep) => {
                // What does not arrive is lost, and comes in again at the rate of the limit.
                let _ = core.sweep(false).await;
                next_sweep = Instant::now() + sweep_interval(&core);
            }
            () = core.health.bell.notified() => {
                next_beat = next_beat.min(Instant::now() + pause(&core, probe));
            }
        }
    }
    let _ = core.sweep(true).await;
    if is_social(&core) {
        beat(&core, Duration::ZERO).await;
    }
}

fn is_social(core: &Limiter) -> bool {
    core.settings.mode != Mode::Local
}

fn sweep_interval(core: &Limiter) -> Duration {
    match &core.settings.mode {
        Mode::Leased(rules) => rules.time / 2,
        _ => LONG,
    }
}

/// Nothing to sweep.
const LONG: Duration = Duration::from_secs(3600);

/// A store that is lost is asked again soon, as its connection may have been cut and no more; and then ever less often.
const FIRST_PROBE: Duration = Duration::from_millis(25);
const LAST_PROBE: Duration = Duration::from_millis(250);

/// Until the next heartbeat. Instances that started together shall not beat together.
fn pause(core: &Limiter, probe: Duration) -> Duration {
    let interval = if core.health.is_degraded() {
        probe
    } else {
        core.settings.heartbeat
    };
    interval.mul_f64(0.8 + 0.4 * fastrand::f64())
}

async fn beat(core: &Limiter, ttl: Duration) {
    let settings = &core.settings;
    let answer = core
        .store
        .heartbeat(&settings.name, &settings.instance, ttl);
    let answer = within(settings.budget, answer).await;
    core.heard(answer.as_ref().err());
    if let Ok(live) = answer {
        core.health.saw(live);
    }
}
