//! Suites for stores and layers that are written elsewhere: what a store of each pattern must do, and the
//! contracts that every layer keeps. Feature `testing`, for `[dev-dependencies]`: it brings `tower` and tokio's
//! `test-util` along.
//!
//! | what is written | its suite |
//! |---|---|
//! | a store of shared breakers | [`breaker::all`]; with names and a log, [`breaker::for_operators`] |
//! | a store of shared bulkheads | [`bulkhead::all`] |
//! | a store of shared rate limits | [`limit::all`] |
//! | a store of idempotency records | [`idempotency::all`] |
//! | a store of cached values | [`cache::all`]; with reports of changes, [`cache::observing`] |
//! | a broker of streams | [`stream::all`] |
//! | a store of write-behinds | [`write_behind::all`] |
//! | a tower layer | [`layer::Subject`] |
//!
//! The stores of this toolkit, in process and over Redis, pass the same suites, and its layers the same contracts.
//!
//! # A store
//! A suite asks a store through the trait of its pattern, panics with the first check that fails, and takes some
//! seconds of real time. Each check takes names of its own, so a server may be shared with other tests. Call it within a
//! multi-threaded runtime:
//!
//! ```no_run
//! use std::sync::Arc;
//! use resilience_core::{conformance, limit::store::{InProcessLimits, LimitStore}};
//!
//! # mod tests { use super::*;
//! #[tokio::test(flavor = "multi_thread")]
//! async fn my_store_is_a_store_of_limits() {
//!     let store: Arc<dyn LimitStore> = Arc::new(InProcessLimits::new()); // here: your own
//!     conformance::limit::all(&store).await;
//! }
//! # }
//! ```
//!
//! # A layer
//! A [`Subject`](layer::Subject) is a layer with what the checks have to know about it. Each check makes a fresh one on a
//! paused clock; nothing sleeps, and what spins or hangs is found instead of waited for:
//!
//! ```
//! use resilience_core::{bulkhead::Bulkhead, conformance::layer::{Instance, Plan, Subject}};
//!
//! # // Named as a test is.
//! fn my_layer_keeps_every_contract() {
//!     let make = async || {
//!         let bulkhead = Bulkhead::builder("b").max_concurrent(3).build().unwrap(); // here: your own
//!         let held = bulkhead.clone();
//!         Instance::new(move || bulkhead.layer()).held(move || held.snapshot().in_flight as u64)
//!     };
//!     Subject::new("bulkhead", move || make())
//!         .rejects_after(3, Plan::Hang)
//!         .keeps_every_contract();
//! }
//! # my_layer_keeps_every_contract();
//! ```
//!
//! That the contracts can be broken is proven on layers that are [broken](layer::broken) on purpose.

pub mod breaker;
pub mod bulkhead;
pub mod cache;
pub mod idempotency;
pub mod layer;
pub mod limit;
pub mod stream;
mod until;
pub mod write_behind;

pub use until::eventually;
