//! What the store does.

use std::sync::Arc;

use bytes::Bytes;
use resilience_core::cache::record::{Entry, Fill, Lease, Leased, Record, Stored, Token};

use super::{FRESH, Grant, KEEP, LEASE, Mistake, WRITE, World};

/// Tokens are numbers; zero is none. Values are the truth that they were loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Request {
    Get,
    Lease { token: u64, renew: u64 },
    Extend(u64),
    Fill(u64, u8),
    Release(u64),
    Put(u64, u8),
    Invalidate,
    BeginWrite(u64),
    EndWrite(u64, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    Found(Option<Found>),
    Granted,
    Fresh(u64),
    Held(u64),
    Refused,
    Stored,
    NotStored,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Found {
    pub(crate) version: u64,
    pub(crate) value: u8,
    pub(crate) is_fresh: bool,
}

impl World {
    /// Serves a request of a process that waits for the reply.
    pub(super) fn serve(&mut self, n: usize, request: Request, mistake: Mistake) -> Reply {
        let reply = self.serve_late(request, mistake);
        if matches!(request, Request::Get | Request::Lease { .. }) {
            let process = &mut self.processes[n];
            process.tracked = process.told;
        }
        reply
    }

    /// Serves a request, whether or not the reply is waited for.
    pub(crate) fn serve_late(&mut self, request: Request, mistake: Mistake) -> Reply {
        self.late.remove(&request);
        let before = self.record.clone();
        let reply = self.reply(request, mistake);
        let only_reads = matches!(
            request,
            Request::Get | Request::Lease { .. } | Request::Extend(_)
        );
        if !only_reads && self.record != before {
            self.tell();
        }
        reply
    }

    fn reply(&mut self, request: Request, mistake: Mistake) -> Reply {
        let now = self.now();
        match request {
            Request::Get => Reply::Found(self.record.get(now).map(|it| found(&it))),
            Request::Lease { token, renew } => self.lease(token, renew),
            Request::Extend(token) if mistake == Mistake::ExtendRegains => self.lease(token, 0),
            Request::Extend(token) => {
                if self.record.extend(now, number(token), LEASE) == Stored::Stored {
                    self.grants
                        .entry(token)
                        .and_modify(|it| it.until = self.time + LEASE);
                }
                Reply::Done
            }
            Request::Fill(token, value) => self.fill(token, value, mistake),
            Request::Release(token) => {
                let held = match mistake {
                    Mistake::ReleaseUnchecked => self.last_granted().unwrap_or(token),
                    _ => token,
                };
                self.record.release(number(held));
                Reply::Done
            }
            Request::Put(version, value) => {
                let stored = self.record.put(now, number(version), &of(value));
                if stored == Stored::Stored {
                    self.void_grants();
                }
                of_stored(stored)
            }
            Request::Invalidate => {
                self.invalidate(mistake);
                Reply::Done
            }
            Request::BeginWrite(token) => {
                self.record.begin_write(now, number(token), WRITE);
                self.void_grants();
                Reply::Done
            }
            Request::EndWrite(token, value) => self.end_write(token, value, mistake),
        }
    }

    fn lease(&mut self, token: u64, renew: u64) -> Reply {
        let asked = Lease {
            token: number(token),
            lease_ms: LEASE,
            renew: Token::new(renew),
        };
        match self.record.lease(self.now(), &asked) {
            Leased::Granted { .. } => {
                let grant = Grant {
                    until: 0,
                    void: false,
                };
                self.grants.entry(token).or_insert(grant).until = self.time + LEASE;
                Reply::Granted
            }
            Leased::Fresh(entry) => Reply::Fresh(entry.version.get()),
            Leased::Held { left_ms, .. } => Reply::Held(left_ms),
            Leased::Refused { .. } => Reply::Refused,
        }
    }

    fn fill(&mut self, token: u64, value: u8, mistake: Mistake) -> Reply {
        let was_void = self.grants.get(&token).is_none_or(|it| it.void);
        let stored = match mistake {
            Mistake::FillUnchecked => self.record.put(self.now(), number(token), &of(value)),
            _ => self.record.fill(self.now(), number(token), &of(value)),
        };
        self.broken.void_fill |= was_void && stored == Stored::Stored;
        of_stored(stored)
    }

    fn invalidate(&mut self, mistake: Mistake) {
        let tombstone = match mistake {
            Mistake::NoTombstone | Mistake::InvalidateKeepsLease => 0,
            _ => self.rules.tombstone,
        };
        let live = self.live_grant();
        self.record.invalidate(self.now(), tombstone);
        self.void_grants();
        self.floor = self.truth;
        if let (Mistake::InvalidateKeepsLease, Some(token)) = (mistake, live) {
            self.lease(token, 0);
        }
    }

    fn end_write(&mut self, token: u64, value: u8, mistake: Mistake) -> Reply {
        if mistake == Mistake::EndWriteUnchecked {
            self.record = Record::default();
            self.record.begin_write(self.now(), number(token), WRITE);
        }
        let before = self.record.clone();
        let (now, tombstone) = (self.now(), self.rules.tombstone);
        let stored = self
            .record
            .end_write(now, number(token), Some(&of(value)), tombstone);
        if stored == Stored::Refused {
            self.floor = self.truth;
        } else if self.record != before {
            self.floor = self.floor.max(value);
        }
        if self.record != before {
            self.void_grants();
        }
        of_stored(stored)
    }

    /// Tells the processes that have read the key.
    pub(super) fn tell(&mut self) {
        for process in &mut self.processes {
            if std::mem::take(&mut process.tracked) && self.rules.local {
                process.mail.push(self.floor);
            }
        }
    }

    pub(super) fn void_grants(&mut self) {
        for grant in self.grants.values_mut() {
            grant.void = true;
        }
    }

    fn last_granted(&self) -> Option<u64> {
        self.grants.keys().next_back().copied()
    }

    fn live_grant(&self) -> Option<u64> {
        let live = self
            .grants
            .iter()
            .find(|(_, it)| !it.void && it.until > self.time);
        live.map(|(token, _)| *token)
    }

    /// Version and value that the store returns.
    pub(super) fn stored(&self) -> Option<(u64, u8)> {
        let found = found(&self.record.get(self.now())?);
        Some((found.version, found.value))
    }
}

fn number(token: u64) -> Token {
    Token::new(token).expect("not zero")
}

fn of(value: u8) -> Fill {
    Fill {
        body: Some(Bytes::copy_from_slice(&[value])),
        fresh_ms: FRESH,
        keep_ms: KEEP,
        load_ms: 0,
        tags: Arc::new([]),
    }
}

fn found(entry: &Entry) -> Found {
    Found {
        version: entry.version.get(),
        value: entry.body.as_ref().map_or(0, |it| it[0]),
        is_fresh: entry.is_fresh(),
    }
}

const fn of_stored(stored: Stored) -> Reply {
    match stored {
        Stored::Stored => Reply::Stored,
        Stored::Refused => Reply::NotStored,
    }
}
