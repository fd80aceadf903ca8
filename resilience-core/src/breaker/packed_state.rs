//! The state in one word, and the permit that remembers it.

use std::fmt;

use super::overrides::OverrideKind;

/// Phase of the machine, apart from overrides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closed = 0,
    Open = 1,
    HalfOpen = 2,
    RampUp = 3,
    /// Open by the fleet's verdict.
    FleetOpen = 4,
    /// The fleet's open interval is over: calls need one of the fleet's probes.
    FleetHalfOpen = 5,
}

/// `generation << 8 | active_override << 4 | phase`. Every change of state is a new generation, so two words are equal only
/// if nothing happened in between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedState(u64);

impl PackedState {
    pub(super) const fn new(generation: u64, active_override: OverrideKind, phase: Phase) -> Self {
        Self(generation << 8 | (active_override as u64) << 4 | phase as u64)
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// Closed without an override: calls pass without a further check.
    #[inline]
    pub(super) const fn is_plainly_closed(self) -> bool {
        self.0 & 0xff == Phase::Closed as u64
    }

    pub(super) const fn generation(self) -> u64 {
        self.0 >> 8
    }

    pub(super) const fn phase(self) -> Phase {
        match self.0 & 0xf {
            0 => Phase::Closed,
            1 => Phase::Open,
            2 => Phase::HalfOpen,
            3 => Phase::RampUp,
            4 => Phase::FleetOpen,
            _ => Phase::FleetHalfOpen,
        }
    }

    pub(super) const fn override_kind(self) -> OverrideKind {
        match self.0 >> 4 & 0xf {
            0 => OverrideKind::None,
            1 => OverrideKind::ForceOpen,
            2 => OverrideKind::ForceClosed,
            3 => OverrideKind::Disabled,
            _ => OverrideKind::MetricsOnly,
        }
    }
}

impl fmt::Debug for PackedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{:?}+{:?}",
            self.generation(),
            self.phase(),
            self.override_kind()
        )
    }
}

/// The state under which a call was admitted: its result counts only while that state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct AdmittedState(PackedState);

impl AdmittedState {
    /// For a call that is let through without being judged.
    pub(super) const UNJUDGED: Self = Self(PackedState(u64::MAX));

    /// In place of a permit that was used: its call is over.
    pub(super) const USED: Self = Self(PackedState(u64::MAX - 1));

    #[inline]
    pub(super) const fn of(packed: PackedState) -> Self {
        Self(packed)
    }

    pub(super) const fn packed(self) -> PackedState {
        self.0
    }

    pub(super) fn is_judged(self) -> bool {
        self != Self::UNJUDGED
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_what_was_put_in() {
        let phases = [
            Phase::Closed,
            Phase::Open,
            Phase::HalfOpen,
            Phase::RampUp,
            Phase::FleetOpen,
            Phase::FleetHalfOpen,
        ];
        let orders = [
            OverrideKind::None,
            OverrideKind::ForceOpen,
            OverrideKind::ForceClosed,
            OverrideKind::Disabled,
            OverrideKind::MetricsOnly,
        ];
        for phase in phases {
            for active_override in orders {
                let packed = PackedState::new(77, active_override, phase);
                assert_eq!(
                    (packed.generation(), packed.override_kind(), packed.phase()),
                    (77, active_override, phase)
                );
                let plain = phase == Phase::Closed && active_override == OverrideKind::None;
                assert_eq!(packed.is_plainly_closed(), plain);
            }
        }
    }
}
