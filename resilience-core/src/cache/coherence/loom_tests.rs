//! Every interleaving of a reader, what the store tells, and a caller that is served, by loom: `make loom`.

use loom::{future::block_on, sync::Arc, thread};

use super::*;

const KEY: u64 = 1;
const ALL: u64 = 2;
const OLD: u32 = 1;
const NEW: u32 = 2;

struct Process {
    coherence: Coherence,
    /// The store, which serves one request at a time.
    store: Mutex<u32>,
    held: Mutex<Option<(u32, Ticket)>>,
}

impl Process {
    fn told() -> Arc<Self> {
        let coherence = Coherence::new(0, Some(ALL), Clock::tokio());
        coherence.restored();
        Arc::new(Self {
            coherence,
            store: Mutex::new(OLD),
            held: Mutex::new(None),
        })
    }

    fn change(&self) {
        *lock(&self.store) = NEW;
    }

    fn read(&self) -> u32 {
        *lock(&self.store)
    }

    /// Reads the store, and keeps the value unless something has changed since.
    fn fetch(&self) {
        let ticket = self.coherence.ticket(KEY);
        let value = self.read();
        if self.coherence.check(&ticket) != Validity::Void {
            *lock(&self.held) = Some((value, ticket));
        }
    }

    /// The value that a caller is served, without asking the store.
    fn serve(&self) -> Option<u32> {
        let held = *lock(&self.held);
        let (value, ticket) = held?;
        (self.coherence.check(&ticket) == Validity::Valid).then_some(value)
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// One thread reads and keeps a value. In another the value is changed, and the process told by `tell`: from
/// then on, it serves the new one, or none.
fn never_served_after(tell: fn(&Process)) {
    explore(move || {
        let process = Process::told();
        let (reads, is_told) = (Arc::clone(&process), Arc::clone(&process));
        let reader = thread::spawn(move || reads.fetch());
        let teller = thread::spawn(move || tell(&is_told));
        teller.join().unwrap();
        assert_ne!(process.serve(), Some(OLD), "while it is read");
        reader.join().unwrap();
        assert_ne!(process.serve(), Some(OLD), "when it was read");
        process.fetch();
        assert_eq!(process.serve(), Some(NEW), "read again, it is held");
    });
}

#[test]
fn loom_cache_a_value_read_before_a_change_is_never_served_after_it() {
    never_served_after(|process| {
        process.change();
        process.coherence.changed(KEY);
    });
}

#[test]
fn loom_cache_nor_after_a_clearing() {
    never_served_after(|process| {
        process.change();
        process.coherence.changed(ALL);
    });
}

#[test]
fn loom_cache_nor_after_a_change_that_was_not_told_since_the_connection_was_lost() {
    never_served_after(|process| {
        process.coherence.lost();
        process.change();
        process.coherence.restored();
    });
}

#[test]
fn loom_cache_nor_after_a_loss_that_was_not_noticed() {
    never_served_after(|process| {
        process.change();
        process.coherence.restored();
    });
}

#[test]
fn loom_cache_what_was_held_before_a_clearing_is_void_whatever_becomes_of_the_connection() {
    explore(|| {
        let process = Process::told();
        let held = process.coherence.ticket(KEY);
        let (flaps, clears) = (Arc::clone(&process), Arc::clone(&process));
        let flapping = thread::spawn(move || {
            flaps.coherence.lost();
            flaps.coherence.restored();
        });
        let clearing = thread::spawn(move || clears.coherence.cleared());
        clearing.join().unwrap();
        assert_eq!(process.coherence.check(&held), Validity::Void);
        flapping.join().unwrap();
        assert_eq!(process.coherence.check(&held), Validity::Void);
        let now = process.coherence.ticket(KEY);
        assert_eq!(process.coherence.check(&now), Validity::Valid);
    });
}

#[test]
fn loom_cache_no_waiter_misses_a_change() {
    explore(|| {
        let process = Process::told();
        let changes = Arc::clone(&process);
        let changing = thread::spawn(move || {
            changes.change();
            changes.coherence.changed(KEY);
        });
        let change = process.coherence.change_of(KEY);
        if process.read() == OLD {
            // Loom reports a deadlock if it is never woken.
            block_on(change.happened());
            assert_eq!(process.read(), NEW);
        }
        changing.join().unwrap();
    });
}
