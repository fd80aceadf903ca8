//! What a handle knows of a shard, and how it notices that the shard was lost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::record::Head;

/// What a handle last saw of a shard.
#[derive(Debug, Default)]
pub(super) struct Seen {
    incarnation: AtomicU64,
    /// The highest version that an answer told of.
    version: AtomicU64,
    /// The version that a loss was reported for.
    reported: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) oldest_ms: AtomicU64,
    pub(super) dead: AtomicU64,
}

/// What was known when a step was sent. Answers come in any order, so each is compared with this.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    incarnation: u64,
    pub(super) version: u64,
}

impl Seen {
    pub(super) fn known(&self) -> Known {
        Known {
            incarnation: self.incarnation.load(Relaxed),
            version: self.version.load(Relaxed),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Notes a version that a step has given.
    pub(super) fn gave(&self, version: u64) {
        self.version.fetch_max(version, Relaxed);
    }

    /// The incarnation of a shard that a write has made.
    pub(super) fn made(&self, incarnation: u64) {
        // Otherwise another step was faster.
        let _ = self
            .incarnation
            .compare_exchange(0, incarnation, Relaxed, Relaxed);
    }

    /// Compares the state that a step found with what was known when it was sent. Returns how many entries are lost, about, if
    /// the shard was lost and this was not reported yet.
    pub(super) fn found(&self, known: Known, before: Head) -> Option<u64> {
        let entries = self.entries.swap(before.entries, Relaxed);
        let is_other = before.incarnation != known.incarnation;
        if known.incarnation == 0 {
            if is_other {
                self.made(before.incarnation);
            }
            return None;
        }
        if is_other {
            let ours = self.incarnation.compare_exchange(
                known.incarnation,
                before.incarnation,
                Relaxed,
                Relaxed,
            );
            // It may have run out, empty.
            return (ours.is_ok() && entries > 0).then_some(entries);
        }
        let is_behind = before.version < known.version;
        let reported =
            is_behind && self.reported.fetch_max(known.version, Relaxed) >= known.version;
        (is_behind && !reported).then_some(entries)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const fn head(incarnation: u64, version: u64, entries: u64) -> Head {
        Head {
            incarnation,
            version,
            entries,
        }
    }

    #[test]
    fn another_incarnation_and_a_version_that_went_back_are_losses_and_are_told_once() {
        let seen = Seen::default();
        assert_eq!(seen.found(seen.known(), head(0, 0, 0)), None);
        seen.made(7);
        seen.gave(100);
        assert_eq!(seen.found(seen.known(), head(7, 100, 3)), None);
        let known = seen.known();
        assert_eq!(seen.found(known, head(7, 90, 2)), Some(3));
        assert_eq!(seen.found(known, head(7, 90, 2)), None, "told already");
        let known = seen.known();
        assert_eq!(seen.found(known, head(0, 0, 0)), Some(2));
        assert_eq!(seen.found(known, head(0, 0, 0)), None, "told already");
        assert_eq!(seen.found(seen.known(), head(9, 500, 1)), None);
    }

    #[test]
    fn answers_that_overtake_each_other_are_no_loss() {
        let seen = Seen::default();
        seen.made(7);
        let (early, late) = (seen.known(), seen.known());
        assert_eq!(seen.found(late, head(7, 20, 2)), None);
        seen.gave(21);
        assert_eq!(seen.found(early, head(7, 10, 1)), None);
        assert_eq!(seen.version(), 21);
    }

    #[test]
    fn a_shard_that_ran_out_empty_is_no_loss() {
        let seen = Seen::default();
        seen.made(7);
        assert_eq!(seen.found(seen.known(), head(7, 10, 0)), None);
        assert_eq!(seen.found(seen.known(), head(0, 0, 0)), None);
    }
}
