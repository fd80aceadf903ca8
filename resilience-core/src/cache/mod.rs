//! Cache.

mod memory;
pub mod record;
pub mod store;

pub use self::{memory::InProcessCache, store::CacheStore};
