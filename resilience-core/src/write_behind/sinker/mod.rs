//! The task that sinks one shard: takes a batch, gives it to the sink, and ends it.

mod lease;

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use self::lease::Lease;
use super::{
    PATTERN, Shared, WriteBehindStore,
    change::{Batch, Change},
    reads::decode,
    record::{EntryResult, Settle, Take, TakenBatch, TakenEntry},
    sink::Sink,
    store::validate,
    sweep::{Answer, Away, Fate, Sweep},
};
use crate::{
    backoff::Backoff,
    codec::Codec,
    fleet::{HandleTasks, StoreError, jittered, millis},
};

const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3_600);
/// How long a handle that was dropped sinks what waits.
const LONGEST_END: Duration = Duration::from_secs(10);
/// After a step that failed.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) fn start<V: Send + Sync + 'static>(
    shared: &Arc<Shared>,
    sink: Option<Sink<V>>,
    codec: &Arc<dyn Codec<V>>,
    tasks: &HandleTasks,
    runtime: &Handle,
) {
    tasks.spawn(runtime, announce(Arc::clone(shared), tasks.clone()));
    let Some(sink) = sink else {
        return;
    };
    for index in 0..shared.settings.shards {
        let sinker = Sinker {
            shared: Arc::clone(shared),
            codec: Arc::clone(codec),
            sink: Arc::clone(&sink),
            tasks: tasks.clone(),
            index,
            runtime: runtime.clone(),
            is_failing: false,
        };
        tasks.spawn(runtime, sinker.run());
    }
}

async fn announce(shared: Arc<Shared>, tasks: HandleTasks) {
    while !tasks.is_closing() {
        if let Some(announced) = shared.client.store().announce(&shared.name) {
            // Not worth an event: it is repeated.
            let _ = timeout(shared.client.budget(), announced).await;
        }
        tokio::select! {
            () = tasks.closing() => {}
            () = sleep(jittered(ANNOUNCE_INTERVAL)) => {}
        }
    }
}

struct Sinker<V> {
    shared: Arc<Shared>,
    codec: Arc<dyn Codec<V>>,
    sink: Sink<V>,
    tasks: HandleTasks,
    index: u32,
    runtime: Handle,
    /// The sink has failed, and has not worked since.
    is_failing: bool,
}

/// What a turn came to.
enum Turn {
    /// A batch was sunk, up to this version at least.
    Worked {
        lowest: u64,
    },
    Idle,
    /// Nothing is due before this.
    NotDue {
        wait: Duration,
        is_paused: bool,
    },
    /// Another process sinks.
    Busy(Duration),
    /// The store does not answer.
    Failed,
    /// The time of the shutdown is over.
    Cut,
}

impl<V: Send + Sync + 'static> Sinker<V> {
    async fn run(mut self) {
        let mut due = Instant::now() + self.shared.settings.max_wait;
        while !self.tasks.is_closing() {
            tokio::select! {
                () = self.tasks.closing() => break,
                () = self.shared.wakers[self.index as usize].woken() => {
                    let soon = Instant::now() + self.patience();
                    due = due.min(soon);
                    if !self.shared.is_flushing() {
                        continue;
                    }
                }
                () = sleep_until(due) => {}
            }
            due = Instant::now() + self.next(self.patience()).await;
        }
        self.drain().await;
    }

    /// How long a batch waits for more.
    fn patience(&self) -> Duration {
        if self.shared.is_flushing() {
            Duration::ZERO
        } else {
            self.shared.settings.max_wait
        }
    }

    /// One turn, and how long to wait for the next.
    async fn next(&mut self, age: Duration) -> Duration {
        let poll = jittered(self.shared.settings.poll);
        match self.turn(age).await {
            Turn::Worked { .. } | Turn::Cut => Duration::ZERO,
            Turn::Idle => poll,
            Turn::NotDue { wait, .. } | Turn::Busy(wait) => wait.min(poll),
            Turn::Failed => poll.min(PAUSE),
        }
    }

    /// Sinks what waited when the shutdown began.
    async fn drain(&mut self) {
        let begun = self.shared.seen[self.index as usize].version();
        let bound = Instant::now() + LONGEST_END;
        let left = loop {
            let wait = match self.turn(Duration::ZERO).await {
                Turn::Worked { lowest } if lowest > begun => break false,
                Turn::Worked { .. } => Duration::ZERO,
                Turn::Idle => break false,
                // Only what waits for another try.
                Turn::NotDue {
                    is_paused: false, ..
                } => break true,
                Turn::NotDue { wait, .. } | Turn::Busy(wait) => wait.min(PAUSE),
                Turn::Failed => PAUSE,
                Turn::Cut => break true,
            };
            if self.shared.dropped.load(Relaxed) && Instant::now() >= bound {
                break true;
            }
            tokio::select! {
                biased;
                () = self.tasks.overdue() => break true,
                () = sleep(wait) => {}
            }
        };
        let entries = self.shared.seen[self.index as usize].entries.load(Relaxed);
        if left && entries > 0 {
            tracing::warn!(target: "resilience", pattern = PATTERN, name = &*self.shared.name, shard = self.index, entries, "write-behind ends with entries in the store");
        }
    }

    async fn turn(&mut self, age: Duration) -> Turn {
        let shared = Arc::clone(&self.shared);
        let settings = &shared.settings;
        let seen = &shared.seen[self.index as usize];
        let known = seen.known();
        let take = Take {
            holder: Arc::clone(&settings.holder),
            floor: known.version,
            lease_ms: millis(settings.lease),
            max: settings.batch,
            age_ms: millis(age),
            keep_ms: settings.keep_ms,
        };
        let shard = shared.shard(self.index);
        let sent = Instant::now();
        let step = |store| WriteBehindStore::take(store, shard, &take);
        let taken = match shared.client.call(step).await {
            Ok(taken) => taken,
            Err(error) => return self.failed(&error),
        };
        shared.look(self.index, known, taken.before);
        seen.oldest_ms.store(taken.oldest_ms, Relaxed);
        seen.dead.store(taken.dead, Relaxed);
        match taken.batch {
            TakenBatch::Idle => Turn::Idle,
            TakenBatch::NotDue { in_ms, is_paused } => Turn::NotDue {
                wait: Duration::from_millis(in_ms),
                is_paused,
            },
            TakenBatch::Busy { for_ms } => Turn::Busy(Duration::from_millis(for_ms)),
            TakenBatch::Batch {
                fence,
                pauses,
                entries,
            } => {
                seen.gave(fence);
                shared.totals.batches.fetch_add(1, Relaxed);
                let lease = Lease::new(fence, sent, settings.lease);
                self.sink_batch(lease, pauses, entries).await
            }
        }
    }

    fn failed(&self, error: &StoreError) -> Turn {
        self.shared.totals.store_errors.fetch_add(1, Relaxed);
        tracing::debug!(target: "resilience", pattern = PATTERN, name = &*self.shared.name, shard = self.index, %error, "a step of the write-behind failed");
        Turn::Failed
    }

    /// Gives a batch to the sink, and ends it.
    async fn sink_batch(
        &mut self,
        mut lease: Lease,
        pauses: u64,
        entries: Vec<TakenEntry>,
    ) -> Turn {
        let lowest = entries.iter().map(|it| it.version).min().unwrap_or(0);
        let (readable, mut results) = self.decode(&entries);
        let sinking = Sinking::begin(&self.shared, readable.len());
        let mut sweep = Sweep::new(readable.len(), pauses);
        let mut cut = false;
        while let Some(part) = sweep.next() {
            match self.call(&mut lease, &readable, part.clone()).await {
                Called::Answer(answer) => sweep.answered(part, answer),
                Called::Lost => return self.lost(),
                Called::Cut => {
                    cut = true;
                    break;
                }
            }
        }
        drop(sinking);
        let (fates, away) = sweep.end();
        let away = away.filter(|_| !cut);
        for (change, fate) in readable.iter().zip(fates) {
            let result = match fate {
                Fate::Sunk => EntryResult::Sunk,
                Fate::Failed(reason) => self.refused(change.attempts, &change.key, reason),
                Fate::Untried => continue,
            };
            results.push((Arc::clone(&change.key), change.version, result));
        }
        let pause = away.map(|away| self.pause(pauses, &away));
        let settle = Settle {
            fence: lease.fence(),
            results,
            pause_ms: pause.map(millis),
        };
        match self.settle(&settle).await {
            Turn::Worked { .. } if cut => Turn::Cut,
            Turn::Worked { .. } => Turn::Worked { lowest },
            turn => turn,
        }
    }

    /// The changes of entries; those that cannot be read are refused.
    fn decode(&self, entries: &[TakenEntry]) -> (Vec<Arc<Change<V>>>, Results) {
        let (mut readable, mut results) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in entries {
            match decode(&*self.codec, entry.value.clone()) {
                Ok(value) => readable.push(Arc::new(Change {
                    key: Arc::clone(&entry.key),
                    version: entry.version,
                    attempts: entry.attempts,
                    value,
                })),
                Err(error) => {
                    let reason = format!("the value cannot be decoded: {error}");
                    let result = self.refused(entry.attempts, &entry.key, reason);
                    results.push((Arc::clone(&entry.key), entry.version, result));
                }
            }
        }
        (readable, results)
    }

    /// Calls the sink, in a task of its own: one that blocks its thread does not keep the lease from being renewed.
    async fn call(
        &self,
        lease: &mut Lease,
        changes: &[Arc<Change<V>>],
        part: Range<usize>,
    ) -> Called {
        if !lease.covers(self.shared.client.budget()) && !self.renew(lease).await {
            return Called::Lost;
        }
        let longest = self.shared.settings.sink_timeout;
        let until = Instant::now() + longest;
        // Aborts the call when it is dropped.
        let mut calling = JoinSet::new();
        let batch = Batch::new(changes[part].to_vec());
        calling.spawn_on((self.sink)(batch), &self.runtime);
        loop {
            tokio::select! {
                biased;
                answer = calling.join_next() => {
                    return Called::Answer(match answer {
                        Some(Ok(answer)) => answer,
                        _ => Answer::Refused("the sink panicked".to_owned()),
                    });
                }
                () = self.tasks.overdue() => return Called::Cut,
                () = sleep_until(until) => {
                    let reason = format!("no result within {longest:?}");
                    return Called::Answer(Answer::Away(Away { reason, wait: None }));
                }
                () = sleep_until(lease.renew_at()) => {
                    if !self.renew(lease).await {
                        return Called::Lost;
                    }
                }
            }
        }
    }

    /// Renews the lease; whether it is certain that it is still this process'.
    async fn renew(&self, lease: &mut Lease) -> bool {
        let shared = &self.shared;
        let (shard, lease_ms) = (shared.shard(self.index), millis(shared.settings.lease));
        let fence = lease.fence();
        let sent = Instant::now();
        let step = |store| WriteBehindStore::renew(store, shard, fence, lease_ms);
        // Repeated for as long as the lease is certain.
        let until = sent.max(lease.certain());
        match tokio::time::timeout_at(until, shared.client.call_until(until, step)).await {
            Ok(Ok(true)) => {
                lease.renewed(sent);
                true
            }
            Ok(Ok(false)) => false,
            Ok(Err(_)) | Err(_) => {
                shared.totals.store_errors.fetch_add(1, Relaxed);
                false
            }
        }
    }

    fn lost(&self) -> Turn {
        self.shared.totals.leases_lost.fetch_add(1, Relaxed);
        tracing::warn!(target: "resilience", pattern = PATTERN, name = &*self.shared.name, shard = self.index, "write-behind lost its lease");
        Turn::Failed
    }

    /// What becomes of an entry that the sink has refused.
    fn refused(&self, attempts: u32, key: &str, mut reason: String) -> EntryResult {
        let settings = &self.shared.settings;
        if attempts + 1 < settings.max_attempts {
            let wait = wait(&settings.backoff, attempts.into());
            return EntryResult::Retry {
                after_ms: millis(wait),
            };
        }
        let end = (0..=validate::MAX_REASON.min(reason.len()))
            .rev()
            .find(|at| reason.is_char_boundary(*at));
        reason.truncate(end.unwrap_or(0));
        tracing::warn!(target: "resilience", pattern = PATTERN, name = &*self.shared.name, key, reason, "write-behind dead letter");
        EntryResult::Dead { reason }
    }

    /// How long a shard pauses, because the sink is away.
    fn pause(&mut self, pauses: u64, away: &Away) -> Duration {
        self.shared.totals.pauses.fetch_add(1, Relaxed);
        let wait = wait(&self.shared.settings.backoff, pauses);
        let wait = wait.max(away.wait.unwrap_or_default()).min(LONGEST_PAUSE);
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(target: "resilience", pattern = PATTERN, name = &*self.shared.name, shard = self.index, reason = away.reason, ?wait, "write-behind pauses");
        }
        wait
    }

    async fn settle(&mut self, settle: &Settle) -> Turn {
        let shared = Arc::clone(&self.shared);
        let shard = shared.shard(self.index);
        let until = Instant::now() + shared.settings.lease;
        let step = |store| WriteBehindStore::settle(store, shard, settle);
        let settled = tokio::select! {
            settled = shared.client.call_until(until, step) => settled,
            // Once more, at the end.
            () = self.tasks.overdue() => shared.client.attempt(step).await,
        };
        match settled {
            Ok(true) => {
                self.count(settle);
                Turn::Worked { lowest: 0 }
            }
            Ok(false) => self.lost(),
            Err(error) => self.failed(&error),
        }
    }

    fn count(&mut self, settle: &Settle) {
        let totals = &self.shared.totals;
        let mut is_sunk = false;
        for (.., result) in &settle.results {
            let total = match result {
                EntryResult::Sunk => {
                    is_sunk = true;
                    &totals.sunk
                }
                EntryResult::Retry { .. } => &totals.retried,
                EntryResult::Dead { .. } => &totals.dead,
            };
            total.fetch_add(1, Relaxed);
        }
        if is_sunk && std::mem::replace(&mut self.is_failing, false) {
            tracing::info!(target: "resilience", pattern = PATTERN, name = &*self.shared.name, shard = self.index, "write-behind sinks again");
        }
    }
}

type Results = Vec<(Arc<str>, u64, EntryResult)>;

/// What a call of the sink came to.
enum Called {
    Answer(Answer),
    /// Another process may have the shard.
    Lost,
    /// The time of the shutdown is over.
    Cut,
}

/// Longer waits are not believed.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The wait after `failures` earlier failures.
fn wait(backoff: &Backoff, failures: u64) -> Duration {
    let at = usize::try_from(failures)
        .unwrap_or(usize::MAX)
        .min(MOST_STEPS);
    let mut last = Duration::ZERO;
    for wait in backoff.delays().take(at + 1) {
        last = wait;
    }
    last.min(LONGEST_PAUSE)
}

/// Steps of a backoff after which it grows no more.
const MOST_STEPS: usize = 24;

/// Counts changes as being sunk.
struct Sinking<'a>(&'a Shared, u64);

impl<'a> Sinking<'a> {
    fn begin(shared: &'a Shared, many: usize) -> Self {
        shared.totals.sinking.fetch_add(many as u64, Relaxed);
        Self(shared, many as u64)
    }
}

impl Drop for Sinking<'_> {
    fn drop(&mut self) {
        self.0.totals.sinking.fetch_sub(self.1, Relaxed);
    }
}
