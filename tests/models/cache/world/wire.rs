//! What becomes of requests and replies.

use super::{Mistake, World};

impl World {
    pub(crate) fn serve_reader(&mut self, n: usize, mistake: Mistake) {
        let wire = self.processes[n].reader.as_ref().and_then(|it| it.wire);
        if let Some((request, None)) = wire {
            let reply = self.serve(n, request, mistake);
            if let Some(reader) = &mut self.processes[n].reader {
                reader.wire = Some((request, Some(reply)));
            }
        }
    }

    pub(crate) fn serve_writer(&mut self, n: usize, mistake: Mistake) {
        let wire = self.processes[n].writer.as_ref().and_then(|it| it.wire);
        if let Some((request, None)) = wire {
            let reply = self.serve(n, request, mistake);
            if let Some(writer) = &mut self.processes[n].writer {
                writer.wire = Some((request, Some(reply)));
            }
        }
    }

    /// The reader's request is late, or lost; or the reply to it is lost.
    pub(crate) fn lose_for_reader(&mut self, n: usize, mistake: Mistake) {
        let wire = self.processes[n]
            .reader
            .as_mut()
            .and_then(|it| it.wire.take());
        if let Some((request, reply)) = wire {
            if reply.is_none() {
                self.delay(request);
            }
            self.fail_reader(n, request, mistake);
        }
    }

    /// As above, for the writer. `ends`: it does not try again.
    pub(crate) fn lose_for_writer(&mut self, n: usize, ends: bool, mistake: Mistake) {
        let wire = self.processes[n]
            .writer
            .as_mut()
            .and_then(|it| it.wire.take());
        if let Some((request, reply)) = wire {
            if reply.is_none() {
                self.delay(request);
            }
            self.fail_writer(n, request, ends, mistake);
        }
    }
}
