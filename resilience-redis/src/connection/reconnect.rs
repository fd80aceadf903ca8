//! Attempts to connect: their time limit, and the pauses between them.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use redis::RedisResult;
use tokio::time::timeout;

use crate::dialer::Dialer;

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// A connection that was lost before this age does not shorten the pause before the next attempt.
pub(super) const PROVEN: Duration = Duration::from_secs(1);

/// Awaits a connection that is being opened. The client's own timeout covers the socket, not the lookup and the handshake.
pub(super) async fn opened_within<T>(
    dialer: &Dialer,
    opening: impl Future<Output = RedisResult<T>>,
) -> Result<T, String> {
    // The TLS library panics in a program that has to install a crypto provider and has not. As an error, this is visible in
    // the status, and ends once a provider is installed.
    let opening = AssertUnwindSafe(opening).catch_unwind();
    match timeout(dialer.connect * 2, opening).await {
        Ok(Ok(Ok(transport))) => Ok(transport),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(panic)) => Err(format!("panicked: {}", message(&*panic))),
        Err(_) => Err("no answer while connecting".into()),
    }
}

/// Pause before the attempt after `failures` in a row, in place of `retry::Backoff`, whose decorrelated pauses come back to
/// short ones: doubles from [`FIRST_RETRY`] to [`LAST_RETRY`], less up to a half, so
/// that instances that lost Redis together do not come back together.
pub(super) fn backoff(failures: u32) -> Duration {
    let full = FIRST_RETRY
        .saturating_mul(1 << failures.min(10))
        .min(LAST_RETRY);
    full.mul_f64(1.0 - fastrand::f64() / 2.0)
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message").trim()
}
