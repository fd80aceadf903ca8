//! An outbox: events that are published if, and only if, the transaction that wrote them commits (features `sqlx-postgres`,
//! `sqlx-sqlite`, with `stream`). The mirror of the [inbox](super::inbox).
//!
//! A change in a database and a publish to a broker cannot be made atomically: a crash between the two leaves one without the
//! other. Here an event is a row, written in the transaction that makes the change. A relay publishes committed rows to the
//! broker and deletes them.
//!
//! Not a queue: consumers read the stream, not the table. Not for delayed events, and not for events whose publication the
//! caller waits for: those are a [`Producer`](crate::stream::Producer)'s.
//!
//! ```
//! # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
//! # #[cfg(feature = "sqlx-sqlite")]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use resilience_core::{SqliteOutbox, sql, stream::InProcessStreams};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Placed { order: u64 }
//!
//! # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
//! # sqlx::query("CREATE TABLE orders (id INTEGER)").execute(&pool).await?;
//! let outbox = SqliteOutbox::<Placed>::builder("orders").source("/shop").event_type("order.placed").build()?;
//! outbox.migrate(&pool).await?;
//! let broker = InProcessStreams::new(); // or `redis.streams()`
//! let relay = outbox.relay(&pool, broker).build()?; // in any number of instances
//!
//! let mut tx = sql::begin_with(&pool, "BEGIN IMMEDIATE").await?;
//! sqlx::query("INSERT INTO orders VALUES (7)").execute(&mut *tx).await?;
//! outbox.publish(&mut tx, "order-7", &Placed { order: 7 }).await?;
//! tx.commit().await?; // both, or neither
//! outbox.wake(); // spares the relay of this process the wait for its next poll
//!
//! # while relay.snapshot().totals.stored == 0 { tokio::time::sleep(Duration::from_millis(1)).await }
//! relay.shutdown(Duration::from_secs(5)).await?;
//! # Ok(()) }
//! ```
//!
//! # What is promised
//! | what | promise |
//! |---|---|
//! | a transaction that is rolled back | publishes nothing |
//! | a transaction that is committed | each of its events is stored in the stream, in the end: however often relays and the database are killed. The table is the only place that an event is kept in until the broker has answered |
//! | a relay that is killed, stopped or cut off, at any point | each event is stored once. Rows are numbered, and the numbers written down, before they are sent ([`ProducerSequence`](crate::stream::ProducerSequence)): what is sent again, by whichever relay, has the same number. Lasts as long as the broker keeps its data, and for [`remember`](RelayBuilder::remember). An event that the broker refuses after an answer was lost can be there twice, under one id |
//! | a broker that loses its data after it answered | loses the events, as it does those of any producer |
//! | consumers | take effect once, with [`effect_once`](crate::stream::ConsumerBuilder::effect_once) or an inbox: every copy of an event has the same [id](crate::stream::Envelope::id) |
//!
//! # Order
//! An event whose publish began after the transaction of another one had committed comes after that one. Events of one
//! transaction are in the order in which they were published. This holds over all keys of an outbox, as long as no event is
//! refused by the broker. Rows are numbered when they are visible, and not by the sequence of their inserts: a transaction
//! that commits late is neither skipped nor waited for, and a transaction that stays open elsewhere in the database delays
//! nothing.
//!
//! | database | two transactions that publish with one key at the same time |
//! |---|---|
//! | SQLite | one writer at a time: the order is that of commits |
//! | PostgreSQL, and both write the same row before they publish | the second waits for the first: the order is that of commits |
//! | PostgreSQL, with [`lock_keys`](OutboxBuilder::lock_keys) | the second publish waits for the end of the first transaction: the order is that of commits |
//! | PostgreSQL, otherwise | either may come first |
//!
//! An event that the broker refuses, again and again, while it takes others, does not stop those of other keys: see
//! [`RelayBuilder::max_attempts`]. Later events of its key wait until it is a [dead letter](Outbox::dead_letters).
//!
//! # Relays
//! Run one in every instance: they share a lease, a row in the database, and one works while the others wait. A lease is
//! renewed by changing the row. Another relay takes it when it has not seen the row change for the whole
//! [lease](RelayBuilder::lease) by its own monotonic clock, or when it was given back: clocks of different machines are never
//! compared, and one that is set changes nothing. Each lease has a fence, which every step in the database compares: a relay
//! that was stopped, and goes on after another has taken over, deletes nothing, and what it sends has numbers that the broker
//! knows already.
//!
//! A relay that the broker has not answered for as long as a lease lasts gives its lease back: perhaps the broker answers
//! another one.
//!
//! A relay is woken by `NOTIFY` (PostgreSQL), by [`wake`](Outbox::wake), and by a [poll](RelayBuilder::poll), so that a lost
//! notification costs time only.
//!
//! # Connections
//! All statements run in a transaction and are unprepared: they work through a pooler that gives the server's connection to
//! another client after each transaction, such as PgBouncer. `LISTEN` does not: see [`RelayBuilder::listen_on`]. A relay
//! takes one connection of its pool at a time, and in PostgreSQL one outside of it to listen.
//!
//! # Cost
//! A publish is one insert, whatever the number of events. The relay takes one short transaction and one step of the broker
//! per batch, and while it is idle one short transaction that reads per poll. In PostgreSQL, commits
//! that notify take turns, over the whole database: where that costs too much, turn it [off](OutboxBuilder::notify) and poll
//! more often.
//!
//! # References
//! Richardson, [Transactional outbox](https://microservices.io/patterns/data/transactional-outbox.html); Kleppmann,
//! [How to do distributed locking](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html) (fences).

mod batch;
mod builder;
mod dead;
// The trait is sealed: it and the types it mentions are visible, but cannot be named.
#[allow(unnameable_types)]
mod dialect;
mod handle;
#[allow(unnameable_types)]
mod lease;
#[cfg(feature = "sqlx-postgres")]
mod postgres;
mod queries;
mod relay;
#[allow(unnameable_types)]
mod row;
mod snapshot;
#[cfg(feature = "sqlx-sqlite")]
mod sqlite;
#[allow(unnameable_types)]
mod statements;

pub use self::{
    builder::OutboxBuilder,
    dead::DeadEvent,
    dialect::Dialect,
    handle::Outbox,
    relay::{OutboxRelay, RelayBuilder},
    snapshot::{OutboxCounts, RelayCounts, RelaySnapshot},
};

/// An outbox in PostgreSQL.
#[cfg(feature = "sqlx-postgres")]
pub type PgOutbox<E> = Outbox<::sqlx::Postgres, E>;

/// An outbox in SQLite.
#[cfg(feature = "sqlx-sqlite")]
pub type SqliteOutbox<E> = Outbox<::sqlx::Sqlite, E>;
