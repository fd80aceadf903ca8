//! What the time does to a record: leases and records end, also at a clock that is set back.

use super::{Phase, Record};
use crate::fleet::at_most;

/// What is left of a lease is noted when it has become less by as much.
const NOTED_MS: u64 = 100;

impl Record {
    /// Whether there is no record, or an expired one.
    #[must_use]
    pub const fn is_gone(&self, now: u64) -> bool {
        self.fence == 0 || self.expires <= now
    }

    pub(super) fn forget(&mut self, now: u64) {
        if self.is_gone(now) {
            *self = Self::default();
        }
    }

    pub(super) fn live(&mut self, lease_ms: u64, now: u64) {
        self.lease_ms = lease_ms;
        self.until = ahead(now, lease_ms);
        self.expires = ahead(now, lease_ms.max(self.retention_ms));
    }

    /// Looks at the record at a clock that may have been set back: nothing then lasts longer than it would have.
    pub(super) fn look(&mut self, now: u64) {
        let held = self.phase == Phase::Running && self.until > now;
        let until = at_most(self.until, now, self.lease_ms.saturating_mul(1000));
        let left_ms = if held {
            (until - now).div_ceil(1000)
        } else {
            self.lease_ms
        };
        let is_back = self.since > now || (held && until < self.until);
        if !is_back && self.lease_ms.saturating_sub(left_ms) < NOTED_MS {
            return;
        }
        if held {
            self.until = until;
        }
        self.since = self.since.min(now);
        self.lease_ms = left_ms;
        if is_back {
            let kept_ms = match self.phase {
                Phase::Done => self.lease_ms,
                Phase::Running if held => self.lease_ms.max(self.retention_ms),
                _ => self.retention_ms,
            };
            self.expires = at_most(self.expires, now, kept_ms.saturating_mul(1000));
        }
    }

    pub(super) const fn age_ms(&self, now: u64) -> u64 {
        now.saturating_sub(self.since) / 1000
    }

    pub(super) const fn remaining_ms(&self, now: u64) -> u64 {
        let until = at_most(self.until, now, self.lease_ms.saturating_mul(1000));
        until.saturating_sub(now).div_ceil(1000)
    }
}

pub(super) const fn ahead(now: u64, ms: u64) -> u64 {
    now.saturating_add(ms.saturating_mul(1000))
}
