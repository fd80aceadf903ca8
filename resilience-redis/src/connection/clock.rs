//! An estimate of the server's clock that costs no command.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use tokio::time::Instant;

/// The server's clock as of its last answer, plus the time since: behind by the time that an answer takes. A step of the
/// server's clock is noticed with the next answer.
#[derive(Debug)]
pub(crate) struct ServerClock {
    origin: Instant,
    /// The server's time at the origin, in microseconds.
    shown: AtomicI64,
}

impl ServerClock {
    pub(super) fn new() -> Self {
        Self {
            origin: Instant::now(),
            shown: AtomicI64::new(0),
        }
    }

    /// Notes that an answer, just received, contained the time `micros`.
    pub(crate) fn shows(&self, micros: u64) {
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        self.shown
            .store(micros.saturating_sub(self.passed()), Relaxed);
    }

    /// The estimated time, in microseconds.
    pub(crate) fn now(&self) -> u64 {
        let now = self.shown.load(Relaxed).saturating_add(self.passed());
        now.try_into().unwrap_or(0)
    }

    fn passed(&self) -> i64 {
        i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_from_what_it_showed_last() {
        let clock = ServerClock::new();
        tokio::time::advance(Duration::from_secs(5)).await;
        clock.shows(1_700_000_000_000_000);
        tokio::time::advance(Duration::from_millis(3)).await;
        assert_eq!(clock.now(), 1_700_000_000_003_000);
        // Set back, by its operator.
        clock.shows(1_600_000_000_000_000);
        tokio::time::advance(Duration::from_micros(7)).await;
        assert_eq!(clock.now(), 1_600_000_000_000_007);
        clock.shows(u64::MAX);
        assert_eq!(clock.now(), i64::MAX as u64);
    }
}
