//! The state in one word, and the permit that remembers it.

use std::fmt;

use super::orders::OrderKind;

/// Where the machine stands, orders aside.
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

/// `generation << 8 | order << 4 | phase`. Every change of state is a new generation, so two words are equal only
/// if nothing happened in between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    pub(super) const fn new(generation: u64, order: OrderKind, phase: Phase) -> Self {
        Self(generation << 8 | (order as u64) << 4 | phase as u64)
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// Closed, and no order in force: the one state that needs no second look.
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

    pub(super) const fn order(self) -> OrderKind {
        match self.0 >> 4 & 0xf {
            0 => OrderKind::None,
            1 => OrderKind::ForceOpen,
            2 => OrderKind::ForceClosed,
            3 => OrderKind::Disabled,
            _ => OrderKind::MetricsOnly,
        }
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{:?}+{:?}",
            self.generation(),
            self.phase(),
            self.order()
        )
    }
}

/// The right to make one call. Remembers the word it was given under: a result counts only if that still stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Permit(Word);

impl Permit {
    /// For a call that is let through without being judged.
    pub(super) const UNJUDGED: Self = Self(Word(u64::MAX));

    /// In place of a permit that was used: its call is over.
    pub(super) const USED: Self = Self(Word(u64::MAX - 1));

    #[inline]
    pub(super) const fn of(word: Word) -> Self {
        Self(word)
    }

    pub(super) const fn word(self) -> Word {
        self.0
    }

    pub(super) fn is_judged(self) -> bool {
        self != Self::UNJUDGED
    }
}

#[cfg(test)]
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
            OrderKind::None,
            OrderKind::ForceOpen,
            OrderKind::ForceClosed,
            OrderKind::Disabled,
            OrderKind::MetricsOnly,
        ];
        for phase in phases {
            for order in orders {
                let word = Word::new(77, order, phase);
                assert_eq!(
                    (word.generation(), word.order(), word.phase()),
                    (77, order, phase)
                );
                let plain = phase == Phase::Closed && order == OrderKind::None;
                assert_eq!(word.is_plainly_closed(), plain);
            }
        }
    }
}
