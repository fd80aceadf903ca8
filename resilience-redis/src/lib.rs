#![doc = include_str!("../README.md")]

pub mod breaker;
pub mod bulkhead;
mod channels;
mod conn;
mod error;
mod handle;
pub mod idempotency;
mod keys;
pub mod limit;
mod link;
pub mod regions;
mod script;
mod target;

pub use breaker::RedisBreakers;
pub use bulkhead::RedisBulkheads;
pub use error::StoreError;
pub use handle::{Redis, RedisBuilder};
pub use idempotency::RedisIdempotency;
pub use limit::RedisLimits;
pub use link::Status;
pub use regions::RedisRegion;
pub use target::InvalidUrl;
