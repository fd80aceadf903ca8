//! One key as the checker sees it: a record, a few instances that want the work done, and what is on its way.
//!
//! [`Record`] is the one that runs in production, and so is what each instance sends. What is abstract is the rest: an
//! instance asks, takes effect, and ends the work in whatever way the checker likes. Every message may be lost, late, or
//! delivered twice, and every instance may die at any moment, or be asked to end.
//!
//! Here are the state and its environment; `instance` has the steps of the instances, `store` those of the store, and
//! `settles` what becomes of the key once nothing goes wrong any more.

mod instance;
mod settles;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use resilience_core::idempotency::{
    Effect,
    record::{
        Claim, Claimed, Completion, Holder, Phase, Previous, Record, StoreResolution, Takeover,
        WriteOutcome,
    },
};

pub(crate) use settles::End;

/// Milliseconds that a lease lasts, an outcome is kept, and an unfinished record.
pub(crate) const LEASE: u64 = 1;
pub(crate) const TTL: u64 = 3;
pub(crate) const RETENTION: u64 = 4;
/// Microseconds of one step of time.
pub(crate) const TICK: u64 = 1_000 * LEASE;
/// By how much the store's clock is set back.
const STEP: u64 = 100 * TICK;
/// By how much it is set forward and back again: more than a lease, less than a record is kept.
const SWING: u64 = 2 * TICK;

/// A mistake to build in, to see that the checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// Every completion is accepted as the holder's.
    CompleteUnchecked,
    /// The key is given back before the outcome is stored.
    ReleaseFirst,
    /// A claim is granted although work is in progress.
    RunWhenBusy,
    /// A claim is repeated under another name when its answer is lost, and both count.
    LeaseAsLongAsTheRecord,
    /// A new server's clock is behind, and no process tells it of the fences that were given.
    ClockBehind,
    /// An unknown outcome is taken over by anybody.
    UnknownIsRetried,
    /// A release says that the attempt before had done nothing either.
    ReleaseForgets,
    /// Work that must not be repeated is taken over when its lease has ended.
    TakeOverEnded,
    /// What fenced work writes to takes any fence.
    FenceIgnored,
    /// Work that is cancelled by a shutdown gives its key back, as if it had done nothing.
    CancelReleases,
    /// A shutdown deletes the record of the work that it cancels.
    CancelDeletes,
    /// A process that is asked to end does so at once.
    CloseKills,
    /// A completion without an answer is not repeated.
    CompleteOnce,
    /// An outcome is returned as if it were recorded while it is not.
    AnswerUnmarked,
    /// An outcome is returned although the store refused it.
    AnswerRefused,
    /// Steps are answered before the replica has them.
    NotDurable,
    /// An unknown outcome is resolved while the attempt is in progress.
    ResolveUnseen,
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) claims: u8,
    /// The number of those that take over an unknown outcome.
    pub(crate) bold: u8,
    pub(crate) extends: u8,
    pub(crate) releases: u8,
    pub(crate) unknowns: u8,
    /// Checkpoints that are saved.
    pub(crate) saves: u8,
    /// Answers that are lost, or requests that are late: sent again.
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    pub(crate) ticks: u8,
    pub(crate) flushes: u8,
    /// Times that the store's clock is set back.
    pub(crate) steps_back: u8,
    /// Times that it is set forward, or back from there.
    pub(crate) swings: u8,
    /// Times that the replica, which has an older record and a clock that is behind, takes over.
    pub(crate) failovers: u8,
    /// Processes that are asked to end.
    pub(crate) closes: u8,
    /// Attempts that are cancelled because the time of a shutdown is over.
    pub(crate) cancels: u8,
    /// Callers that are gone before their claim is answered.
    pub(crate) hang_ups: u8,
    /// Callers that are told an outcome before it is recorded.
    pub(crate) answers: u8,
    /// Unknown outcomes that an operator resolves.
    pub(crate) resolves: u8,
}

/// What does not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    /// What a second run of the work does. `None`: the claims of the budget say what they take over from.
    pub(crate) effect: Option<Effect>,
    /// A step is answered when the replica has it.
    pub(crate) durable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Claim(Claim),
    Extend(Holder),
    Save(Holder),
    Complete(Holder, Completion),
    Release(Holder),
    Unknown(Holder),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    Claimed(Claimed),
    Kept(WriteOutcome),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    /// What it waits for, and the answer on its way.
    pub(crate) waiting: Option<(Request, Option<Reply>)>,
    /// A message that no process waits for any more, and that the store has not seen yet.
    pub(crate) late: Option<Request>,
    pub(crate) holder: Option<Holder>,
    pub(crate) took_effect: bool,
    /// The effect was refused, for the fence was not the highest.
    pub(crate) refused: bool,
    /// It has ended the work, and waits for no more than being told.
    pub(crate) ending: bool,
    /// It was asked to end: it begins nothing more.
    pub(crate) closing: bool,
    /// It has ended.
    pub(crate) gone: bool,
    /// No caller waits for the claim.
    pub(crate) hung_up: bool,
    /// The caller was told the outcome before it was recorded.
    pub(crate) answered: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) fence_back: bool,
    pub(crate) fence_shared: bool,
    pub(crate) zombie_changed: bool,
    pub(crate) effect_twice: bool,
    pub(crate) two_outcomes: bool,
    pub(crate) doubt_forgotten: bool,
    pub(crate) checkpoint_lost: bool,
    pub(crate) left_held: bool,
    pub(crate) told_another: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// What the store's clock shows.
    pub(crate) now: u64,
    pub(crate) record: Record,
    /// The record as a replica has it.
    replica: Record,
    was_set_back: bool,
    pub(crate) is_ahead: bool,
    pub(crate) instances: Vec<Instance>,
    pub(crate) budget: Budget,
    pub(crate) rules: Rules,
    pub(crate) broken: Broken,
    /// Who was granted which fence.
    granted: BTreeMap<u64, Arc<str>>,
    /// Fences of claims that no instance waited for.
    unclaimed: BTreeSet<u64>,
    /// Effects, by fence.
    effects: BTreeMap<u64, u8>,
    /// The highest fence that what fenced work writes to has seen.
    highest: u64,
    /// What the store has accepted, and until when it is to be replayed.
    accepted: Option<(Bytes, u64)>,
    /// The last checkpoint that the store has accepted.
    saved: Option<Bytes>,
    /// What a caller was told as the recorded outcome.
    told: Option<Bytes>,
    /// What has not been resolved since: an attempt left an unknown outcome, or a lease has ended.
    doubt: Previous,
    /// In which doubt each fence was granted.
    inherited: BTreeMap<u64, Previous>,
    /// An attempt has died, was cancelled, or did not know what it had done.
    pub(crate) left_open: bool,
    names: u8,
}

impl World {
    pub(crate) fn new(size: usize, budget: Budget) -> Self {
        Self {
            now: 100 * TICK + 3 * STEP,
            record: Record::default(),
            replica: Record::default(),
            was_set_back: false,
            is_ahead: false,
            instances: vec![Instance::default(); size],
            budget,
            rules: Rules::default(),
            broken: Broken::default(),
            granted: BTreeMap::new(),
            unclaimed: BTreeSet::new(),
            effects: BTreeMap::new(),
            highest: 0,
            accepted: None,
            saved: None,
            told: None,
            doubt: Previous::None,
            inherited: BTreeMap::new(),
            left_open: false,
            names: 0,
        }
    }

    pub(crate) fn effects(&self) -> u8 {
        self.effects.values().sum()
    }

    pub(crate) fn flush(&mut self, mistake: Mistake) {
        self.record = Record::default();
        self.forget();
        match mistake {
            Mistake::ClockBehind => self.now -= 50 * TICK,
            _ => self.now += 1,
        }
    }

    /// The store's clock is set back, by far more than anything lasts.
    pub(crate) fn set_back(&mut self) {
        self.now -= STEP;
        self.was_set_back = true;
        if let Some((_, until)) = &mut self.accepted {
            *until -= STEP;
        }
    }

    /// The store's clock is set forward, beyond the end of every lease, or back from there.
    pub(crate) fn swing(&mut self) {
        self.is_ahead = !self.is_ahead;
        if self.is_ahead {
            self.now += SWING;
            return;
        }
        self.now -= SWING;
        self.was_set_back = true;
        if let Some((_, until)) = &mut self.accepted {
            *until = (*until).min(self.now + 1_000 * TTL);
        }
    }

    /// The replica gets the record as it is now.
    pub(crate) fn replicate(&mut self) {
        self.replica = self.record.clone();
    }

    /// The replica takes over: its record may be older, and its clock is behind by as much.
    pub(crate) fn fail_over(&mut self) {
        self.record = self.replica.clone();
        self.set_back();
        if !self.rules.durable {
            self.forget();
        }
    }

    /// What the store does not have is lost.
    fn forget(&mut self) {
        self.accepted = None;
        self.saved = None;
        self.doubt = Previous::None;
    }

    /// Whether an operator may resolve the key: no process works on it any more, or is about to. (An answer to a claim is waited
    /// for no longer than a lease.)
    pub(crate) fn may_resolve(&self, mistake: Mistake) -> bool {
        let in_progress = self.instances.iter().any(|one| {
            let granted =
                |reply: &Reply| matches!(reply, Reply::Claimed(Claimed::New(_) | Claimed::Mine(_)));
            let answer = one.waiting.as_ref().and_then(|(_, answer)| answer.as_ref());
            one.holder.is_some() || answer.is_some_and(granted)
        });
        let ended = self.record.view(self.now).is_some_and(|view| {
            let is_free = view.phase == Phase::Running && view.remaining_ms == 0;
            is_free || view.phase == Phase::Unknown
        });
        ended && (!in_progress || mistake == Mistake::ResolveUnseen)
    }

    /// An operator looks whether the work was done, and says so.
    pub(crate) fn resolve(&mut self) {
        let Some(view) = self.record.view(self.now) else {
            return;
        };
        let (before, done) = (self.record.clone(), self.first_effect());
        let resolution = match &done {
            Some(outcome) => StoreResolution::Done(Completion {
                outcome: outcome.clone(),
                ttl_ms: TTL,
            }),
            None => StoreResolution::Release,
        };
        if self.record.resolve(view.fence, &resolution, self.now) == WriteOutcome::Kept {
            self.doubt = Previous::None;
            if let Some(outcome) = done {
                self.accept(&outcome, &before);
            }
        }
    }

    /// The outcome of the first effect.
    fn first_effect(&self) -> Option<Bytes> {
        let (fence, _) = self.effects.first_key_value()?;
        Some(Bytes::copy_from_slice(self.granted[fence].as_bytes()))
    }

    // --- what must hold

    /// What was accepted is what everybody is answered with, until its time is over.
    pub(crate) fn replays_what_it_accepted(&self) -> bool {
        let Some((accepted, until)) = &self.accepted else {
            return true;
        };
        let claimed = self.record.clone().claim(&fresh_claim(), self.now);
        *until <= self.now
            || matches!(claimed, Claimed::Done { outcome, .. } if outcome == *accepted)
    }

    /// A lease from now, whatever has happened, a process that takes over gets the work, or the outcome. If the clock was set
    /// back, a lease from when a process looks.
    pub(crate) fn is_free_after_a_lease(&self) -> bool {
        let bold = Claim {
            takeover: Takeover::Any,
            ..fresh_claim()
        };
        let mut record = self.record.clone();
        if self.was_set_back && !matches!(record.claim(&bold, self.now), Claimed::Busy { .. }) {
            return true;
        }
        let claimed = record.claim(&bold, self.now + 1_000 * LEASE);
        matches!(claimed, Claimed::New(_) | Claimed::Done { .. })
    }

    /// Work that may have been done is not granted to anybody, now or when its lease has ended, for as long as there is a record.
    pub(crate) fn keeps_what_may_be_done(&self) -> bool {
        let claim = Claim {
            takeover: Effect::AtMostOnce.takeover(),
            ..fresh_claim()
        };
        let granted = |at| {
            let is_granted = matches!(self.record.clone().claim(&claim, at), Claimed::New(_));
            is_granted && !self.record.is_gone(at)
        };
        self.effects() == 0 || !(granted(self.now) || granted(self.now + 1_000 * LEASE))
    }
}

fn fresh_claim() -> Claim {
    Claim {
        owner: "nobody".into(),
        fingerprint: Bytes::new(),
        lease_ms: LEASE,
        retention_ms: RETENTION,
        takeover: Takeover::Ended,
    }
}
