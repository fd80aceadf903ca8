use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const LEASE_MS: u64 = 100;
const HOUR: u64 = 3_600_000;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    ClockBack(u64),
    Write {
        key: usize,
        front: bool,
    },
    Repeat,
    Take {
        max: usize,
        age_ms: u64,
    },
    Renew,
    /// By key of the batch: sunk, retried, dead or left out; and a pause.
    Settle {
        results: Vec<u8>,
        pause_ms: Option<u64>,
    },
    SettleOfZombie,
    Redrive(usize),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    prop_oneof![
        3 => (1..200u64).prop_map(Step::Pass),
        1 => (1..2 * HOUR).prop_map(Step::ClockBack),
        6 => (key.clone(), any::<bool>()).prop_map(|(key, front)| Step::Write { key, front }),
        1 => Just(Step::Repeat),
        5 => (1..5usize, prop_oneof![Just(0), 1..150u64]).prop_map(|(max, age_ms)| Step::Take { max, age_ms }),
        1 => Just(Step::Renew),
        4 => (prop::collection::vec(0..4u8, 4), prop::option::weighted(0.2, 1..200u64))
            .prop_map(|(results, pause_ms)| Step::Settle { results, pause_ms }),
        1 => Just(Step::SettleOfZombie),
        1 => key.prop_map(Step::Redrive),
        1 => Just(Step::Flush),
    ]
}

fn bounds() -> Bounds {
    Bounds {
        max_entries: 1000,
        max_age_ms: HOUR * 1000,
        max_first: 0,
    }
}

fn write(number: u64, key: &str, value: u64) -> Write {
    Write {
        writer: "writer".into(),
        number,
        remember_ms: HOUR * 100,
        floor: 0,
        incarnation: 1,
        changes: vec![RawChange {
            key: key.into(),
            value: Some(value.to_string().into()),
        }],
        bounds: bounds(),
        keep_ms: HOUR,
    }
}

fn take(max: usize, age_ms: u64) -> Take {
    Take {
        holder: "sinker".into(),
        floor: 0,
        lease_ms: LEASE_MS,
        max,
        age_ms,
        keep_ms: HOUR,
    }
}

fn stored(written: Written) -> u64 {
    match written.outcome {
        WriteOutcome::Stored { first, .. } => first,
        other => panic!("not stored: {other:?}"),
    }
}

fn batch(taken: Taken) -> (u64, Vec<TakenEntry>) {
    match taken.batch {
        TakenBatch::Batch { fence, entries, .. } => (fence, entries),
        other => panic!("nothing taken: {other:?}"),
    }
}

fn settle(fence: u64, results: Vec<(&str, u64, EntryResult)>) -> Settle {
    Settle {
        fence,
        results: results
            .into_iter()
            .map(|(key, version, it)| (key.into(), version, it))
            .collect(),
        pause_ms: None,
    }
}

/// What an observer knows of a key.
#[derive(Clone, Debug, Default)]
struct Key {
    /// The last acknowledged write that is not lost: version and value.
    last: Option<(u64, u64)>,
    /// The highest version that was ever given, also before a flush.
    highest: u64,
    /// The highest version that the sink has.
    sunk: u64,
    dead: bool,
}

proptest! {
    #[test]
    fn the_last_write_is_dirty_until_it_is_sunk_and_versions_never_go_back(steps in prop::collection::vec(step(), 1..80)) {
        let mut shown = HOUR * 10;
        let mut record = ShardRecord::new(1, 1);
        let mut known: HashMap<usize, Key> = HashMap::new();
        let (mut number, mut value, mut floor) = (0, 0, 0);
        let mut last: Option<(Write, u64)> = None;
        let mut held: Option<(u64, Vec<TakenEntry>)> = None;
        let mut zombies: Vec<(u64, Vec<TakenEntry>)> = Vec::new();
        for step in steps {
            match step {
                Step::Pass(ms) => shown += ms,
                Step::ClockBack(ms) => shown = shown.saturating_sub(ms).max(1),
                Step::Write { key, front } => {
                    (number, value) = (number + 1, value + 1);
                    let mut write = write(number, KEYS[key], value);
                    write.floor = floor;
                    if front {
                        write.bounds = Bounds { max_age_ms: 1, max_first: 10, ..bounds() };
                    }
                    let version = stored(record.write(&write, 1, shown));
                    let it = known.entry(key).or_default();
                    prop_assert!(version > it.highest, "{version} {it:?}");
                    *it = Key { last: Some((version, value)), highest: version, dead: false, ..*it };
                    floor = version;
                    last = Some((write, version));
                }
                Step::Repeat => if let Some((write, version)) = &last {
                    let repeated = record.write(write, 1, shown).outcome;
                    prop_assert_eq!(repeated, WriteOutcome::Repeated { first: *version });
                },
                Step::Take { max, age_ms } => {
                    let mut take = take(max, age_ms);
                    take.floor = floor;
                    if let TakenBatch::Batch { fence, entries, .. } = record.take(&take, shown).batch {
                        prop_assert!(fence > floor);
                        floor = fence;
                        prop_assert!(!entries.is_empty() && entries.len() <= max);
                        zombies.extend(held.replace((fence, entries)));
                    }
                }
                Step::Renew => if let Some((fence, _)) = &held {
                    prop_assert!(record.renew(*fence, LEASE_MS, shown));
                },
                Step::Settle { results, pause_ms } => if let Some((fence, entries)) = held.take() {
                    let mut all = Vec::new();
                    for (entry, result) in entries.iter().zip(results) {
                        let key = KEYS.iter().position(|it| **it == *entry.key).unwrap();
                        let it = known.get_mut(&key).unwrap();
                        let is_last = it.last.map(|it| it.0) == Some(entry.version);
                        let result = match result {
                            0 => {
                                // In order: the sink is never given an older value after a newer one.
                                prop_assert!(entry.version >= it.sunk);
                                it.sunk = entry.version;
                                if is_last {
                                    it.last = None;
                                }
                                EntryResult::Sunk
                            }
                            1 => EntryResult::Retry { after_ms: 50 },
                            2 => {
                                it.dead = is_last;
                                EntryResult::Dead { reason: "no".into() }
                            }
                            _ => continue,
                        };
                        all.push((&*entry.key, entry.version, result));
                    }
                    let settle = Settle { pause_ms, ..settle(fence, all) };
                    prop_assert!(record.settle(&settle, shown));
                    let after = record.clone();
                    prop_assert!(record.settle(&settle, shown), "a repetition");
                    prop_assert_eq!(&record, &after);
                },
                Step::SettleOfZombie => if let Some((fence, entries)) = zombies.last() {
                    let before = record.clone();
                    let all = entries.iter().map(|it| (&*it.key, it.version, EntryResult::Sunk)).collect();
                    prop_assert!(!record.settle(&settle(*fence, all), shown));
                    prop_assert!(!record.renew(*fence, LEASE_MS, shown));
                    prop_assert_eq!(&record, &before);
                },
                Step::Redrive(key) => {
                    let is_dead = known.get(&key).is_some_and(|it| it.dead);
                    let many = record.act_on_dead(&[KEYS[key].into()], DeadAction::Redrive, shown);
                    prop_assert_eq!(many, u64::from(is_dead));
                    known.entry(key).or_default().dead = false;
                }
                Step::Flush => {
                    record = ShardRecord::new(record.incarnation + 1, 1);
                    for it in known.values_mut() {
                        (it.last, it.dead) = (None, false);
                    }
                    (last, held) = (None, None);
                    zombies.clear();
                }
            }
            for (key, it) in &known {
                let read = record.read(KEYS[*key]).map(|it| (it.version, it.value));
                let expected = it.last.filter(|_| !it.dead);
                let expected = expected.map(|(version, value)| (version, Some(value.to_string().into())));
                prop_assert_eq!(read, expected);
            }
            let state = record.state(shown);
            prop_assert_eq!(state.head.entries as usize, known.values().filter(|it| it.last.is_some() && !it.dead).count());
            prop_assert_eq!(state.dead as usize, known.values().filter(|it| it.dead).count());
        }
        // Whatever has happened: what is dirty can be sunk.
        shown += 24 * HOUR;
        while let TakenBatch::Batch { fence, entries, .. } = record.take(&take(10, 0), shown).batch {
            let all = entries.iter().map(|it| (&*it.key, it.version, EntryResult::Sunk)).collect();
            prop_assert!(record.settle(&settle(fence, all), shown));
        }
        prop_assert_eq!(record.state(shown).head.entries, 0);
    }
}

#[test]
fn a_write_while_its_key_is_sunk_stays_dirty_and_is_sunk_afterwards() {
    let mut record = ShardRecord::new(1, 1);
    let first = stored(record.write(&write(1, "a", 1), 1, 1000));
    let (fence, entries) = batch(record.take(&take(10, 0), 1000));
    assert_eq!(entries[0].version, first);
    let second = stored(record.write(&write(2, "a", 2), 1, 1001));
    assert!(record.settle(&settle(fence, vec![("a", first, EntryResult::Sunk)]), 1002));
    let (_, entries) = batch(record.take(&take(10, 0), 1002));
    assert_eq!(
        (entries[0].version, entries[0].value.as_deref()),
        (second, Some(&b"2"[..]))
    );
}

#[test]
fn a_batch_waits_for_more_and_for_no_longer_than_its_age() {
    let mut record = ShardRecord::new(1, 1);
    record.write(&write(1, "a", 1), 1, 1000);
    let early = record.take(&take(2, 100), 1040).batch;
    let expected = TakenBatch::NotDue {
        in_ms: 60,
        is_paused: false,
    };
    assert_eq!(early, expected);
    let mut full = record.clone();
    full.write(&write(2, "b", 1), 1, 1040);
    assert_eq!(batch(full.take(&take(2, 100), 1040)).1.len(), 2);
    assert_eq!(batch(record.take(&take(2, 100), 1100)).1.len(), 1);
}

#[test]
fn a_lease_keeps_others_away_until_it_ends_and_its_holder_may_settle_until_another_takes() {
    let mut record = ShardRecord::new(1, 1);
    let version = stored(record.write(&write(1, "a", 1), 1, 1000));
    let (fence, _) = batch(record.take(&take(10, 0), 1000));
    let busy = TakenBatch::Busy { for_ms: 1 };
    assert_eq!(record.take(&take(10, 0), 1099).batch, busy);
    let mut late = record.clone();
    assert!(late.settle(
        &settle(fence, vec![("a", version, EntryResult::Sunk)]),
        1500
    ));
    let (other, _) = batch(record.take(&take(10, 0), 1100));
    assert!(other > fence);
    assert!(!record.settle(
        &settle(fence, vec![("a", version, EntryResult::Sunk)]),
        1101
    ));
    assert!(record.read("a").is_some());
}

#[test]
fn a_full_shard_takes_no_more_keys_but_later_values_of_those_it_has() {
    let mut record = ShardRecord::new(1, 1);
    let bounded = |number, key| Write {
        bounds: Bounds {
            max_entries: 2,
            max_age_ms: 1000,
            max_first: 0,
        },
        ..write(number, key, number)
    };
    stored(record.write(&bounded(1, "a"), 1, 1000));
    stored(record.write(&bounded(2, "b"), 1, 1000));
    let before = record.clone();
    let full = record.write(&bounded(3, "c"), 1, 1500).outcome;
    assert_eq!(full, WriteOutcome::Full { oldest_ms: 500 });
    assert_eq!(record, before, "nothing is stored");
    stored(record.write(&bounded(4, "a"), 1, 1500));
    // The oldest is too old: nothing is taken.
    let full = record.write(&bounded(5, "a"), 1, 2000).outcome;
    assert_eq!(full, WriteOutcome::Full { oldest_ms: 1000 });
}

#[test]
fn what_is_written_through_is_taken_before_all_others() {
    let mut record = ShardRecord::new(1, 1);
    stored(record.write(&write(1, "a", 1), 1, 1000));
    let through = Write {
        bounds: Bounds {
            max_entries: 1,
            max_age_ms: HOUR,
            max_first: 2,
        },
        ..write(2, "b", 2)
    };
    assert!(matches!(
        record.write(&through, 1, 1000).outcome,
        WriteOutcome::Stored { is_full: true, .. }
    ));
    let over = Write {
        number: 3,
        changes: write(3, "c", 3).changes,
        ..through
    };
    assert_eq!(
        record.write(&over, 1, 1000).outcome,
        WriteOutcome::Full { oldest_ms: 0 }
    );
    // At once, although the batch would wait.
    let (_, entries) = batch(record.take(&take(1, HOUR), 1000));
    assert_eq!(&*entries[0].key, "b");
}

#[test]
fn a_dead_letter_is_gone_when_its_key_is_written_again() {
    let mut record = ShardRecord::new(1, 1);
    let version = stored(record.write(&write(1, "a", 1), 1, 1000));
    let (fence, _) = batch(record.take(&take(10, 0), 1000));
    let dead = EntryResult::Dead {
        reason: "no".into(),
    };
    assert!(record.settle(&settle(fence, vec![("a", version, dead)]), 1000));
    assert_eq!(record.read("a"), None);
    let letters = record.dead(None, 10, 1200);
    assert_eq!(
        (letters.len(), letters[0].attempts, letters[0].age_ms),
        (1, 1, 200)
    );
    let later = stored(record.write(&write(2, "a", 2), 1, 1300));
    assert!(later > version && record.dead(None, 10, 1300).is_empty());
}

#[test]
fn a_shard_with_entries_refuses_another_number_of_shards() {
    let mut record = ShardRecord::new(1, 8);
    let version = stored(record.write(&write(1, "a", 1), 8, 1000));
    let refused = record.write(&write(2, "b", 1), 16, 1000).outcome;
    assert_eq!(refused, WriteOutcome::Resharded { shards: 8 });
    let (fence, _) = batch(record.take(&take(10, 0), 1000));
    assert!(record.settle(
        &settle(fence, vec![("a", version, EntryResult::Sunk)]),
        1000
    ));
    stored(record.write(&write(2, "b", 1), 16, 1000));
}

#[test]
fn a_shard_that_pauses_gives_no_batches_and_counts_its_pauses_until_a_success() {
    let mut record = ShardRecord::new(1, 1);
    let version = stored(record.write(&write(1, "a", 1), 1, 1000));
    let mut now = 1000;
    for pauses in 0..3 {
        let TakenBatch::Batch {
            fence,
            pauses: counted,
            ..
        } = record.take(&take(10, 0), now).batch
        else {
            panic!("nothing taken");
        };
        assert_eq!(counted, pauses);
        let paused = Settle {
            pause_ms: Some(500),
            ..settle(fence, Vec::new())
        };
        assert!(record.settle(&paused, now));
        let waits = TakenBatch::NotDue {
            in_ms: 500,
            is_paused: true,
        };
        assert_eq!(record.take(&take(10, 0), now).batch, waits);
        now += 500;
    }
    let (fence, _) = batch(record.take(&take(10, 0), now));
    assert!(record.settle(&settle(fence, vec![("a", version, EntryResult::Sunk)]), now));
    stored(record.write(&write(2, "a", 2), 1, now));
    assert!(matches!(
        record.take(&take(10, 0), now).batch,
        TakenBatch::Batch { pauses: 0, .. }
    ));
}
