//! A server whose clock is set. `make torture` measures the same beside a fleet that uses the server.

use crate::{
    clock_steps,
    report::{Target, figure},
};

pub(crate) async fn run() {
    let longest = clock_steps::longest_overrun().await;
    figure(
        "clock_step_longest_overrun_ms",
        longest.as_secs_f64() * 1_000.0,
        "ms",
        Target::AtMost(1_000.0),
    );
    let twice = clock_steps::granted_twice().await;
    figure(
        "clock_step_granted_twice",
        twice as f64,
        "undocumented",
        Target::Exactly(0.0),
    );
}
