//! One suite for every store of write-behinds, asked through the trait.
//!
//! Each check takes a name of its own, so that all can run on one server. Times are real: they are so long that they do not end
//! while a check runs, or so short that their end is waited for with a bound.

mod bounds;
mod dead;
mod leases;
mod writing;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;

use super::eventually;
use crate::write_behind::{
    WriteBehindStore,
    record::{
        Bounds, EntryResult, RawChange, Settle, Take, Taken, TakenBatch, TakenEntry, Write,
        WriteOutcome, Written,
    },
    store::Shard,
};

const HOUR: u64 = 3_600_000;
const SOON: Duration = Duration::from_secs(10);

/// Runs every check on `store`; `flush` makes it forget everything.
pub async fn all(store: &Arc<dyn WriteBehindStore>, flush: &(dyn Fn() + Sync)) {
    let it = &**store;
    writing::a_write_is_read_taken_and_sunk(it).await;
    writing::the_last_value_of_a_key_counts(it).await;
    writing::a_repeated_write_is_stored_once(it).await;
    writing::a_deletion_is_no_empty_value(it).await;
    writing::many_changes_are_stored_together(it).await;
    writing::versions_are_above_those_that_the_caller_knows(it).await;
    writing::a_crowd_of_writers_gets_versions_of_its_own(store).await;
    leases::one_batch_at_a_time(it).await;
    leases::a_lease_that_ends_is_taken_over_and_its_holder_changes_nothing(it).await;
    leases::a_lease_that_is_renewed_does_not_end(it).await;
    leases::a_write_during_the_sink_stays_dirty(it).await;
    leases::a_repeated_settlement_changes_nothing(it).await;
    leases::a_batch_waits_for_more_until_its_age(it).await;
    leases::a_refused_entry_waits_and_others_do_not(it).await;
    leases::a_pause_keeps_all_batches(it).await;
    dead::a_dead_letter_is_kept_until_it_is_redriven_discarded_or_written(it).await;
    dead::dead_letters_are_listed_in_order(it).await;
    bounds::a_full_shard_takes_no_more_keys(it).await;
    bounds::an_old_entry_refuses_writes(it).await;
    bounds::what_is_written_through_comes_first(it).await;
    bounds::another_number_of_shards_is_refused_while_there_are_entries(it).await;
    bounds::shards_and_names_do_not_leak_into_each_other(it).await;
    bounds::every_byte_and_number_is_returned(it).await;
    bounds::what_makes_no_sense_is_refused(it).await;
    bounds::a_shard_that_is_lost_is_empty_and_versions_go_on(it, flush).await;
}

/// A shard of a name that no other check uses.
fn shard(name: &'static str) -> Shard<'static> {
    Shard {
        name,
        index: 0,
        of: 1,
    }
}

const WIDE: Bounds = Bounds {
    max_entries: 1000,
    max_age_ms: HOUR,
    max_first: 0,
};

fn change(key: &str, value: Option<&'static [u8]>) -> RawChange {
    RawChange {
        key: key.into(),
        value: value.map(Bytes::from_static),
    }
}

/// A write by a writer that no other write has.
fn write(changes: Vec<RawChange>) -> Write {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    Write {
        writer: format!("writer-{}", WRITERS.fetch_add(1, Relaxed)).into(),
        number: 1,
        remember_ms: HOUR,
        floor: 0,
        incarnation: 7,
        changes,
        bounds: WIDE,
        keep_ms: HOUR,
    }
}

async fn written(store: &dyn WriteBehindStore, shard: Shard<'_>, write: &Write) -> Written {
    store.write(shard, write).await.expect("an answer")
}

/// Writes a value; its version.
async fn put(
    store: &dyn WriteBehindStore,
    shard: Shard<'_>,
    key: &str,
    value: &'static [u8],
) -> u64 {
    let write = write(vec![change(key, Some(value))]);
    first(written(store, shard, &write).await)
}

fn first(written: Written) -> u64 {
    match written.outcome {
        WriteOutcome::Stored { first, .. } => first,
        other => panic!("not stored: {other:?}"),
    }
}

fn asks(max: usize, age_ms: u64, lease_ms: u64) -> Take {
    Take {
        holder: "sinker".into(),
        floor: 0,
        lease_ms,
        max,
        age_ms,
        keep_ms: HOUR,
    }
}

async fn take(store: &dyn WriteBehindStore, shard: Shard<'_>, asks: &Take) -> Taken {
    store.take(shard, asks).await.expect("an answer")
}

/// Takes what is due, for an hour.
async fn taken(store: &dyn WriteBehindStore, shard: Shard<'_>) -> (u64, Vec<TakenEntry>) {
    batch(take(store, shard, &asks(100, 0, HOUR)).await)
}

fn batch(taken: Taken) -> (u64, Vec<TakenEntry>) {
    match taken.batch {
        TakenBatch::Batch { fence, entries, .. } => (fence, entries),
        other => panic!("nothing taken: {other:?}"),
    }
}

fn settling(fence: u64, results: &[(&str, u64, EntryResult)]) -> Settle {
    let result = |(key, version, result): &(&str, u64, EntryResult)| {
        ((*key).into(), *version, result.clone())
    };
    Settle {
        fence,
        results: results.iter().map(result).collect(),
        pause_ms: None,
    }
}

async fn settle(
    store: &dyn WriteBehindStore,
    shard: Shard<'_>,
    fence: u64,
    results: &[(&str, u64, EntryResult)],
) -> bool {
    let settled = store.settle(shard, &settling(fence, results)).await;
    settled.expect("an answer")
}

async fn value(store: &dyn WriteBehindStore, shard: Shard<'_>, key: &str) -> Option<Bytes> {
    let read = store.read(shard, key).await.expect("an answer");
    read.and_then(|it| it.value)
}

async fn entries(store: &dyn WriteBehindStore, shard: Shard<'_>) -> u64 {
    store.state(shard).await.expect("an answer").head.entries
}

/// Takes as soon as there is something to take.
async fn taken_soon(
    store: &dyn WriteBehindStore,
    shard: Shard<'_>,
    asks: &Take,
) -> (u64, Vec<TakenEntry>) {
    let waiting = async {
        loop {
            let taken = take(store, shard, asks).await;
            if matches!(taken.batch, TakenBatch::Batch { .. }) {
                return batch(taken);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let within = tokio::time::timeout(SOON, waiting).await;
    within.expect("a batch is taken soon")
}

const SUNK: EntryResult = EntryResult::Sunk;
