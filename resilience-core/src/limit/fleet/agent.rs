//! The task that speaks for this instance: tells the store that it is there, and finds out when a store that was
//! lost is back.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    core::{Core, within},
    health::Health,
};

/// Ends soon after `closing` is set and the bell has rung.
pub(super) async fn run(core: Arc<Core>) {
    let mut next = Instant::now();
    while !core.health.is_closing() {
        tokio::select! {
            () = sleep_until(next) => {
                beat(&core, core.settings.heartbeat * 3).await;
                next = Instant::now() + pause(&core);
            }
            () = core.health.bell.notified() => next = next.min(Instant::now() + pause(&core)),
        }
    }
    beat(&core, Duration::ZERO).await;
}

/// Until the next heartbeat. Instances that started together shall not beat together.
fn pause(core: &Core) -> Duration {
    let interval = if core.health.is_degraded() {
        Health::PROBE
    } else {
        core.settings.heartbeat
    };
    interval.mul_f64(0.8 + 0.4 * fastrand::f64())
}

async fn beat(core: &Core, ttl: Duration) {
    let settings = &core.settings;
    let answer = core.store.enrol(&settings.name, &settings.instance, ttl);
    let answer = within(settings.budget, answer).await;
    core.heard(answer.as_ref().err());
    if let Ok(live) = answer {
        core.health.saw(live);
    }
}
