//! Writes.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    Flushing, LOOK, Shared, WriteBehind,
    change::Acknowledged,
    error::WriteError,
    record::{RawChange, Write, WriteOutcome, Written},
    store::{Shard, validate},
};
use crate::{
    deadline,
    error::Reason,
    fleet::{StoreError, millis},
};

/// One above the largest number that scripts count with.
const BEYOND: u64 = validate::BEYOND;

impl<V: Send + Sync + 'static> WriteBehind<V> {
    /// Writes a value; returns when the store has it. A later write of the key takes its place, also before it is sunk.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write(&self, key: &str, value: &V) -> Result<Acknowledged, WriteError> {
        self.write_one(key, Some(value)).await
    }

    /// Writes that a key has no value.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn delete(&self, key: &str) -> Result<Acknowledged, WriteError> {
        self.write_one(key, None).await
    }

    async fn write_one(&self, key: &str, value: Option<&V>) -> Result<Acknowledged, WriteError> {
        let change = self.encode(key, value)?;
        let shard = self.shared.of_key(key);
        let written = self.write_shard(shard, vec![change]).await?;
        written.into_iter().next().ok_or_else(|| {
            WriteError::Unknown(StoreError::new("the store answered for no change", true))
        })
    }

    /// Writes many values (`None`: the key is deleted), with one step per shard. Those of one shard are stored together or
    /// not at all; those of another may be stored when the call fails. Returns what was acknowledged, in the order of the
    /// changes. Of several changes of one key the last one counts, and has its version.
    ///
    /// # Errors
    /// The first one; see [`WriteError`].
    pub async fn write_all<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a str, Option<&'a V>)>,
    ) -> Result<Vec<Acknowledged>, WriteError>
    where
        V: 'a,
    {
        let mut places = Vec::new();
        let mut shards: Vec<Vec<RawChange>> =
            vec![Vec::new(); self.shared.settings.shards as usize];
        let mut known = HashMap::new();
        for (key, value) in changes {
            let change = self.encode(key, value)?;
            let shard = self.shared.of_key(key).index as usize;
            let of_shard = &mut shards[shard];
            let at = *known.entry(key).or_insert(of_shard.len());
            match of_shard.get_mut(at) {
                Some(earlier) => *earlier = change,
                None => of_shard.push(change),
            }
            places.push((shard, at));
        }
        let writes = (0..).zip(shards).map(async |(index, changes)| {
            let mut written = Vec::with_capacity(changes.len());
            for part in changes.chunks(validate::MAX_BATCH) {
                let shard = self.shared.shard(index);
                written.extend(self.write_shard(shard, part.to_vec()).await?);
            }
            Ok::<_, WriteError>(written)
        });
        // All are ended, so that it is known of each what became of it.
        let written = futures_util::future::join_all(writes).await;
        let written: Vec<_> = written.into_iter().collect::<Result<_, _>>()?;
        Ok(places
            .iter()
            .map(|(shard, at)| written[*shard][*at])
            .collect())
    }

    fn encode(&self, key: &str, value: Option<&V>) -> Result<RawChange, WriteError> {
        let value = value.map(|it| self.codec.encode(it)).transpose();
        Ok(RawChange {
            key: key.into(),
            value: value.map_err(WriteError::Encode)?.map(Into::into),
        })
    }

    async fn write_shard(
        &self,
        shard: Shard<'_>,
        changes: Vec<RawChange>,
    ) -> Result<Vec<Acknowledged>, WriteError> {
        let shared = &self.shared;
        let many = changes.len() as u64;
        if self.owner.tasks.is_closing() {
            return Err(shared.rejected(many, Reason::ShuttingDown, None));
        }
        let last = changes.last().map(|it| Arc::clone(&it.key));
        let until = shared.until();
        let (first, is_full) = shared.store(shard, changes, until).await?;
        shared.wakers[shard.index as usize].wake();
        let mut sunk = false;
        if is_full && let Some(key) = last {
            sunk = shared
                .wait_until_sunk(shard, &key, first + many - 1, until)
                .await;
        }
        let acknowledged = |version| Acknowledged { version, sunk };
        Ok((first..first + many).map(acknowledged).collect())
    }
}

impl Shared {
    fn until(&self) -> Instant {
        let until = Instant::now() + self.settings.timeout;
        deadline::current().map_or(until, |it| until.min(it.instant()))
    }

    fn rejected(&self, many: u64, reason: Reason, retry_after: Option<Duration>) -> WriteError {
        self.totals.rejected.fetch_add(many, Relaxed);
        WriteError::Rejected(self.reject(reason, retry_after))
    }

    /// Stores changes of one shard. Returns the version of the first one, and whether the shard is full.
    async fn store(
        &self,
        shard: Shard<'_>,
        changes: Vec<RawChange>,
        until: Instant,
    ) -> Result<(u64, bool), WriteError> {
        let many = changes.len() as u64;
        if changes.is_empty() {
            return Ok((1, false));
        }
        let seen = &self.seen[shard.index as usize];
        let known = seen.known();
        // Not given back when the call is dropped, or its outcome is not known: what was sent may still arrive.
        let sequence = self.writers.take();
        let write = Write {
            writer: Arc::clone(&sequence.producer),
            number: sequence.next,
            remember_ms: millis(self.settings.timeout * 4).max(REMEMBER_MS),
            floor: known.version,
            incarnation: fastrand::u64(1..BEYOND),
            changes,
            bounds: self.settings.bounds,
            keep_ms: self.settings.keep_ms,
        };
        validate::write(&write).map_err(WriteError::Invalid)?;
        if !self.client.accepts_calls() {
            return Err(self.rejected(many, Reason::StoreUnreachable, None));
        }
        let step = |store| super::WriteBehindStore::write(store, shard, &write);
        let written = match self.client.call_until(until, step).await {
            Ok(written) => written,
            Err(error) => {
                self.totals.failed.fetch_add(many, Relaxed);
                return Err(if error.ambiguous {
                    WriteError::Unknown(error)
                } else {
                    WriteError::Refused(error)
                });
            }
        };
        self.writers.give_back(sequence, 1);
        self.look(shard.index, known, written.before);
        self.stored(shard, &write, written)
    }

    fn stored(
        &self,
        shard: Shard<'_>,
        write: &Write,
        written: Written,
    ) -> Result<(u64, bool), WriteError> {
        let many = write.changes.len() as u64;
        let seen = &self.seen[shard.index as usize];
        match written.outcome {
            WriteOutcome::Stored { first, is_full } => {
                if written.before.incarnation == 0 {
                    seen.made(write.incarnation);
                }
                seen.gave(first + many - 1);
                // At least one: that a loss of it is noticed.
                seen.entries.store(written.before.entries + 1, Relaxed);
                self.totals.stored.fetch_add(many, Relaxed);
                Ok((first, is_full))
            }
            WriteOutcome::Repeated { first } => {
                seen.gave(first + many - 1);
                self.totals.repeated.fetch_add(many, Relaxed);
                Ok((first, false))
            }
            WriteOutcome::Full { .. } => {
                let wait = self.settings.max_wait.max(Duration::from_millis(100));
                Err(self.rejected(many, Reason::SinkBehind, Some(wait)))
            }
            WriteOutcome::Resharded { shards } => {
                self.totals.failed.fetch_add(many, Relaxed);
                let ours = self.settings.shards;
                let reason = format!(
                    "the write-behind has entries in {shards} shards, this handle is set to {ours}: let all entries be sunk before `shards` is changed"
                );
                Err(WriteError::Invalid(StoreError::new(reason, false)))
            }
            WriteOutcome::Late => {
                self.totals.failed.fetch_add(many, Relaxed);
                let reason = "a later write of the same writer was stored before";
                Err(WriteError::Refused(StoreError::new(reason, false)))
            }
        }
    }

    /// Waits until a version is sunk, or was taken the place of; whether it is.
    async fn wait_until_sunk(
        &self,
        shard: Shard<'_>,
        key: &str,
        version: u64,
        until: Instant,
    ) -> bool {
        let _flushing = Flushing::begin(self);
        loop {
            self.wakers[shard.index as usize].wake();
            let read = self.client.call(|store| store.read(shard, key)).await;
            match read {
                Ok(Some(entry)) if entry.version <= version => {}
                // Another write took its place: no one waits for this value any more.
                Ok(_) => return true,
                Err(_) => {}
            }
            if Instant::now() + LOOK >= until {
                return false;
            }
            sleep(LOOK).await;
        }
    }
}

/// How long the number of a write is remembered at least.
const REMEMBER_MS: u64 = 60_000;
