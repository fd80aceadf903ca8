//! What is shared over Redis, on real servers: the suite that every store passes, the scripts held to the records in Rust,
//! and servers and processes that fail in every way.

mod breaker_faults;
mod breaker_frozen;
mod breaker_scripts;
mod breaker_stores;
mod bulkhead_faults;
mod bulkhead_scripts;
mod bulkhead_stores;
mod cache_fleet;
mod cache_stores;
mod cache_tracking;
mod caches;
mod clock_steps;
mod cluster_answers;
mod cluster_shards;
mod connection_life;
mod harness;
mod idempotency_faults;
mod idempotency_scripts;
mod idempotency_stores;
mod limit_stores;
mod link;
mod proxy;
mod regions;
mod rolling_upgrade;
mod secrets;
mod sentinel;
mod shared_breaker;
mod shared_breaker_processes;
mod shared_limits;
mod stream_stores;
mod streams;
mod tls;
mod torture;
mod upstream_limits;
mod write_behind_stores;
