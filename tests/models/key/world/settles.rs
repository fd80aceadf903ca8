//! What becomes of the key once nothing goes wrong any more.

use resilience_core::idempotency::{
    Effect,
    record::{Claimed, Phase},
};

use super::{Mistake, Reply, Request, TICK, World};

/// How a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With an outcome that every caller gets.
    Done,
    /// Unknown; and done, or free again, once an operator has said what became of the work.
    Unknown,
    /// Neither.
    Stuck,
}

/// Leases that suffice: one that is left, and one by a clock that was set back.
const ROUNDS: usize = 3;
/// Steps of one attempt.
const STEPS: usize = 8;

impl World {
    /// From here on every message arrives, and the processes that live end their work; then another one asks.
    pub(crate) fn end(&self, mistake: Mistake) -> End {
        let mut world = self.clone();
        for n in 0..world.instances.len() {
            world.serve_late(n, mistake);
        }
        for n in 0..world.instances.len() {
            world.finish(n, mistake);
        }
        let busy = |world: &Self| world.instances.iter().any(|one| one.waiting.is_some());
        if busy(&world) {
            return End::Stuck;
        }
        match world.ask_until_told(mistake) {
            Some(Phase::Done) => End::Done,
            Some(Phase::Unknown) => {
                world.resolve();
                let told = world.ask_until_told(mistake);
                if told == Some(Phase::Done) {
                    End::Unknown
                } else {
                    End::Stuck
                }
            }
            _ => End::Stuck,
        }
    }

    /// What another process is told in the end; it does the work if it may.
    fn ask_until_told(&mut self, mistake: Mistake) -> Option<Phase> {
        let n = self.start_another();
        for _ in 0..ROUNDS {
            self.ask(n, self.rules.effect != Some(Effect::AtMostOnce), mistake);
            self.serve(n, mistake);
            let told = match &self.instances[n].waiting {
                Some((_, Some(Reply::Claimed(claimed)))) => claimed.clone(),
                _ => return None,
            };
            self.deliver(n, mistake);
            match told {
                Claimed::Done { .. } => return Some(Phase::Done),
                Claimed::Unknown { .. } => return Some(Phase::Unknown),
                Claimed::New(_) | Claimed::Mine(_) => self.finish(n, mistake),
                _ => {}
            }
            self.now += TICK;
        }
        None
    }

    /// Until the instance has nothing in progress.
    fn finish(&mut self, n: usize, mistake: Mistake) {
        for _ in 0..STEPS {
            let one = &self.instances[n];
            match (&one.waiting, &one.holder) {
                (Some((_, None)), _) => self.serve(n, mistake),
                (Some(_), _) => self.deliver(n, mistake),
                (None, None) => return,
                (None, Some(_)) if one.refused => self.wish(n, Request::Release, true),
                (None, Some(_)) if one.took_effect => self.complete(n, mistake),
                (None, Some(_)) => self.take_effect(n, mistake),
            }
        }
    }
}
