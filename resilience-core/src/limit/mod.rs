//! Rate limit: so many permits per period, saved up to a burst; exact.

pub mod machine;
#[cfg(all(test, not(loom)))]
mod machine_tests;
mod quota;

pub use self::quota::Quota;
