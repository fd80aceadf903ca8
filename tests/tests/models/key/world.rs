//! One key as the checker sees it: a record, a few instances that want the work done, and what is on its way.
//!
//! [`Record`] is the one that runs in production, and so is what each instance sends. What is abstract is the rest: an
//! instance asks, takes effect, and ends the work in whatever way the checker likes. Every message may be lost, late, or
//! delivered twice, and every instance may die at any moment.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use resilience_core::idempotency::record::{
    Claim, Claimed, Completion, Holder, Phase, Previous, Record, Takeover, WriteOutcome,
};

/// Milliseconds that a lease lasts, an outcome is kept, and an unfinished record.
pub(crate) const LEASE: u64 = 1;
pub(crate) const TTL: u64 = 3;
pub(crate) const RETENTION: u64 = 4;
/// Microseconds of one step of time.
pub(crate) const TICK: u64 = 1_000 * LEASE;
/// By how much the store's clock is set back.
const STEP: u64 = 100 * TICK;

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
    /// Answers that are lost, or requests that are late: sent again.
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    pub(crate) ticks: u8,
    pub(crate) flushes: u8,
    /// Times that the store's clock is set back.
    pub(crate) steps_back: u8,
    /// Times that the replica, which has an older record and a clock that is behind, takes over.
    pub(crate) failovers: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Claim(Claim),
    Extend(Holder),
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
    /// It has ended the work, and waits for no more than being told.
    pub(crate) ending: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) fence_back: bool,
    pub(crate) fence_shared: bool,
    pub(crate) zombie_changed: bool,
    pub(crate) effect_twice: bool,
    pub(crate) two_outcomes: bool,
    pub(crate) doubt_forgotten: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// What the store's clock shows.
    pub(crate) now: u64,
    pub(crate) record: Record,
    /// The record as a replica has it.
    replica: Record,
    was_set_back: bool,
    pub(crate) instances: Vec<Instance>,
    pub(crate) budget: Budget,
    pub(crate) broken: Broken,
    /// Who was granted which fence.
    granted: BTreeMap<u64, Arc<str>>,
    /// Effects, by fence.
    effects: BTreeMap<u64, u8>,
    /// What the store has accepted, and until when it is to be replayed.
    accepted: Option<(Bytes, u64)>,
    /// What has not been resolved since: an attempt left an unknown outcome, or a lease has ended.
    doubt: Previous,
    /// In which doubt each fence was granted.
    inherited: BTreeMap<u64, Previous>,
    names: u8,
}

impl World {
    pub(crate) fn new(size: usize, budget: Budget) -> Self {
        Self {
            now: 100 * TICK + 3 * STEP,
            record: Record::default(),
            replica: Record::default(),
            was_set_back: false,
            instances: vec![Instance::default(); size],
            budget,
            broken: Broken::default(),
            granted: BTreeMap::new(),
            effects: BTreeMap::new(),
            accepted: None,
            doubt: Previous::None,
            inherited: BTreeMap::new(),
            names: 0,
        }
    }

    pub(crate) fn effects(&self) -> u8 {
        self.effects.values().sum()
    }

    // --- what an instance does

    pub(crate) fn ask(&mut self, n: usize, bold: bool, mistake: Mistake) {
        self.names += 1;
        let claim = Claim {
            owner: format!("{n}-{}", self.names).into(),
            lease_ms: match mistake {
                Mistake::LeaseAsLongAsTheRecord => RETENTION,
                _ => LEASE,
            },
            takeover: match mistake {
                Mistake::UnknownIsRetried => Takeover::Any,
                _ if bold => Takeover::Any,
                _ => Takeover::Ended,
            },
            ..fresh_claim()
        };
        self.instances[n].waiting = Some((Request::Claim(claim), None));
    }

    /// What is outside of the store happens, under the instance's fence.
    pub(crate) fn take_effect(&mut self, n: usize) {
        let one = &mut self.instances[n];
        let Some(holder) = &one.holder else { return };
        one.took_effect = true;
        let effects = self.effects.entry(holder.fence).or_default();
        *effects += 1;
        self.broken.effect_twice |= *effects > 1;
    }

    pub(crate) fn complete(&mut self, n: usize, mistake: Mistake) {
        let one = &mut self.instances[n];
        let Some(holder) = one.holder.clone() else {
            return;
        };
        one.ending = true;
        if mistake == Mistake::ReleaseFirst {
            self.record.release(&holder, self.now);
        }
        let completion = Completion {
            outcome: Bytes::copy_from_slice(holder.owner.as_bytes()),
            ttl_ms: TTL,
        };
        one.waiting = Some((Request::Complete(holder, completion), None));
    }

    pub(crate) fn wish(&mut self, n: usize, wish: fn(Holder) -> Request, ends: bool) {
        let one = &mut self.instances[n];
        if let Some(holder) = one.holder.clone() {
            one.ending = ends;
            one.waiting = Some((wish(holder), None));
        }
    }

    // --- what becomes of messages

    pub(crate) fn serve(&mut self, n: usize, mistake: Mistake) {
        if let Some((wish, _)) = self.instances[n].waiting.clone() {
            let reply = self.grant(&wish, mistake);
            if let Some((_, answer)) = &mut self.instances[n].waiting {
                *answer = Some(reply);
            }
        }
    }

    pub(crate) fn serve_late(&mut self, n: usize, mistake: Mistake) {
        if let Some(wish) = self.instances[n].late.take() {
            self.grant(&wish, mistake);
        }
    }

    /// The answer is lost, or the request is late: it is sent again as it is.
    pub(crate) fn send_again(&mut self, n: usize) {
        let one = &mut self.instances[n];
        if let Some((wish, answer)) = &mut one.waiting
            && answer.take().is_none()
        {
            one.late = Some(wish.clone());
        }
    }

    pub(crate) fn deliver(&mut self, n: usize, mistake: Mistake) {
        let Some((wish, Some(reply))) = self.instances[n].waiting.take() else {
            return;
        };
        match (wish, reply) {
            (Request::Claim(claim), Reply::Claimed(claimed)) => {
                let grant = match claimed {
                    Claimed::New(grant) | Claimed::Mine(grant) => Some(grant),
                    Claimed::Busy { .. } if mistake == Mistake::RunWhenBusy => {
                        let fence = self.record.view(self.now).map_or(1, |view| view.fence);
                        Some(resilience_core::idempotency::record::Grant {
                            fence,
                            attempt: 1,
                            checkpoint: None,
                            previous: Default::default(),
                        })
                    }
                    _ => None,
                };
                self.instances[n].holder = grant.map(|grant| Holder::new(&claim, &grant));
            }
            (_, Reply::Kept(WriteOutcome::Lost(_))) => self.instances[n] = self.left(n),
            _ if self.instances[n].ending => self.instances[n] = self.left(n),
            _ => {}
        }
    }

    pub(crate) fn crash(&mut self, n: usize) {
        let one = &mut self.instances[n];
        if let Some((wish, None)) = one.waiting.take() {
            one.late = Some(wish);
        }
        self.instances[n] = self.left(n);
    }

    /// The work is behind it; its messages may still be on their way.
    fn left(&self, n: usize) -> Instance {
        Instance {
            late: self.instances[n].late.clone(),
            ..Instance::default()
        }
    }

    pub(crate) fn flush(&mut self, mistake: Mistake) {
        self.record = Record::default();
        self.accepted = None;
        self.doubt = Previous::None;
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

    /// The replica gets the record as it is now.
    pub(crate) fn replicate(&mut self) {
        self.replica = self.record.clone();
    }

    /// The replica takes over: its record may be older, and its clock is behind by as much.
    pub(crate) fn fail_over(&mut self) {
        self.record = self.replica.clone();
        self.set_back();
        // What the replica did not have yet is lost.
        self.accepted = None;
        self.doubt = Previous::None;
    }

    // --- what the store does

    fn grant(&mut self, wish: &Request, mistake: Mistake) -> Reply {
        let (before, now) = (self.record.clone(), self.now);
        let kept = match wish {
            Request::Claim(claim) => return Reply::Claimed(self.claim(claim, mistake)),
            Request::Extend(holder) => self.record.extend(holder, LEASE, now),
            Request::Release(holder) => {
                let mut holder = holder.clone();
                if mistake == Mistake::ReleaseForgets {
                    holder.previous = Previous::Released;
                }
                self.record.release(&holder, now)
            }
            Request::Unknown(holder) => self.record.unknown(holder, now),
            Request::Complete(holder, completion) => {
                let holder = match mistake {
                    Mistake::CompleteUnchecked => self.newest(holder),
                    _ => holder.clone(),
                };
                self.record.complete(&holder, completion, now)
            }
        };
        let lost = matches!(kept, WriteOutcome::Lost(_));
        let stands = |record: &Record| record.view(now);
        self.broken.zombie_changed |= lost && stands(&before) != stands(&self.record);
        if !lost {
            match wish {
                Request::Complete(_, completion) => self.accept(&completion.outcome, &before),
                Request::Release(holder) => self.doubt = self.inherited[&holder.fence],
                Request::Unknown(_) => self.doubt = Previous::Unknown,
                Request::Extend(holder) if kept == WriteOutcome::Restored => {
                    self.doubt = self.inherited[&holder.fence];
                }
                _ => {}
            }
        }
        Reply::Kept(kept)
    }

    fn claim(&mut self, claim: &Claim, mistake: Mistake) -> Claimed {
        let before = self.record.view(self.now).map(|view| view.phase);
        let last = self.granted.last_key_value().map_or(0, |(fence, _)| *fence);
        // What the processes know of fences is told to the store, which may have lost it.
        let floor = if mistake == Mistake::ClockBehind {
            0
        } else {
            last
        };
        let claimed = self.record.claim_above(claim, floor, self.now);
        if let Claimed::New(grant) = &claimed {
            self.broken.fence_back |= grant.fence < last;
            self.doubt = match (before, self.doubt) {
                (None, _) => Previous::None,
                (Some(Phase::Running), Previous::None) => Previous::Ended,
                (Some(_), doubt) => doubt,
            };
            let asked_for = claim.takeover == Takeover::Any && mistake != Mistake::UnknownIsRetried;
            let blocks = self.doubt == Previous::Unknown && !asked_for;
            let untold = self.doubt.is_in_doubt() && grant.previous != self.doubt;
            self.broken.doubt_forgotten |= blocks || untold;
            self.inherited.insert(grant.fence, self.doubt);
        }
        if let Claimed::New(grant) | Claimed::Mine(grant) = &claimed {
            let owner = self.granted.entry(grant.fence);
            let owner = owner.or_insert_with(|| Arc::clone(&claim.owner));
            self.broken.fence_shared |= *owner != claim.owner;
        }
        claimed
    }

    /// A completion is accepted, again or for the first time.
    fn accept(&mut self, outcome: &Bytes, before: &Record) {
        self.doubt = Previous::None;
        let was_done = before
            .view(self.now)
            .is_some_and(|view| view.phase == Phase::Done);
        match &self.accepted {
            Some((accepted, until)) if *until > self.now => {
                self.broken.two_outcomes |= accepted != outcome;
            }
            _ if was_done => {}
            _ => self.accepted = Some((outcome.clone(), self.now + 1_000 * TTL)),
        }
    }

    fn newest(&self, holder: &Holder) -> Holder {
        let newest = self.granted.last_key_value();
        let (fence, owner) = newest.map_or((holder.fence, &holder.owner), |(fence, owner)| {
            (*fence, owner)
        });
        Holder {
            owner: Arc::clone(owner),
            fence,
            ..holder.clone()
        }
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
