//! What becomes of the messages once nothing goes wrong any more.

use super::{Budget, Mistake, TICK, World};

/// Leases that suffice: each message may have all its deliveries before it, and wait for a copy.
const ROUNDS: usize = 24;
/// Steps of one delivery: it is asked for, begun, handled, and settled, with an answer to each.
const STEPS: usize = 8;

impl World {
    /// From here on every request arrives, and the consumers that live go on, beside another one.
    pub(crate) fn settles(&self, mistake: Mistake) -> bool {
        let mut world = self.clone();
        world.budget = Budget::default();
        for n in 0..world.consumers.len() {
            world.serve_late(n, mistake);
        }
        world.start();
        for _ in 0..ROUNDS {
            if world.is_settled() {
                return true;
            }
            for n in 0..world.consumers.len() {
                for _ in 0..STEPS {
                    world.go_on(n, mistake);
                }
            }
            world.now += TICK;
        }
        false
    }

    /// Every message is acknowledged or dead, and none is waited for.
    fn is_settled(&self) -> bool {
        self.records.is_empty() && !self.has_new() && self.keeps_every_message()
    }

    fn go_on(&mut self, n: usize, mistake: Mistake) {
        let one = &self.consumers[n];
        match (&one.waiting, &one.hand) {
            (Some((_, None)), _) => self.serve(n, mistake),
            (Some((_, Some(_))), _) => self.deliver(n, mistake),
            (None, None) if self.has_new() => self.read(n),
            // Also finds out that the clock was set back.
            (None, None) => self.claim(n),
            (None, Some(hand)) => match (hand.end, hand.fence) {
                (Some(_), _) => self.settle(n),
                (None, None) => self.begin(n),
                (None, Some(_)) => self.handle(n),
            },
        }
    }
}
