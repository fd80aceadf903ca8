//! Durations on their way to a store.

use std::time::Duration;

use crate::clock::Moment;

/// Whole milliseconds, as store traits and scripts take them.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Until when the holder of a lease can be certain of it. The store counts the lease from when it receives the request,
/// which is after `sent`; the last twentieth is left to clocks that run at different speeds and to pauses of the process.
pub(crate) fn certain_until(sent: Moment, lease: Duration) -> Moment {
    sent + lease.mul_f64(0.95)
}

/// `interval`, up to a fifth shorter or longer: instances that started together must not go on together.
pub(crate) fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + 0.4 * fastrand::f64())
}
