#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod breaker;
mod builder;
pub mod bulkhead;
pub mod cache;
mod connection;
mod credentials;
mod dialer;
mod error;
pub mod idempotency;
mod keys;
pub mod limit;
mod members;
mod name_index;
mod names;
mod pubsub;
mod redis;
pub mod regions;
mod script;
mod store;
pub mod stream;
mod tracking;
mod transport;
mod url;
mod words;
pub mod write_behind;

pub use self::redis::Redis;
pub use breaker::RedisBreakers;
pub use builder::RedisBuilder;
pub use bulkhead::RedisBulkheads;
pub use cache::{CacheReport, RedisCache};
pub use connection::Status;
pub use credentials::Credentials;
pub use error::{CommandError, ConnectError};
pub use idempotency::RedisIdempotency;
pub use limit::RedisLimits;
pub use regions::RedisRegion;
pub use stream::RedisStreams;
pub use url::InvalidUrl;
pub use write_behind::RedisWriteBehind;
