//! Events and metrics of every layer.
//!
//! **Events** go to `tracing`, target `resilience`: state changes at `INFO` or `WARN`, rejections at `DEBUG`, with
//! stable field names (`pattern`, `name`, `reason`, ..). Most rejections have the event name
//! `resilience.rejected`, so that queries can match on the name.
//!
//! **Metrics** are read from the counters that the layers keep: nothing is pushed per call, and without an SDK there is
//! no cost. Handles are entered in a process-wide list of weak references when they are built; `export`
//! (feature `otel`) makes one observable instrument per row of [`TABLE`] over all of them, later ones included, so the
//! order of "install the SDK" and "build the breaker" does not matter. [`series`] reads the same values without an
//! SDK.
//!
//! Every metric carries the attribute `resilience.name`, the name that the handle was built with. Keyed handles
//! (a breaker per host) report under the name of the family, never under the key: keys come from requests, so their
//! number is unbounded. Handles of one name are one series, their sum. Counters of a handle
//! that is dropped stay in the sum until the process ends: a counter never goes down.
//!
//! **Snapshots** show one handle now: every handle has a method `snapshot`, which returns a struct that implements serde's
//! `Serialize`, with the names of its fields. Durations are serialized as seconds, states as their lower-case names.
//!
//! The names, units and attribute values are an API: `METRICS.md` lists them, with the names that Prometheus gives
//! them.

mod counters;
mod prometheus;
mod registry;
mod scope;
mod snapshot;
mod table;

#[cfg(feature = "otel")]
mod otel;

#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use counters::counters;
#[cfg(feature = "otel")]
pub use otel::export;
pub(crate) use registry::{Reading, Source, register, retire};
pub use registry::{Series, series};
pub(crate) use scope::Scope;
pub(crate) use snapshot::seconds;
pub use table::*;
