//! The outbox on real databases: a PostgreSQL server, and SQLite in a file. What holds for both is in `both.rs`, `relays.rs` and
//! `refused.rs`.

mod both;
mod broker;
mod postgres;
mod refused;
mod relays;
mod rig;
mod torture;
