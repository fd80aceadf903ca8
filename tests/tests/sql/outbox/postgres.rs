//! What PostgreSQL has of its own.
