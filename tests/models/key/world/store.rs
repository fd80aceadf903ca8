//! What the store does.

use std::sync::Arc;

use bytes::Bytes;
use resilience_core::idempotency::record::{
    Claim, Claimed, Holder, Phase, Previous, Record, Takeover, WriteOutcome,
};

use super::{LEASE, Mistake, Reply, Request, TTL, World};

impl World {
    pub(super) fn grant(&mut self, wish: &Request, mistake: Mistake) -> Reply {
        let reply = self.reply(wish, mistake);
        if self.rules.durable {
            self.replicate();
        }
        reply
    }

    fn reply(&mut self, wish: &Request, mistake: Mistake) -> Reply {
        let (before, now) = (self.record.clone(), self.now);
        let kept = match wish {
            Request::Claim(claim) => return Reply::Claimed(self.claim(claim, mistake)),
            Request::Extend(holder) => self.record.extend(holder, LEASE, now),
            Request::Save(holder) => {
                self.record
                    .checkpoint(holder, &checkpoint_of(holder), LEASE, now)
            }
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
                Request::Save(holder) => self.saved = Some(checkpoint_of(holder)),
                _ => {}
            }
            if let Request::Extend(holder) | Request::Save(holder) = wish
                && kept == WriteOutcome::Restored
            {
                self.doubt = self.inherited[&holder.fence];
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
        if before.is_none() && self.record != Record::default() {
            // Its time is over.
            self.saved = None;
        }
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
            self.broken.checkpoint_lost |= grant.checkpoint != self.saved;
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
    pub(super) fn accept(&mut self, outcome: &Bytes, before: &Record) {
        self.doubt = Previous::None;
        self.saved = None;
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
}

/// How far an attempt has come.
fn checkpoint_of(holder: &Holder) -> Bytes {
    Bytes::copy_from_slice(holder.owner.as_bytes())
}
