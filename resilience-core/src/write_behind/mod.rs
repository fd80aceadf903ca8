//! Write-behind: writes that are acknowledged when a store has them, and that reach the database later, in batches.
//!
//! For values that change more often than their database can be written: counters, positions, carts, sessions, documents that are
//! saved while they are typed. Of several changes of a key only the last one is written. Not for events of which each one counts
//! (see [`stream`](crate::stream)). Not for what must be visible in the database when the call returns: see
//! `Cache::write`.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::write_behind::{Batch, InProcessWriteBehind, WriteBehind};
//!
//! # async fn upsert(key: &str, version: u64, total: Option<&u64>) -> std::io::Result<()> { let _ = (key, version, total); Ok(()) }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = InProcessWriteBehind::new(); // or `redis.write_behind()`
//! let carts = WriteBehind::<u64>::builder("carts", store)
//!     .sink(|batch: Batch<u64>| async move {
//!         for change in &batch {
//!             // `None`: the key was deleted.
//!             upsert(change.key(), change.version(), change.value()).await?;
//!         }
//!         Ok::<_, std::io::Error>(())
//!     })
//!     .build()?;
//!
//! carts.write("customer-3", &1200).await?; // acknowledged: the store has it
//! let now = carts.read("customer-3").await?.expect("not written to the database yet");
//! assert_eq!(now.value(), Some(&1200));
//! carts.shutdown(Duration::from_secs(10)).await?; // written to the database
//! # Ok(()) }
//! ```
//!
//! # What is promised
//! - A write that was acknowledged is not lost when processes are killed, at any moment: it is in the store until the sink has
//!   returned success for it, or for a later write of its key. It is as durable as the store is.
//! - The last write of a key wins. Each write has a [version](Change::version), which rises with every write of its key: also after
//!   the key was sunk, after the store lost its data, and when a clock is set back.
//! - The sink is given the changes of a key in the order of their versions, by one process at a time. A change that is written while
//!   an earlier one of its key is being sunk is sunk after it.
//! - A write that is repeated after a lost answer is stored once.
//! - A key that the sink refuses does not keep others from being sunk. It is tried again, and at last set aside as a [dead
//!   letter](DeadChange), until it is written again, [redriven](WriteBehind::redrive) or [discarded](WriteBehind::discard).
//!
//! # What a sink must do
//! A sink is called at least once for a change: a process may be killed between the sink's success and its record of it. And a
//! process that was stopped for longer than its [lease](WriteBehindBuilder::lease) may have a call of its sink in progress while another
//! process sinks later changes. So a sink compares versions, in the same statement that writes:
//!
//! ```sql
//! insert into carts (key, version, total) values ($1, $2, $3)
//! on conflict (key) do update set version = $2, total = $3 where carts.version < $2
//! ```
//!
//! A deletion is written in the same way, as a row with a version and without a value; rows of deletions may be removed when they are
//! older than any lease and any statement (a day is long enough). A sink that deletes the row instead lets a late write of a stopped
//! process bring the value back.
//!
//! # Processes
//! Any number of processes write, and any number of those with a [sink](WriteBehindBuilder::sink) sink. Keys are divided into
//! [shards](WriteBehindBuilder::shards). A shard is sunk by one process at a time, under a lease that is taken for a batch, renewed
//! while the sink runs, and given back after it. A process that loses its lease drops its call of the sink, and what it records
//! afterwards changes nothing.
//!
//! # Reads
//! [`read`](WriteBehind::read) returns what is not sunk yet, and [`read_or_load`](WriteBehind::read_or_load) that or what a loader
//! finds in the database. A cache in front takes [`through`](WriteBehind::through) as its loader, and writes with
//! `cache.write(&key, value, || write_behind.write(..))`. Invalidating the cache changes nothing here. A dead letter is not
//! read: the database's value is.
//!
//! # Back-pressure
//! With [`max_entries`](WriteBehindBuilder::max_entries) keys that are not sunk, or when the oldest of them is older than
//! [`max_age`](WriteBehindBuilder::max_age), writes are rejected with [`Reason::SinkBehind`](crate::Reason::SinkBehind); or, with
//! [`write_through_when_full`](WriteBehindBuilder::write_through_when_full), sunk first, and waited for.
//!
//! # Errors
//! [`WriteError`] tells a write that was not done from one of which that is not known. The store away: writes fail, and are never
//! acknowledged; what is in the store is sunk when it is back.
//!
//! # Events
//! | event | level | when |
//! |---|---|---|
//! | `write-behind lost its entries` | `WARN` | the store has lost what it acknowledged: it was flushed, or came back without its last writes |
//! | `write-behind pauses` | `WARN` | the sink fails; told once until it works again |
//! | `write-behind sinks again` | `INFO` | the sink works again |
//! | `write-behind dead letter` | `WARN` | a change was set aside |
//! | `write-behind lost its lease` | `WARN` | another process may have sunk the batch meanwhile |
//!
//! # Cancellation
//! A dropped write may or may not be done. A dropped read does nothing.
//!
//! # Cost
//! A write is one step of the store, a read another one; [`write_all`](WriteBehind::write_all) takes one step per shard. A batch is two steps: one that
//! takes it and one that ends it. A process without work asks each shard once per [`poll`](WriteBehindBuilder::poll).
//!
//! # References
//! - Write-behind: [Apache Ignite, external storage](https://ignite.apache.org/docs/latest/persistence/external-storage).
//! - Fencing by versions: Martin Kleppmann, "How to do distributed locking", 2016.
