//! The record of one key: pure. Time goes in as microseconds on the store's clock, answers come out.
//!
//! A store applies one of these steps atomically and keeps what is left; a script that does the same to the same
//! fields is held to this one by the conformance suite.
//!
//! ```text
//! NONE -claim-> RUNNING(owner, fence, lease) -complete-> DONE(outcome)   until its ttl
//!                 |-release-> RELEASED       fence, attempts, fingerprint and checkpoint are kept
//!                 |-unknown-> UNKNOWN        blocks, or is taken over, as the next claim has it
//!                 |-the lease ends           nothing happens; the next claim takes over, or is told
//! ```
//!
//! # Doubt
//! Whoever takes over from an attempt that did not say how it ended inherits the doubt, and hands it on unless they find
//! out: a release says that *their* attempt has done nothing, not what became of the one before. So after it the next
//! claim finds what this one found, an ended lease ([`Previous::Ended`]) or an unknown outcome. A completion or a
//! [resolution](Record::resolve) ends the doubt, and so does the release of a holder who says that the attempt before
//! had not done the work, which is a [`Holder::previous`] of [`Previous::Released`].
//!
//! # The fence
//! Each granted claim has a number that is higher than that of every claim before it on that key: one above the last
//! one, or the store's clock in microseconds, whichever is more. So it goes on upwards when the record is released,
//! expires, or is lost with everything that the store knew (a flush, an eviction, a failover). What this takes of the
//! clock: when a record has been *lost*, that it is not behind the moment of the last claim, which is to say that a
//! replica which takes over is not behind by more than the time since then. While the record is there, the clock may
//! step back as it likes. Fences stay below 2^53 (the year 2255), so that a script can count with them.
//!
//! # A record that was lost
//! Whoever holds a claim knows enough of it ([`Holder`]) to bring the record back: every step of a holder does, when
//! nothing stands, or something older than its own fence that is not done. It does not when a retention has passed since
//! the claim, because by then the record may have been completed by somebody else and forgotten in due course.

use std::sync::Arc;

use bytes::Bytes;

/// One above the largest number that a record holds: a script counts in doubles.
pub const BEYOND: u64 = 1 << 53;

/// What somebody who wants to do the work asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Who: never used before, for another claim. A claim that is repeated under the same name, because the answer to
    /// it was lost, is answered the same again.
    pub owner: Arc<str>,
    /// What the work is about. Another fingerprint under the same key is a [mismatch](Claimed::Mismatch).
    pub fingerprint: Bytes,
    /// For how long the claim holds without a sign of life, in milliseconds.
    pub lease_ms: u64,
    /// For how long the record is kept after the last sign of life, unless it is completed, in milliseconds. Not below
    /// the lease.
    pub retention_ms: u64,
    /// What to take over from an earlier attempt whose end is not known.
    pub takeover: Takeover,
}

/// Whether a claim takes over from an attempt that did not say how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Takeover {
    /// Neither when its lease has ended nor when its outcome is unknown: both are answered with
    /// [`Claimed::Unknown`].
    Never,
    /// When its lease has ended.
    #[default]
    Ended,
    /// When its lease has ended, and when its outcome is unknown.
    Any,
}

/// How the attempt before this one ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Previous {
    /// There was none, as far as the record goes back.
    #[default]
    None,
    /// It gave the key back: nothing happened that matters.
    Released,
    /// Its lease ended: it crashed, or hangs. It may have done its work, or some of it. Stays so over attempts that give
    /// the key back without having found out.
    Ended,
    /// It did not know itself what had become of its work. Stays so over attempts that end without saying more.
    Unknown,
}

impl Previous {
    /// Whether it may have done its work: [`Ended`](Self::Ended) or [`Unknown`](Self::Unknown).
    #[must_use]
    pub const fn is_in_doubt(self) -> bool {
        matches!(self, Self::Ended | Self::Unknown)
    }
}

/// The work is the claimant's to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Higher than that of any claim before.
    pub fence: u64,
    /// Counts from one.
    pub attempt: u32,
    /// What the last attempt that left a checkpoint left.
    pub checkpoint: Option<Bytes>,
    /// How the attempt before ended.
    pub previous: Previous,
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Claimed {
    /// Granted.
    New(Grant),
    /// Granted already, to the same owner; the lease begins anew.
    Mine(Grant),
    /// Somebody else is at work.
    Busy {
        /// What is left of their lease, in milliseconds; never zero.
        remaining_ms: u64,
    },
    /// The work is done.
    Done {
        /// What was recorded.
        outcome: Bytes,
        /// How long ago, in milliseconds.
        age_ms: u64,
        /// The fence that it was done under.
        fence: u64,
    },
    /// The key belongs to other work.
    Mismatch,
    /// Nobody knows whether the work was done, and the claim does not [take over](Claim::takeover).
    Unknown {
        /// The fence to [resolve](Record::resolve) it under.
        fence: u64,
        /// Attempts so far.
        attempt: u32,
        /// For how long that has been so, in milliseconds.
        age_ms: u64,
    },
}

/// Whoever was granted a claim, and what they know of the record: enough to bring it back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// See [`Claim::owner`].
    pub owner: Arc<str>,
    /// See [`Grant::fence`].
    pub fence: u64,
    /// See [`Grant::attempt`].
    pub attempt: u32,
    /// See [`Grant::previous`]. Whoever has found out that the attempt before did not do the work says
    /// [`Previous::Released`] instead, when giving the key back.
    pub previous: Previous,
    /// See [`Claim::fingerprint`].
    pub fingerprint: Bytes,
    /// See [`Claim::retention_ms`].
    pub retention_ms: u64,
}

impl Holder {
    /// Who holds `grant` after `claim`.
    #[must_use]
    pub fn new(claim: &Claim, grant: &Grant) -> Self {
        Self {
            owner: Arc::clone(&claim.owner),
            fence: grant.fence,
            attempt: grant.attempt,
            previous: grant.previous,
            fingerprint: claim.fingerprint.clone(),
            retention_ms: claim.retention_ms,
        }
    }
}

/// What is recorded of work that is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Completion {
    /// For whoever asks again.
    pub outcome: Bytes,
    /// For how long, in milliseconds.
    pub ttl_ms: u64,
}

/// What an unknown outcome turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreResolution {
    /// The work was done, with this outcome.
    Done(Completion),
    /// It was not done: the next claim is granted.
    Release,
}

/// What became of a step that only the holder may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteOutcome {
    /// Done. Also when it was done before and the answer was lost.
    Kept,
    /// Done, and the record had to be brought back first: the store had lost it, or gone back to an older state. A
    /// checkpoint may be gone.
    Restored,
    /// Nothing was changed.
    Lost(Loss),
}

/// Why somebody is not the holder any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Another claim was granted since.
    Taken,
    /// The holder itself, or whoever resolved it, has ended it in another way.
    Over,
    /// There is no record, and the claim is too old to bring it back.
    Gone,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Free: given back, or never claimed. The lease of an attempt before the one that gave it back may have ended
    /// ([`Previous::Ended`]): the next claim hears of it.
    #[default]
    Released,
    /// Claimed. The lease may have ended.
    Running,
    /// Done.
    Done,
    /// Nobody knows.
    Unknown,
}

/// A record as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordView {
    /// Where it stands.
    pub phase: Phase,
    /// Of the last claim.
    pub fence: u64,
    /// Attempts so far.
    pub attempt: u32,
    /// For how long it has stood there, in milliseconds.
    pub age_ms: u64,
    /// What is left of the lease, in milliseconds; zero if nobody holds it.
    pub remaining_ms: u64,
    /// When the record will be forgotten, in milliseconds from now.
    pub expires_ms: u64,
    /// Bytes of the outcome.
    pub outcome_bytes: u64,
    /// Bytes of the checkpoint.
    pub checkpoint_bytes: u64,
}

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
    lease_ms: u64,
    retention_ms: u64,
    /// When the record is forgotten.
    expires: u64,
}

impl Record {
    /// Asks for the work. See [`Claimed`]. Unless it is granted, nothing changes but the end of a lease that a clock
    /// which has stepped back had made longer.
    pub fn claim(&mut self, claim: &Claim, now: u64) -> Claimed {
        self.forget(now);
        if self.fence != 0 && self.fingerprint != claim.fingerprint {
            return Claimed::Mismatch;
        }
        match self.phase {
            Phase::Done => Claimed::Done {
                outcome: self.outcome.clone(),
                age_ms: self.age_ms(now),
                fence: self.fence,
            },
            Phase::Running if self.owner == claim.owner => {
                self.live(claim.lease_ms, now);
                Claimed::Mine(self.grant())
            }
            Phase::Running if self.remaining_ms(now) > 0 => {
                // A clock that has stepped back does not make a lease longer than it was.
                self.until = self.until.min(ahead(now, self.lease_ms));
                let remaining_ms = self.remaining_ms(now);
                Claimed::Busy { remaining_ms }
            }
            _ if !self.may_take(claim.takeover) => Claimed::Unknown {
                fence: self.fence,
                attempt: self.attempt,
                age_ms: self.age_ms(now),
            },
            Phase::Released | Phase::Running | Phase::Unknown => {
                self.begin(claim, now);
                Claimed::New(self.grant())
            }
        }
    }

    /// A sign of life: the lease is `lease_ms` from now on. It may have ended, as long as nobody has taken over.
    pub fn extend(&mut self, holder: &Holder, lease_ms: u64, now: u64) -> WriteOutcome {
        self.step(holder, now, &[Phase::Running], |record| {
            record.live(lease_ms, now);
        })
    }

    /// Leaves `checkpoint` for the next attempt, should there be one; a sign of life as well.
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

    /// The work is done. The first outcome stays, should the holder say so again.
    pub fn complete(&mut self, holder: &Holder, completion: &Completion, now: u64) -> WriteOutcome {
        let from = [Phase::Running, Phase::Unknown, Phase::Done];
        self.step(holder, now, &from, |record| record.done(completion, now))
    }

    /// This attempt did nothing that matters: the next claim finds what this one found. It is granted at once, unless that
    /// was an unknown outcome, which it is again.
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

    /// The holder does not know whether the work was done.
    pub fn unknown(&mut self, holder: &Holder, now: u64) -> WriteOutcome {
        let from = [Phase::Running, Phase::Unknown];
        self.step(holder, now, &from, |record| {
            record.rest_once(Phase::Unknown, now);
        })
    }

    /// Somebody found out what had become of the attempt under `fence`, whose outcome is unknown or whose lease has
    /// ended; that of all attempts before it with it. Of several who say so, the first counts.
    pub fn resolve(&mut self, fence: u64, resolution: &StoreResolution, now: u64) -> WriteOutcome {
        self.forget(now);
        if self.fence == 0 {
            return WriteOutcome::Lost(Loss::Gone);
        }
        let held = self.phase == Phase::Running && self.remaining_ms(now) > 0;
        if self.fence != fence || held {
            return WriteOutcome::Lost(Loss::Taken);
        }
        if self.doubt().is_none() {
            return WriteOutcome::Lost(Loss::Over);
        }
        match resolution {
            StoreResolution::Done(completion) => self.done(completion, now),
            StoreResolution::Release => {
                self.previous = Previous::Released;
                self.rest(Phase::Released, now);
            }
        }
        WriteOutcome::Kept
    }

    /// What an operator sees; nothing, if there is no record.
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

    /// Whether there is nothing (any more) that has to be kept.
    #[must_use]
    pub const fn is_gone(&self, now: u64) -> bool {
        self.fence == 0 || self.expires <= now
    }

    /// Bytes that do not come with every record.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let checkpoint = self.checkpoint.as_ref().map_or(0, Bytes::len);
        self.outcome.len() + checkpoint + self.fingerprint.len() + self.owner.len()
    }

    /// One step of the holder, from one of the phases `from`.
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
        // An outcome that was accepted stays, whoever has brought it back.
        if self.fence >= holder.fence || self.phase == Phase::Done {
            return WriteOutcome::Lost(Loss::Taken);
        }
        // Fences are made of the clock, so this one tells when the claim was granted.
        if now > ahead(holder.fence, holder.retention_ms) {
            return WriteOutcome::Lost(Loss::Gone);
        }
        self.restore(holder);
        step(self);
        WriteOutcome::Restored
    }

    /// A fence may be given twice where a record was lost, and the clock stood still or stepped back: to whom, and for what,
    /// tells these apart.
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

    fn begin(&mut self, claim: &Claim, now: u64) {
        self.previous = match self.doubt() {
            _ if self.fence == 0 => Previous::None,
            Some(doubt) => doubt,
            None => Previous::Released,
        };
        self.phase = Phase::Running;
        self.owner = Arc::clone(&claim.owner);
        self.fence = (self.fence + 1).max(now);
        self.attempt = self.attempt.saturating_add(1);
        self.fingerprint = claim.fingerprint.clone();
        self.since = now;
        self.retention_ms = claim.retention_ms;
        self.live(claim.lease_ms, now);
    }

    fn live(&mut self, lease_ms: u64, now: u64) {
        self.lease_ms = lease_ms;
        self.until = ahead(now, lease_ms);
        self.expires = ahead(now, lease_ms.max(self.retention_ms));
    }

    fn done(&mut self, completion: &Completion, now: u64) {
        if self.phase == Phase::Done {
            return;
        }
        self.rest(Phase::Done, now);
        self.outcome = completion.outcome.clone();
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

    /// What a claim takes over, once nobody holds the lease: an attempt that did not say how it ended, or one before it.
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

    fn may_take(&self, takeover: Takeover) -> bool {
        match self.doubt() {
            None => true,
            Some(Previous::Unknown) => takeover == Takeover::Any,
            Some(_) => takeover != Takeover::Never,
        }
    }

    fn forget(&mut self, now: u64) {
        if self.is_gone(now) {
            *self = Self::default();
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

    const fn age_ms(&self, now: u64) -> u64 {
        now.saturating_sub(self.since) / 1000
    }

    const fn remaining_ms(&self, now: u64) -> u64 {
        self.until.saturating_sub(now).div_ceil(1000)
    }
}

const fn ahead(now: u64, ms: u64) -> u64 {
    now.saturating_add(ms.saturating_mul(1000))
}
