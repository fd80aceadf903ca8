//! A caller that changes the truth, and then the cache.

use super::{Mistake, Reply, Request, Wire, World};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    pub(crate) step: WriteStep,
    pub(crate) wire: Wire,
    /// Of the write.
    token: u64,
    /// What it has made the truth.
    value: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WriteStep {
    Invalidate,
    Begin,
    /// Changes the truth; the store knows of it, or not.
    Save(bool),
    End,
    Put,
}

impl World {
    /// Changes the truth, and invalidates the key.
    pub(crate) fn change(&mut self, n: usize) {
        self.truth += 1;
        self.processes[n].writer = Some(Writer {
            step: WriteStep::Invalidate,
            wire: None,
            token: 0,
            value: self.truth,
        });
        self.begin_invalidation(n);
    }

    fn begin_invalidation(&mut self, n: usize) {
        self.void(n);
        let process = &mut self.processes[n];
        process.tombstone = self.time + self.rules.tombstone;
        self.ask(n, WriteStep::Invalidate, Request::Invalidate);
        self.knows(n);
    }

    pub(crate) fn write(&mut self, n: usize) {
        let token = self.token();
        self.void(n);
        self.processes[n].writer = Some(Writer {
            step: WriteStep::Begin,
            wire: Some((Request::BeginWrite(token), None)),
            token,
            value: 0,
        });
    }

    /// The caller knows the truth, since it does not change meanwhile.
    pub(crate) fn put(&mut self, n: usize) {
        let (token, value) = (self.token(), self.truth);
        self.void(n);
        self.processes[n].writer = Some(Writer {
            step: WriteStep::Put,
            wire: Some((Request::Put(token, value), None)),
            token,
            value,
        });
    }

    /// The truth does not change while a value is put.
    pub(crate) fn may_put(&self) -> bool {
        self.processes.iter().all(|it| it.writer.is_none())
    }

    /// No value is being put: its caller has not been told of an error yet.
    pub(crate) fn may_change(&self, mistake: Mistake) -> bool {
        let puts = self.processes.iter().filter_map(|it| it.writer.as_ref());
        let mut puts = puts.filter(|it| it.step == WriteStep::Put);
        puts.all(|it| mistake == Mistake::PutRepeated && it.value == u8::MAX)
    }

    pub(crate) fn save(&mut self, n: usize) {
        self.truth += 1;
        let truth = self.truth;
        let writer = self.writer(n);
        writer.value = truth;
        let token = writer.token;
        match writer.step {
            WriteStep::Save(true) => self.ask(n, WriteStep::End, Request::EndWrite(token, truth)),
            _ => self.begin_invalidation(n),
        }
    }

    /// Whether the truth was changed is not known.
    pub(crate) fn fail_save(&mut self, n: usize) {
        self.begin_invalidation(n);
    }

    fn ask(&mut self, n: usize, step: WriteStep, request: Request) {
        let writer = self.writer(n);
        writer.step = step;
        writer.wire = Some((request, None));
    }

    /// The reply to the writer's request arrives.
    pub(crate) fn deliver_to_writer(&mut self, n: usize) {
        let Some((request, Some(reply))) = self.writer(n).wire.take() else {
            return;
        };
        self.void(n);
        match (request, reply) {
            (Request::BeginWrite(_), _) => self.writer(n).step = WriteStep::Save(true),
            (Request::Put(..), Reply::NotStored) => self.begin_invalidation(n),
            (Request::Put(..), _) => self.processes[n].writer = None,
            // Stored, or left as an invalidation by the store.
            _ => {
                self.knows(n);
                self.processes[n].writer = None;
            }
        }
    }

    /// No reply arrives in time. `ends`: a write is not ended in time either, and becomes an invalidation.
    pub(super) fn fail_writer(&mut self, n: usize, request: Request, ends: bool, mistake: Mistake) {
        match request {
            Request::BeginWrite(_) => {
                self.void(n);
                self.writer(n).step = WriteStep::Save(false);
            }
            Request::Put(..) if mistake == Mistake::PutRepeated => {
                // The caller is told.
                self.writer(n).value = u8::MAX;
                self.writer(n).wire = Some((request, None));
            }
            Request::Put(..) => self.begin_invalidation(n),
            Request::EndWrite(..) if ends => self.begin_invalidation(n),
            _ => self.writer(n).wire = Some((request, None)),
        }
    }

    /// No value from before its own change is to be used.
    fn knows(&mut self, n: usize) {
        let value = self.writer(n).value;
        let process = &mut self.processes[n];
        process.known = process.known.max(value);
    }

    /// An invalidation of this process is on its way to the store.
    pub(super) fn is_pending(&self, n: usize) -> bool {
        let writer = self.processes[n].writer.as_ref();
        writer.is_some_and(|it| it.step == WriteStep::Invalidate)
    }

    fn writer(&mut self, n: usize) -> &mut Writer {
        self.processes[n].writer.as_mut().expect("it writes")
    }
}
