//! What an instance does, and what becomes of its messages.

use bytes::Bytes;
use resilience_core::idempotency::{
    Effect,
    record::{Claim, Claimed, Completion, Grant, Holder, Takeover, WriteOutcome},
};

use super::{
    Budget, Instance, LEASE, Mistake, RETENTION, Record, Reply, Request, TTL, World, fresh_claim,
};

/// What an instance does.
impl World {
    pub(crate) fn ask(&mut self, n: usize, bold: bool, mistake: Mistake) {
        self.names += 1;
        let claim = Claim {
            owner: format!("{n}-{}", self.names).into(),
            lease_ms: match mistake {
                Mistake::LeaseAsLongAsTheRecord => RETENTION,
                _ => LEASE,
            },
            takeover: match (mistake, self.rules.effect) {
                (Mistake::UnknownIsRetried, _) => Takeover::Any,
                (Mistake::TakeOverEnded, _) => Takeover::Ended,
                (_, Some(effect)) => effect.takeover(),
                _ if bold => Takeover::Any,
                _ => Takeover::Ended,
            },
            ..fresh_claim()
        };
        self.instances[n].waiting = Some((Request::Claim(claim), None));
    }

    /// What is outside of the store happens, under the instance's fence. What fenced work writes to refuses a fence that is not
    /// the highest, and says whether the work is done already.
    pub(crate) fn take_effect(&mut self, n: usize, mistake: Mistake) {
        let Some(holder) = self.instances[n].holder.clone() else {
            return;
        };
        let is_done = !self.effects.is_empty();
        let one = &mut self.instances[n];
        if self.rules.effect == Some(Effect::Fenced) {
            if mistake != Mistake::FenceIgnored && holder.fence < self.highest {
                one.refused = true;
                return;
            }
            self.highest = self.highest.max(holder.fence);
            if holder.previous.is_in_doubt() && is_done {
                one.took_effect = true;
                return;
            }
        }
        one.took_effect = true;
        let effects = self.effects.entry(holder.fence).or_default();
        *effects += 1;
        self.broken.effect_twice |= *effects > 1;
    }

    pub(crate) fn complete(&mut self, n: usize, mistake: Mistake) {
        let Some(holder) = self.instances[n].holder.clone() else {
            return;
        };
        if mistake == Mistake::ReleaseFirst {
            self.record.release(&holder, self.now);
        }
        let own = || Bytes::copy_from_slice(holder.owner.as_bytes());
        let outcome = match self.rules.effect {
            // What the earlier attempt has done, if it has.
            Some(Effect::Fenced) => self.first_effect().unwrap_or_else(own),
            _ => own(),
        };
        let completion = Completion {
            outcome,
            ttl_ms: TTL,
        };
        let one = &mut self.instances[n];
        one.ending = true;
        one.waiting = Some((Request::Complete(holder, completion), None));
    }

    pub(crate) fn wish(&mut self, n: usize, wish: fn(Holder) -> Request, ends: bool) {
        let one = &mut self.instances[n];
        if let Some(holder) = one.holder.clone() {
            one.ending = ends;
            one.waiting = Some((wish(holder), None));
        }
    }

    pub(crate) fn leave_unknown(&mut self, n: usize) {
        self.left_open = true;
        self.wish(n, Request::Unknown, true);
    }

    /// The caller is told the outcome before it is recorded.
    pub(crate) fn answer(&mut self, n: usize, mistake: Mistake) {
        let one = &mut self.instances[n];
        one.answered = true;
        let Some((Request::Complete(_, completion), _)) = &one.waiting else {
            return;
        };
        // Only work that may be repeated has another outcome in the end; there, such an answer carries a mark.
        if self.rules.effect != Some(Effect::Idempotent) || mistake == Mistake::AnswerUnmarked {
            let outcome = completion.outcome.clone();
            self.tell(&outcome);
        }
    }

    /// A caller gets the recorded outcome.
    fn tell(&mut self, outcome: &Bytes) {
        let told = self.told.get_or_insert_with(|| outcome.clone());
        self.broken.told_another |= told != outcome;
    }

    pub(crate) fn crash(&mut self, n: usize) {
        self.left_open = true;
        // The process that takes its place holds none of these.
        let of_it = format!("{n}-");
        let granted = self.granted.iter();
        let held = granted.filter(|(_, owner)| owner.starts_with(&of_it));
        self.unclaimed.extend(held.map(|(fence, _)| *fence));
        let one = &mut self.instances[n];
        if let Some((wish, None)) = one.waiting.take() {
            one.late = Some(wish);
        }
        self.instances[n] = self.left(n);
        self.instances[n].closing = false;
    }

    /// The process is asked to end: it begins nothing more, and goes on with what it has begun.
    pub(crate) fn close(&mut self, n: usize, mistake: Mistake) {
        self.instances[n].closing = true;
        if mistake == Mistake::CloseKills {
            self.instances[n] = self.left(n);
        }
    }

    /// The time of the shutdown is over: the attempt is broken off, wherever it is.
    pub(crate) fn cancel(&mut self, n: usize, mistake: Mistake) {
        match mistake {
            Mistake::CancelReleases => self.wish(n, Request::Release, true),
            Mistake::CancelDeletes => {
                self.record = Record::default();
                self.instances[n] = self.left(n);
            }
            _ => self.leave_unknown(n),
        }
    }

    /// Nothing is in progress, and the process ends.
    pub(crate) fn leave(&mut self, n: usize) {
        let view = self.record.view(self.now);
        let held = view.filter(|view| view.remaining_ms > 0);
        if let Some(fence) = held.map(|view| view.fence) {
            let is_own = self.granted[&fence].starts_with(&format!("{n}-"));
            self.broken.left_held |= is_own && !self.unclaimed.contains(&fence);
        }
        self.instances[n].gone = true;
    }

    /// The work is behind it; its messages may still be on their way.
    fn left(&self, n: usize) -> Instance {
        Instance {
            late: self.instances[n].late.clone(),
            closing: self.instances[n].closing,
            ..Instance::default()
        }
    }

    /// A process that nothing goes wrong for.
    pub(super) fn start_another(&mut self) -> usize {
        self.budget = Budget::default();
        self.instances.push(Instance::default());
        self.instances.len() - 1
    }
}

/// What becomes of messages.
impl World {
    pub(crate) fn serve(&mut self, n: usize, mistake: Mistake) {
        if let Some((wish, _)) = self.instances[n].waiting.clone() {
            let reply = self.grant(&wish, mistake);
            if let Some((_, answer)) = &mut self.instances[n].waiting {
                *answer = Some(reply);
            }
        }
    }

    pub(crate) fn serve_late(&mut self, n: usize, mistake: Mistake) {
        let Some(wish) = self.instances[n].late.take() else {
            return;
        };
        let is_awaited = self.instances[n]
            .waiting
            .as_ref()
            .is_some_and(|(awaited, _)| *awaited == wish);
        let reply = self.grant(&wish, mistake);
        if let Reply::Claimed(Claimed::New(grant)) = reply
            && !is_awaited
        {
            self.unclaimed.insert(grant.fence);
            self.left_open = true;
        }
    }

    /// The answer is lost, or the request is late: it is sent again as it is.
    pub(crate) fn send_again(&mut self, n: usize, mistake: Mistake) {
        let one = &mut self.instances[n];
        let Some((wish, answer)) = &mut one.waiting else {
            return;
        };
        if answer.take().is_none() {
            one.late = Some(wish.clone());
        }
        if mistake == Mistake::CompleteOnce && matches!(wish, Request::Complete(..)) {
            one.late = None;
            self.instances[n] = self.left(n);
        }
    }

    pub(crate) fn deliver(&mut self, n: usize, mistake: Mistake) {
        let Some((wish, Some(reply))) = self.instances[n].waiting.take() else {
            return;
        };
        match (wish, reply) {
            (Request::Claim(claim), Reply::Claimed(claimed)) => {
                self.claimed(n, &claim, claimed, mistake)
            }
            (Request::Complete(_, completion), Reply::Kept(kept)) => {
                let refused = matches!(kept, WriteOutcome::Lost(_));
                if !refused || mistake == Mistake::AnswerRefused {
                    self.tell(&completion.outcome);
                }
                self.instances[n] = self.left(n);
            }
            (_, Reply::Kept(WriteOutcome::Lost(_))) => self.instances[n] = self.left(n),
            _ if self.instances[n].ending => self.instances[n] = self.left(n),
            _ => {}
        }
    }

    fn claimed(&mut self, n: usize, claim: &Claim, claimed: Claimed, mistake: Mistake) {
        let grant = match claimed {
            Claimed::New(grant) | Claimed::Mine(grant) => Some(grant),
            Claimed::Busy { .. } if mistake == Mistake::RunWhenBusy => {
                let fence = self.record.view(self.now).map_or(1, |view| view.fence);
                Some(Grant {
                    fence,
                    attempt: 1,
                    checkpoint: None,
                    previous: Default::default(),
                })
            }
            Claimed::Done { outcome, .. } => {
                self.tell(&outcome);
                None
            }
            _ => None,
        };
        let one = &mut self.instances[n];
        one.holder = grant.map(|grant| Holder::new(claim, &grant));
        if std::mem::take(&mut one.hung_up) {
            self.wish(n, Request::Release, true);
        }
    }
}
