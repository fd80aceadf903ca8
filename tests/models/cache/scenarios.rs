//! Scenarios of a key: what is stored, under leases, invalidations and writes; and what processes hold.

use super::{
    Cache,
    world::{Budget, Mistake, Rules},
};
use crate::explore::{explore, holds, more};

const STORE: Rules = Rules {
    tombstone: 1,
    lags: false,
    local: false,
};

const LOCAL: Rules = Rules {
    local: true,
    ..STORE
};

/// Callers miss at the same time as the truth changes; leases are extended.
fn fills() -> Cache {
    Cache::new(
        2,
        Rules {
            tombstone: 0,
            ..STORE
        },
        Budget {
            reads: 2 + more(),
            changes: 1,
            extensions: 1,
            failures: more(),
            ticks: 1 + more(),
            ..Budget::default()
        },
    )
}

/// Loads fail, and leases end.
fn releases() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 3,
            failures: 1,
            ticks: 2,
            ..Budget::default()
        },
    )
}

/// Requests are lost or late, and replies are lost.
fn losses() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 2,
            changes: 1,
            losses: 1,
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// Processes die, and the store forgets everything, or its clock is set back.
fn faults() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 2,
            changes: 1,
            crashes: 1,
            flushes: more(),
            steps_back: 1,
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// Values end, and are loaded again before that.
fn renewals() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 2 + more(),
            refreshes: 1,
            changes: more(),
            ticks: 2,
            ..Budget::default()
        },
    )
}

/// Loaders read from a replica that lags.
fn replicas() -> Cache {
    Cache::new(
        2,
        Rules {
            lags: true,
            ..STORE
        },
        Budget {
            reads: 2,
            changes: 1 + more(),
            ticks: 1 + more(),
            ..Budget::default()
        },
    )
}

/// One writes through while the truth is changed in another way.
fn writes() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 1,
            changes: 1,
            writes: 1 + more(),
            failures: more(),
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// Two write through.
fn two_writes() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 1,
            writes: 2,
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// The same when messages are lost.
fn lost_writes() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 1,
            changes: more(),
            writes: 1 + more(),
            losses: 1,
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// The same when processes die, and the store forgets.
fn faulty_writes() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 1,
            writes: 1 + more(),
            crashes: 1,
            flushes: 1,
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// Callers put what they know to be the latest.
fn puts() -> Cache {
    Cache::new(
        2,
        STORE,
        Budget {
            reads: 1,
            changes: 1,
            writes: more(),
            puts: 1,
            losses: 1,
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// Processes keep values, and what they are told arrives late.
fn local() -> Cache {
    Cache::new(
        2,
        LOCAL,
        Budget {
            reads: 2,
            changes: 1 + more(),
            losses: more(),
            ..Budget::default()
        },
    )
}

/// The same when messages are lost on the way to the store.
fn local_losses() -> Cache {
    Cache::new(
        2,
        LOCAL,
        Budget {
            reads: 2,
            changes: 1,
            writes: more(),
            losses: 1,
            ticks: more(),
            ..Budget::default()
        },
    )
}

/// The same when the connection is lost, with what was to be told over it.
fn local_disconnects() -> Cache {
    Cache::new(
        2,
        LOCAL,
        Budget {
            reads: 2,
            changes: 1,
            disconnects: 1 + more(),
            flushes: more(),
            ..Budget::default()
        },
    )
}

#[test]
fn one_caller_loads_and_no_fill_brings_an_old_value_back() {
    holds("fills", fills());
    holds("releases", releases());
    holds("losses", losses());
    holds("renewals", renewals());
}

#[test]
fn nothing_old_is_stored_when_processes_die_and_the_store_forgets() {
    holds("faults", faults());
}

#[test]
fn a_replica_that_lags_by_less_than_a_tombstone_does_no_harm() {
    holds("replicas", replicas());
}

#[test]
fn a_write_is_stored_if_it_was_the_only_change() {
    holds("writes", writes());
    holds("two writes", two_writes());
    holds("lost writes", lost_writes());
    holds("faulty writes", faulty_writes());
}

#[test]
fn a_put_is_stored_or_leaves_an_invalidation() {
    holds("puts", puts());
}

#[test]
fn no_process_uses_what_it_was_told_to_be_changed() {
    holds("local", local());
    holds("local losses", local_losses());
    holds("local disconnects", local_disconnects());
}

const STORED: &str = "nothing older than an invalidation is stored";
const REFUSED: &str = "a fill from before an invalidation is refused";
const ONE_LEASE: &str = "one lease at a time";
const COHERENT: &str = "no process uses what it knows to be changed";
const ENDS: &str = "every caller comes to an end";

#[test]
fn the_checker_finds_every_mistake_that_is_built_in() {
    for (mut cache, mistake, property) in [
        (fills(), Mistake::FillUnchecked, REFUSED),
        (fills(), Mistake::ExtendRegains, REFUSED),
        (fills(), Mistake::InvalidateKeepsLease, REFUSED),
        (releases(), Mistake::ReleaseUnchecked, ONE_LEASE),
        (fills(), Mistake::WaitsForever, ENDS),
        (replicas(), Mistake::NoTombstone, STORED),
        (writes(), Mistake::EndWriteUnchecked, STORED),
        (puts(), Mistake::PutRepeated, STORED),
        (local(), Mistake::TicketDrawnLate, COHERENT),
        (local(), Mistake::PendingIgnored, COHERENT),
        (local_losses(), Mistake::KeepsUntracked, COHERENT),
        (local_disconnects(), Mistake::RestoredKeeps, COHERENT),
    ] {
        cache.mistake = mistake;
        let broken = explore(&format!("{mistake:?}"), cache);
        assert!(broken.contains(&property), "{mistake:?}: found {broken:?}");
    }
}
