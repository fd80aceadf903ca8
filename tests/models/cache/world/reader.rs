//! A caller that reads the key, and loads what is missing.

use super::{GIVE_UP, Mistake, Reply, Request, Wire, World};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    pub(crate) step: ReadStep,
    pub(crate) wire: Wire,
    /// Of its lease; zero before it has asked for one.
    pub(crate) token: u64,
    /// The version that it has found, and wants to replace.
    renew: u64,
    refresh: bool,
    /// Nothing has changed since the ticket was drawn.
    pub(super) ticket: bool,
    /// Something has changed since it began to wait.
    pub(super) woken: bool,
    give_up: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReadStep {
    Get,
    Lease,
    /// Another caller loads, until then.
    Wait(u64),
    /// Loads under its lease.
    Load,
    /// Loads by itself, and may keep the value, or not.
    LoadAlone(bool),
    Fill,
    Release,
}

impl World {
    pub(crate) fn read(&mut self, n: usize, refresh: bool, mistake: Mistake) {
        self.processes[n].reader = Some(Reader {
            step: ReadStep::Get,
            wire: None,
            token: 0,
            renew: 0,
            refresh,
            ticket: true,
            woken: false,
            give_up: self.time + GIVE_UP,
        });
        self.go_round(n, mistake);
    }

    /// One round of `fill_from`: reads, unless a fresh value would not do.
    fn go_round(&mut self, n: usize, mistake: Mistake) {
        let reader = self.reader(n);
        reader.ticket = true;
        reader.woken = false;
        if reader.refresh {
            self.ask_for_lease(n, mistake);
        } else {
            self.send(n, ReadStep::Get, Request::Get);
        }
    }

    fn ask_for_lease(&mut self, n: usize, _: Mistake) {
        if self.reader(n).token == 0 {
            self.reader(n).token = self.token();
        }
        let (token, renew) = (self.reader(n).token, self.reader(n).renew);
        self.send(n, ReadStep::Lease, Request::Lease { token, renew });
    }

    pub(super) fn send(&mut self, n: usize, step: ReadStep, request: Request) {
        let reader = self.reader(n);
        reader.step = step;
        reader.wire = Some((request, None));
    }

    /// The reply to the reader's request arrives.
    pub(crate) fn deliver_to_reader(&mut self, n: usize, mistake: Mistake) {
        let Some((_, Some(reply))) = self.reader(n).wire.take() else {
            return;
        };
        match reply {
            Reply::Found(Some(found)) => {
                let pending = self.is_pending(n) && mistake != Mistake::PendingIgnored;
                if pending {
                    self.reader(n).renew = found.version;
                    return self.ask_for_lease(n, mistake);
                }
                if mistake == Mistake::TicketDrawnLate {
                    self.reader(n).ticket = true;
                }
                self.keep(n, found.value);
                if found.is_fresh {
                    return self.end_read(n);
                }
                self.ask_for_lease(n, mistake);
            }
            Reply::Found(None) => self.ask_for_lease(n, mistake),
            Reply::Granted => self.reader(n).step = ReadStep::Load,
            Reply::Fresh(version) => {
                let reader = self.reader(n);
                let wants_newer = reader.refresh && reader.renew == 0;
                reader.renew = if wants_newer { version } else { 0 };
                self.go_round(n, mistake);
            }
            Reply::Refused => self.reader(n).step = ReadStep::LoadAlone(false),
            Reply::Held(_) if self.time >= self.reader(n).give_up => {
                self.reader(n).step = ReadStep::LoadAlone(false);
            }
            Reply::Held(left) => {
                let until = match mistake {
                    Mistake::WaitsForever => u64::MAX,
                    _ => self.time + left.max(1),
                };
                self.reader(n).step = ReadStep::Wait(until);
                self.reader(n).refresh = false;
            }
            Reply::Stored | Reply::NotStored | Reply::Done => self.end_read(n),
        }
    }

    /// No reply arrives in time.
    pub(super) fn fail_reader(&mut self, n: usize, request: Request, mistake: Mistake) {
        match request {
            Request::Get | Request::Lease { .. } => {
                let may_keep = mistake == Mistake::KeepsUntracked;
                self.reader(n).step = ReadStep::LoadAlone(may_keep);
            }
            // Repeated.
            _ => self.reader(n).wire = Some((request, None)),
        }
    }

    /// Whether a reader that waits goes on.
    pub(crate) fn may_wake(&self, n: usize) -> bool {
        let process = &self.processes[n];
        process.reader.as_ref().is_some_and(|it| match it.step {
            ReadStep::Wait(until) => it.woken || !process.told || self.time >= until,
            _ => false,
        })
    }

    pub(crate) fn wake(&mut self, n: usize, mistake: Mistake) {
        self.go_round(n, mistake);
    }

    /// The loader returns.
    pub(crate) fn load_for(&mut self, n: usize) {
        let value = self.load();
        let token = self.reader(n).token;
        match self.reader(n).step {
            ReadStep::Load => self.send(n, ReadStep::Fill, Request::Fill(token, value)),
            ReadStep::LoadAlone(may_keep) => {
                if may_keep && self.time >= self.processes[n].tombstone {
                    self.keep(n, value);
                }
                self.end_read(n);
            }
            _ => {}
        }
    }

    pub(crate) fn fail_load(&mut self, n: usize) {
        let token = self.reader(n).token;
        match self.reader(n).step {
            ReadStep::Load => self.send(n, ReadStep::Release, Request::Release(token)),
            _ => self.end_read(n),
        }
    }

    /// The holder of a lease extends it; the reply makes no difference to it.
    pub(crate) fn extend(&mut self, n: usize) {
        let token = self.reader(n).token;
        self.late.insert(Request::Extend(token));
    }

    /// Keeps a value whose ticket was drawn before it was asked for.
    fn keep(&mut self, n: usize, value: u8) {
        let ticket = self.reader(n).ticket;
        if self.rules.local && ticket {
            self.processes[n].held = Some(value);
        }
    }

    fn end_read(&mut self, n: usize) {
        self.processes[n].reader = None;
    }

    fn reader(&mut self, n: usize) -> &mut Reader {
        self.processes[n].reader.as_mut().expect("it reads")
    }
}
