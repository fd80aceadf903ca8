//! Databases: how sqlx's errors are classified, transactions and pools that are shared, inbox and outbox, on a real PostgreSQL,
//! through a real PgBouncer, and on SQLite.

mod connections;
mod harness;
mod inbox;
mod outbox;
mod pgbouncer;
mod postgres;
mod sqlite;
mod transactions;
