//! When a relay may take the lease, and until when it can be certain of it. Pure: time comes in.

use std::time::Duration;

use tokio::time::Instant;

/// The lease as a relay finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub(super) fence: i64,
    pub(super) beat: i64,
    /// The relay that has it; `None`: it was given back.
    pub(super) holder: Option<String>,
}

/// What a relay without the lease has seen of it.
///
/// No clock is compared with another one: the lease is over when it was not renewed for as long as it lasts, on the clock of
/// the relay that watches.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Option<(i64, i64, Instant)>,
}

impl Watch {
    /// Whether the lease may be taken now, if it is still as it was found. `now` is a moment after it was read.
    pub(super) fn may_take(&mut self, found: &Lease, now: Instant, lease: Duration) -> bool {
        if found.holder.is_none() {
            return true;
        }
        match self.seen {
            Some((fence, beat, since)) if (fence, beat) == (found.fence, found.beat) => {
                now.saturating_duration_since(since) >= lease
            }
            _ => {
                self.seen = Some((found.fence, found.beat, now));
                false
            }
        }
    }
}

/// Until when no other relay can have taken the lease: others count from when they saw it renewed, which is after the request
/// was sent. The last twentieth is left to clocks that run at different speeds.
pub(super) fn certain_until(sent: Instant, lease: Duration) -> Instant {
    sent + lease.mul_f64(0.95)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn held(fence: i64, beat: i64) -> Lease {
        Lease {
            fence,
            beat,
            holder: Some("other".to_owned()),
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_stood_still_for_as_long_as_it_lasts_and_not_before() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(!watch.may_take(&held(1, 1), at(0), LEASE));
        assert!(!watch.may_take(&held(1, 1), at(9_999), LEASE));
        // Renewed at the last moment.
        assert!(!watch.may_take(&held(1, 2), at(10_000), LEASE));
        assert!(!watch.may_take(&held(1, 2), at(19_999), LEASE));
        assert!(watch.may_take(&held(1, 2), at(20_000), LEASE));
        // Another one was faster.
        assert!(!watch.may_take(&held(2, 3), at(20_001), LEASE));
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let free = Lease {
            holder: None,
            ..held(4, 9)
        };
        assert!(Watch::default().may_take(&free, Instant::now(), LEASE));
    }

    #[test]
    fn a_holder_is_never_certain_for_longer_than_the_others_wait() {
        // In the worst case another one sees the renewal in the moment it was sent.
        let sent = Instant::now();
        let mut watch = Watch::default();
        assert!(!watch.may_take(&held(1, 1), sent, LEASE));
        assert!(!watch.may_take(&held(1, 1), certain_until(sent, LEASE), LEASE));
    }
}
