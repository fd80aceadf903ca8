//! The SQL inbox on real databases: a PostgreSQL server, and SQLite in a file. What holds for both is in `both.rs`.

mod both;
mod front;
mod postgres;
pub(crate) mod rig;
mod sqlite;
mod waiting;
