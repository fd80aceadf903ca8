#![doc = include_str!("../README.md")]

pub mod breaker;
pub mod bulkhead;
mod connection;
mod dialer;
mod error;
pub mod idempotency;
mod keys;
pub mod limit;
mod members;
mod pubsub;
mod redis;
pub mod regions;
mod script;
mod store;
mod transport;
mod url;

pub use self::redis::{Redis, RedisBuilder};
pub use breaker::RedisBreakers;
pub use bulkhead::RedisBulkheads;
pub use connection::Status;
pub use error::CommandError;
pub use idempotency::RedisIdempotency;
pub use limit::RedisLimits;
pub use regions::RedisRegion;
pub use url::InvalidUrl;
