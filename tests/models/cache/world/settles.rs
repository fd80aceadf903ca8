//! What becomes of the key once nothing goes wrong any more.

use super::{Mistake, ReadStep, TICK, World, WriteStep};

/// Ticks that suffice: a write that is left, a lease that is left, and a load.
const ROUNDS: usize = 8;
/// Steps of one caller without a tick.
const STEPS: usize = 16;

impl World {
    /// From here on every message arrives, and every caller goes on: all come to an end, another one gets the value,
    /// and the store has every change of the truth whose process lived.
    pub(crate) fn settles(&self, mistake: Mistake) -> bool {
        let mut world = self.clone();
        while let Some(request) = world.late.first().copied() {
            world.serve_late(request, mistake);
        }
        if !world.goes_quiet(mistake) {
            return false;
        }
        world.read(0, false, mistake);
        world.goes_quiet(mistake) && (world.change_lost || world.floor == world.truth)
    }

    fn goes_quiet(&mut self, mistake: Mistake) -> bool {
        for _ in 0..ROUNDS {
            // Writers first: for the others, a change is worth waiting for.
            for n in 0..self.processes.len() {
                self.finish_writer(n, mistake);
            }
            for n in 0..self.processes.len() {
                self.finish_reader(n, mistake);
            }
            for n in 0..self.processes.len() {
                while !self.processes[n].mail.is_empty() {
                    self.push(n);
                }
            }
            let is_idle = |it: &super::Process| it.reader.is_none() && it.writer.is_none();
            if self.processes.iter().all(is_idle) {
                return true;
            }
            self.replica = self.truth;
            self.time += TICK;
        }
        false
    }

    fn finish_writer(&mut self, n: usize, mistake: Mistake) {
        for _ in 0..STEPS {
            match &self.processes[n].writer {
                None => return,
                Some(it) if matches!(it.step, WriteStep::Save(_)) => self.save(n),
                Some(_) => {
                    self.serve_writer(n, mistake);
                    self.deliver_to_writer(n);
                }
            }
        }
    }

    fn finish_reader(&mut self, n: usize, mistake: Mistake) {
        for _ in 0..STEPS {
            let Some(reader) = &self.processes[n].reader else {
                return;
            };
            match reader.step {
                ReadStep::Load | ReadStep::LoadAlone(_) => self.load_for(n),
                ReadStep::Wait(_) if self.may_wake(n) => self.wake(n, mistake),
                ReadStep::Wait(_) => return,
                _ => {
                    self.serve_reader(n, mistake);
                    self.deliver_to_reader(n, mistake);
                }
            }
        }
    }
}
