//! Waiting for a condition, with a bound, instead of sleeping and hoping.

pub use resilience_core::conformance::eventually;
