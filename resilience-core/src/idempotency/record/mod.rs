//! The record of one key: a pure state machine. Takes the time in microseconds of the store's clock.
//!
//! A store applies one of these steps atomically and keeps the resulting fields; scripts that do the same are checked
//! against this machine by the conformance suite.
//!
//! ```text
//! NONE -claim-> RUNNING(owner, fence, lease) -complete-> DONE(outcome)   until its ttl
//!                 |-release-> RELEASED       fence, attempts and checkpoint are kept; free for other work if that is all
//!                 |-unknown-> UNKNOWN        blocks, or is taken over, depending on the next claim
//!                 |-the lease ends           no change; the next claim takes over, or is answered as its policy says
//! ```
//!
//! # Doubt
//! An attempt that takes over from one without a known outcome inherits the doubt, and passes it on unless it finds out: a
//! release says that *this* attempt had no effects, not what happened in the one before. The next claim then
//! finds what this one found, an ended lease ([`Previous::Ended`]) or an unknown outcome. The doubt ends with a
//! completion, a [resolution](Record::resolve), or the release of a holder that has found out that the previous attempt did
//! not do the work ([`Holder::previous`] is [`Previous::Released`]).
//!
//! # Other work
//! A key is for one work: a claim with another fingerprint is a mismatch. A key that was given back with nothing left of the
//! attempts on it, neither a doubt nor a checkpoint, is for no work yet, and is granted to any.
//!
//! # The fence
//! Each granted claim has a number that is higher than that of every earlier claim on that key: one above the last one, or
//! the store's clock in microseconds, whichever is higher. It therefore keeps rising when the record is released, expires,
//! or is lost together with all of the store's data (a flush, an eviction, a failover). What this requires of the clock:
//! when a record has been *lost*, the clock must not be behind the moment of the last claim, that is, a replica that takes
//! over must not be behind by more than the time since then. While the record exists, the clock may step back. A store may
//! close part of that gap by what its processes know: `resilience-redis` does. Fences stay below 2^53 (the year 2255), so that
//! a script can compute with them.
//!
//! # A clock that steps
//! A clock set back makes nothing last longer than what was left of it when the record was last looked at: beside the end of a
//! lease the record keeps that length, and a record that begins in the future begins now. A clock set forward cannot be told
//! from time that has passed: a lease then ends early, another claim is granted while the work goes on, and the fence is what
//! tells the two apart.
//!
//! # Restoring a lost record
//! The holder of a claim knows enough of the record ([`Holder`]) to restore it: every step of a holder does, if there is no
//! record, or one with a lower fence that is not done. It does not when the retention has passed since the claim, because by
//! then the record may have been completed by another attempt and have expired.

mod messages;
#[cfg(all(test, not(loom)))]
mod tests;
mod time;

use std::sync::Arc;

use bytes::Bytes;

pub use self::messages::{
    Claim, Claimed, Completion, Grant, Holder, Loss, Phase, Previous, RecordView, StoreResolution,
    Takeover, WriteOutcome,
};
use self::time::ahead;

/// One above the largest number that a record holds: scripts compute in doubles.
pub const BEYOND: u64 = 1 << 53;

/// The owner of an outcome that was found out: the work's own completion, should it come yet, is not taken for it.
const RESOLVED: &str = "resolved";

/// The state of one key. The default is that of a key that was never claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    phase: Phase,
    owner: Arc<str>,
    /// Zero: there is no record.
    fence: u64,
    attempt: u32,
    previous: Previous,
    fingerprint: Bytes,
    checkpoint: Option<Bytes>,
    outcome: Bytes,
    /// When the phase began.
    since: u64,
    /// When the lease ends.
    until: u64,
    /// What was left of the lease when it was last looked at; of an outcome, how long it is kept.
    lease_ms: u64,
    retention_ms: u64,
    /// When the record is forgotten.
    expires: u64,
}

impl Record {
    /// Claims the key; see [`Claimed`]. Unless the claim is granted, nothing changes, except that what a clock stepping back
    /// had made longer ends when it would have.
    // Released => Running
    // Running => Running (the same owner, or another one after the lease has ended)
    // Unknown => Running (with `Takeover::Any`)
    pub fn claim(&mut self, claim: &Claim, now: u64) -> Claimed {
        self.claim_above(claim, 0, now)
    }

    /// Claims the key, under a fence above `floor`: for a store whose clock may be behind the fences that were given before.
    pub fn claim_above(&mut self, claim: &Claim, floor: u64, now: u64) -> Claimed {
        self.forget(now);
        if self.fence != 0 && self.fingerprint != claim.fingerprint && !self.is_free() {
            return Claimed::Mismatch;
        }
        match self.phase {
            Phase::Done => {
                self.look(now);
                Claimed::Done {
                    outcome: self.outcome.clone(),
                    age_ms: self.age_ms(now),
                    fence: self.fence,
                }
            }
            Phase::Running if self.owner == claim.owner => {
                self.live(claim.lease_ms, now);
                Claimed::Mine(self.grant())
            }
            Phase::Running if self.remaining_ms(now) > 0 => {
                self.look(now);
                let remaining_ms = self.remaining_ms(now);
                Claimed::Busy { remaining_ms }
            }
            _ if !self.may_take(claim.takeover) => {
                self.look(now);
                Claimed::Unknown {
                    fence: self.fence,
                    attempt: self.attempt,
                    age_ms: self.age_ms(now),
                }
            }
            Phase::Released | Phase::Running | Phase::Unknown => {
                self.begin(claim, floor, now);
                Claimed::New(self.grant())
            }
        }
    }

    /// Renews the lease to `lease_ms` from now. It may have ended, as long as no other claim was granted.
    pub fn extend(&mut self, holder: &Holder, lease_ms: u64, now: u64) -> WriteOutcome {
        self.step(holder, now, &[Phase::Running], |record| {
            record.live(lease_ms, now);
        })
    }

    /// Saves `checkpoint` for a next attempt, and renews the lease.
    pub fn checkpoint(
        &mut self,
        holder: &Holder,
        checkpoint: &Bytes,
        lease_ms: u64,
        now: u64,
    ) -> WriteOutcome {
        self.step(holder, now, &[Phase::Running], |record| {
            record.checkpoint = Some(checkpoint.clone());
            record.live(lease_ms, now);
        })
    }

    /// Records that the work is done. A repeated completion keeps the first outcome.
    // Running, Unknown => Done
    pub fn complete(&mut self, holder: &Holder, completion: &Completion, now: u64) -> WriteOutcome {
        let from = [Phase::Running, Phase::Unknown, Phase::Done];
        self.step(holder, now, &from, |record| record.done(completion, now))
    }

    /// Gives the key back, this attempt having had no effects: the next claim finds what this one found. It is granted at
    /// once, unless that was an unknown outcome, which the record then has again.
    // Running, Unknown => Released (or Unknown, if the attempt had taken over from an unknown outcome)
    pub fn release(&mut self, holder: &Holder, now: u64) -> WriteOutcome {
        let from = [Phase::Running, Phase::Unknown, Phase::Released];
        self.step(holder, now, &from, |record| {
            if !holder.previous.is_in_doubt() {
                record.previous = holder.previous;
            }
            let phase = match record.previous {
                Previous::Unknown => Phase::Unknown,
                _ => Phase::Released,
            };
            record.rest_once(phase, now);
        })
    }

    /// Records that it is not known whether the work was done.
    // Running => Unknown
    pub fn unknown(&mut self, holder: &Holder, now: u64) -> WriteOutcome {
        let from = [Phase::Running, Phase::Unknown];
        self.step(holder, now, &from, |record| {
            record.rest_once(Phase::Unknown, now);
        })
    }

    /// Records what was found out about the attempt under `fence`, whose outcome is unknown or whose lease has ended, and
    /// about all attempts before it. The first resolution wins, also over a completion that comes later.
    // Unknown, Running (lease ended), Released (in doubt) => Done or Released
    pub fn resolve(&mut self, fence: u64, resolution: &StoreResolution, now: u64) -> WriteOutcome {
        self.forget(now);
        if self.fence == 0 {
            return WriteOutcome::Lost(Loss::Gone);
        }
        let held = self.phase == Phase::Running && self.remaining_ms(now) > 0;
        if self.fence != fence {
            return WriteOutcome::Lost(Loss::Taken);
        }
        if held {
            self.look(now);
            return WriteOutcome::Lost(Loss::Taken);
        }
        if self.doubt().is_none() {
            return WriteOutcome::Lost(Loss::Over);
        }
        match resolution {
            StoreResolution::Done(completion) => {
                self.done(completion, now);
                self.owner = Arc::from(RESOLVED);
            }
            StoreResolution::Release => {
                self.previous = Previous::Released;
                self.rest(Phase::Released, now);
            }
        }
        WriteOutcome::Kept
    }

    /// The record as an operator sees it; `None` if there is no record.
    #[must_use]
    pub fn view(&self, now: u64) -> Option<RecordView> {
        let running = self.phase == Phase::Running;
        (!self.is_gone(now)).then(|| RecordView {
            phase: self.phase,
            fence: self.fence,
            attempt: self.attempt,
            age_ms: self.age_ms(now),
            remaining_ms: if running { self.remaining_ms(now) } else { 0 },
            expires_ms: (self.expires - now).div_ceil(1000),
            outcome_bytes: self.outcome.len() as u64,
            checkpoint_bytes: self.checkpoint.as_ref().map_or(0, Bytes::len) as u64,
        })
    }

    /// Size of the variable parts in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let checkpoint = self.checkpoint.as_ref().map_or(0, Bytes::len);
        self.outcome.len() + checkpoint + self.fingerprint.len() + self.owner.len()
    }

    /// Runs a step of the holder from one of the phases `from`.
    fn step(
        &mut self,
        holder: &Holder,
        now: u64,
        from: &[Phase],
        step: impl FnOnce(&mut Self),
    ) -> WriteOutcome {
        self.forget(now);
        if self.is_held_by(holder) {
            if !from.contains(&self.phase) {
                return WriteOutcome::Lost(Loss::Over);
            }
            step(self);
            return WriteOutcome::Kept;
        }
        // An accepted outcome stays, whichever holder restored it.
        if self.fence >= holder.fence || self.phase == Phase::Done {
            return WriteOutcome::Lost(Loss::Taken);
        }
        // Fences are made of the clock: this one is the time of the claim.
        if now > ahead(holder.fence, holder.retention_ms) {
            return WriteOutcome::Lost(Loss::Gone);
        }
        self.restore(holder);
        step(self);
        WriteOutcome::Restored
    }

    /// Compares owner and fingerprint as well: a fence may be given twice where a record was lost and the clock stood still
    /// or stepped back.
    fn is_held_by(&self, holder: &Holder) -> bool {
        self.fence == holder.fence
            && self.owner == holder.owner
            && self.fingerprint == holder.fingerprint
    }

    fn restore(&mut self, holder: &Holder) {
        let checkpoint = self.checkpoint.take();
        *self = Self {
            phase: Phase::Running,
            owner: Arc::clone(&holder.owner),
            fence: holder.fence,
            attempt: holder.attempt,
            previous: holder.previous,
            checkpoint: checkpoint.filter(|_| self.fingerprint == holder.fingerprint),
            fingerprint: holder.fingerprint.clone(),
            since: holder.fence,
            retention_ms: holder.retention_ms,
            ..Self::default()
        };
    }

    fn begin(&mut self, claim: &Claim, floor: u64, now: u64) {
        self.previous = match self.doubt() {
            _ if self.fence == 0 => Previous::None,
            Some(doubt) => doubt,
            None => Previous::Released,
        };
        self.phase = Phase::Running;
        self.owner = Arc::clone(&claim.owner);
        self.fence = (self.fence.max(floor) + 1).max(now);
        self.attempt = self.attempt.saturating_add(1);
        self.fingerprint = claim.fingerprint.clone();
        self.since = now;
        self.retention_ms = claim.retention_ms;
        self.live(claim.lease_ms, now);
    }

    fn done(&mut self, completion: &Completion, now: u64) {
        if self.phase == Phase::Done {
            return;
        }
        self.rest(Phase::Done, now);
        self.outcome = completion.outcome.clone();
        self.lease_ms = completion.ttl_ms;
        self.checkpoint = None;
        self.expires = ahead(now, completion.ttl_ms);
    }

    fn rest_once(&mut self, phase: Phase, now: u64) {
        if self.phase != phase {
            self.rest(phase, now);
        }
    }

    fn rest(&mut self, phase: Phase, now: u64) {
        self.phase = phase;
        self.since = now;
        self.until = 0;
        self.expires = ahead(now, self.retention_ms);
    }

    /// How the attempt ended that a claim takes over from, if its outcome is not known: the last one, or one before it.
    fn doubt(&self) -> Option<Previous> {
        match self.phase {
            Phase::Done => None,
            Phase::Unknown => Some(Previous::Unknown),
            Phase::Running if self.previous != Previous::Unknown => Some(Previous::Ended),
            Phase::Running | Phase::Released => {
                Some(self.previous).filter(|previous| previous.is_in_doubt())
            }
        }
    }

    /// Whether nothing was done under the key, so that other work may have it.
    fn is_free(&self) -> bool {
        self.phase == Phase::Released && self.doubt().is_none() && self.checkpoint.is_none()
    }

    fn may_take(&self, takeover: Takeover) -> bool {
        match self.doubt() {
            None => true,
            Some(Previous::Unknown) => takeover == Takeover::Any,
            Some(_) => takeover != Takeover::Never,
        }
    }

    fn grant(&self) -> Grant {
        Grant {
            fence: self.fence,
            attempt: self.attempt,
            checkpoint: self.checkpoint.clone(),
            previous: self.previous,
        }
    }
}
