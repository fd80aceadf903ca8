//! One key of a cache as the checker sees it: a record, a few processes that read and change the key, what is on its way,
//! and the truth.
//!
//! The truth is a number that every change raises. [`Record`] is the one that runs in production; the steps of a
//! process are those of the handle (`fill.rs`, `invalidation.rs`, `write.rs`), without the values' bytes and tags.
//! Requests are lost or late, replies are lost, processes die, and the store forgets everything.
//!
//! Here are the state and its environment; `reader` and `writer` have the steps of a process, `store` those of the store,
//! and `settles` what becomes of the key once nothing goes wrong any more.

mod reader;
mod settles;
mod store;
mod wire;
mod writer;

use std::collections::{BTreeMap, BTreeSet};

use resilience_core::cache::record::Record;

pub(crate) use self::{
    reader::{ReadStep, Reader},
    store::{Reply, Request},
    writer::{WriteStep, Writer},
};

/// Milliseconds: of a step of time, of a lease, of a value (fresh and kept), and of a write.
pub(crate) const TICK: u64 = 1;
const LEASE: u64 = 2;
const FRESH: u64 = 2;
const KEEP: u64 = 3;
const WRITE: u64 = 2;
/// The longest that a reader waits for others: a lease, and a load.
const GIVE_UP: u64 = LEASE + 1;
/// By how much the store's clock is set back: more than goes without notice.
const STEP: u64 = 10_000;

/// A mistake to build in, to see that the checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// A fill is stored whatever the record holds.
    FillUnchecked,
    /// A lease is extended by asking for it again, so that a lease that was lost is granted once more.
    ExtendRegains,
    /// An invalidation removes the value, and leaves the lease.
    InvalidateKeepsLease,
    /// A write that ends is stored, although there was another one or an invalidation.
    EndWriteUnchecked,
    /// A lease is released by any token.
    ReleaseUnchecked,
    /// A put without a reply is repeated.
    PutRepeated,
    /// Leases are granted right after an invalidation, while a replica lags.
    NoTombstone,
    /// A value is as good as what was known when it arrived.
    TicketDrawnLate,
    /// Values that were read while the store told of no changes count as if it had.
    RestoredKeeps,
    /// What was loaded because the store did not answer is kept, although no change of it is told.
    KeepsUntracked,
    /// What the store holds is used although an invalidation is on its way to it.
    PendingIgnored,
    /// Waits for a fill, and for nothing else.
    WaitsForever,
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Reads that load what is missing.
    pub(crate) reads: u8,
    /// The number of those that load although a fresh value is there.
    pub(crate) refreshes: u8,
    /// Changes of the truth that are followed by an invalidation.
    pub(crate) changes: u8,
    /// Those that are written through.
    pub(crate) writes: u8,
    pub(crate) puts: u8,
    /// Loads, and saves of the truth, that fail.
    pub(crate) failures: u8,
    /// Leases that are extended.
    pub(crate) extensions: u8,
    /// Requests that are lost or late, and replies that are lost.
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    /// Connections that are lost, with all that was to be told over them.
    pub(crate) disconnects: u8,
    pub(crate) ticks: u8,
    pub(crate) flushes: u8,
    /// Times that the store's clock is set back.
    pub(crate) steps_back: u8,
}

/// What does not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    /// Milliseconds that nothing is cached after an invalidation.
    pub(crate) tombstone: u64,
    /// Loads read from a replica, which lags by up to one tick.
    pub(crate) lags: bool,
    /// Processes keep values, and are told of changes.
    pub(crate) local: bool,
}

/// What is on its way between a process and the store.
pub(crate) type Wire = Option<(Request, Option<Reply>)>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) reader: Option<Reader>,
    pub(crate) writer: Option<Writer>,
    /// The value that the process holds and may use.
    pub(crate) held: Option<u8>,
    /// The store tells of changes.
    pub(crate) told: bool,
    /// The store tells of the next change of the key.
    tracked: bool,
    /// What the store tells of: the floor at the time of each change.
    pub(crate) mail: Vec<u8>,
    /// No older value may be used: the change that the process was told of last, or made itself.
    known: u8,
    /// Until when the process keeps nothing that it loads, since it has invalidated the key.
    tombstone: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Grant {
    until: u64,
    /// The key was changed since it was granted.
    void: bool,
}

/// What must never be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) void_fill: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// Ticks, by the clocks of the processes.
    pub(crate) time: u64,
    /// By how much the store's clock is behind.
    back: u64,
    pub(crate) record: Record,
    pub(crate) truth: u8,
    pub(crate) replica: u8,
    /// The truth when the key was last invalidated in the store, or written.
    floor: u8,
    pub(crate) processes: Vec<Process>,
    /// Requests whose caller is gone, and that may still reach the store.
    pub(crate) late: BTreeSet<Request>,
    grants: BTreeMap<u64, Grant>,
    tokens: u64,
    /// A process died while it changed the truth.
    change_lost: bool,
    pub(crate) budget: Budget,
    pub(crate) rules: Rules,
    pub(crate) broken: Broken,
}

impl World {
    pub(crate) fn new(processes: usize, rules: Rules, budget: Budget) -> Self {
        let process = Process {
            told: true,
            ..Process::default()
        };
        Self {
            time: 0,
            back: 0,
            record: Record::default(),
            truth: 0,
            replica: 0,
            floor: 0,
            processes: vec![process; processes],
            late: BTreeSet::new(),
            grants: BTreeMap::new(),
            tokens: 0,
            change_lost: false,
            budget,
            rules,
            broken: Broken::default(),
        }
    }

    /// The store's clock, in milliseconds.
    fn now(&self) -> u64 {
        100 * STEP + self.time - self.back
    }

    fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// A loader reads the truth, or a replica.
    fn load(&self) -> u8 {
        if self.rules.lags {
            self.replica
        } else {
            self.truth
        }
    }

    /// The replica has caught up by then.
    pub(crate) fn may_tick(&self) -> bool {
        !self.rules.lags || self.replica == self.truth
    }

    /// The process knows of a change: every ticket drawn before is void.
    fn void(&mut self, n: usize) {
        let process = &mut self.processes[n];
        process.held = None;
        if let Some(reader) = &mut process.reader {
            reader.ticket = false;
            reader.woken = true;
        }
    }

    /// The process applies what it was told first.
    pub(crate) fn push(&mut self, n: usize) {
        let process = &mut self.processes[n];
        let floor = process.mail.remove(0);
        process.known = process.known.max(floor);
        self.void(n);
    }

    pub(crate) fn disconnect(&mut self, n: usize) {
        let process = &mut self.processes[n];
        process.told = false;
        process.tracked = false;
        process.mail.clear();
        self.void(n);
    }

    pub(crate) fn reconnect(&mut self, n: usize, mistake: Mistake) {
        self.processes[n].told = true;
        if mistake != Mistake::RestoredKeeps {
            self.processes[n].held = None;
            if let Some(reader) = &mut self.processes[n].reader {
                reader.ticket = false;
            }
        }
    }

    /// The process dies, and is replaced by a new one. What it has sent may still arrive.
    pub(crate) fn crash(&mut self, n: usize) {
        let process = std::mem::take(&mut self.processes[n]);
        self.processes[n].told = true;
        let wires = [
            process.reader.and_then(|it| it.wire),
            process.writer.as_ref().and_then(|it| it.wire),
        ];
        self.change_lost |= process.writer.is_some();
        for (request, reply) in wires.into_iter().flatten() {
            if reply.is_none() {
                self.delay(request);
            }
        }
    }

    /// A request whose caller is gone. A connection keeps its order, and a new one is made after the old one has
    /// ended: a put, which its caller follows by an invalidation, arrives before that or never.
    fn delay(&mut self, request: Request) {
        if !matches!(request, Request::Put(..) | Request::Get) {
            self.late.insert(request);
        }
    }

    pub(crate) fn flush(&mut self) {
        self.record = Record::default();
        self.void_grants();
        self.tell();
    }

    pub(crate) fn set_back(&mut self) {
        self.back += STEP;
        for grant in self.grants.values_mut() {
            grant.until = self.time;
        }
    }

    // --- what must hold

    /// Neither the store nor a process holds a value that is older than the last invalidation that it has.
    pub(crate) fn is_current(&self) -> bool {
        self.stored().is_none_or(|(_, value)| value >= self.floor)
    }

    /// No process uses a value older than a change that it was told of, or has made; and when it was told of everything,
    /// none older than the store's last invalidation.
    pub(crate) fn is_coherent(&self) -> bool {
        self.processes.iter().all(|it| {
            let oldest = if it.told && it.mail.is_empty() {
                it.known.max(self.floor)
            } else {
                it.known
            };
            it.held.is_none_or(|held| !it.told || held >= oldest)
        })
    }

    /// Loads under a lease that has neither ended nor been revoked.
    pub(crate) fn live_leases(&self) -> usize {
        let readers = self.processes.iter().filter_map(|it| it.reader.as_ref());
        let holds = |reader: &&Reader| {
            let grant = self.grants.get(&reader.token);
            let lives = grant.is_some_and(|it| it.until > self.time && !it.void);
            reader.step == ReadStep::Load && lives
        };
        readers.filter(holds).count()
    }
}
