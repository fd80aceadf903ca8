//! Databases: how sqlx's errors are classified, and the inbox, on a real PostgreSQL and on SQLite.

mod inbox;
mod postgres;
mod sqlite;
