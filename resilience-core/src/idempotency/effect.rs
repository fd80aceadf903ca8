//! What a second run of the work would do, and with it what happens when it is unknown whether the first one has done it.

use super::record::Takeover;

/// What a second run of the work does after a first one that may have taken effect. Decides what happens to a key whose
/// outcome is unknown: its process died, its lease ended, it panicked, it was cancelled, or its
/// [`Disposition`](super::Disposition) says so.
///
/// | the work is | setting | the next caller, outcome unknown | how often it takes effect |
/// |---|---|---|---|
/// | none of the below | [`AtMostOnce`](Self::AtMostOnce), the default | is rejected with [`OutcomeUnknown`](crate::Reason::OutcomeUnknown) until the key is [resolved](super::Idempotency::resolve), a [hook](super::IdempotencyBuilder::reconcile) has found out, the first attempt has recorded its outcome after all, or the [retention](super::IdempotencyBuilder::retention) is over | at most once |
/// | fenced: what it writes to refuses an older [fence](super::Attempt::fence) | [`Fenced`](Self::Fenced) | runs the work, with a higher fence | once, if the work first raises the fence and then looks whether it is [done](super::Attempt::previous) |
/// | idempotent by itself, or by a [child key](super::Attempt::child_key) | [`Idempotent`](Self::Idempotent) | runs the work | at least once, which is the same as once |
/// | a SQL transaction | the inbox (`sql::inbox`) in place of this handle | runs the work | exactly once: record and effect are committed together |
///
/// "Runs the work" means at once for work that panicked or was cancelled, and for work whose process died when its
/// [lease](super::IdempotencyBuilder::lease) has ended. The new attempt finds the last
/// [checkpoint](super::Attempt::checkpoint), and in [`previous`](super::Attempt::previous) that it follows one whose outcome is
/// unknown.
///
/// The outage policies [`Local`](crate::fleet::OnOutage::Local) and [`FailOpen`](crate::fleet::OnOutage::FailOpen) run work
/// that the store may have recorded: with them the table holds within one instance, or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Effect {
    /// A second run may do it again: it is never begun.
    #[default]
    AtMostOnce,
    /// Every write carries the attempt's fence, and what is written to refuses an older one. Cannot be combined with
    /// [`OnOutage::FailOpen`](crate::fleet::OnOutage::FailOpen), under which there is no fence.
    Fenced,
    /// A second run changes nothing more.
    Idempotent,
}

impl Effect {
    /// Which earlier attempts without a known outcome a claim takes over from.
    #[must_use]
    pub const fn takeover(self) -> Takeover {
        match self {
            Self::AtMostOnce => Takeover::Never,
            Self::Fenced | Self::Idempotent => Takeover::Any,
        }
    }
}
