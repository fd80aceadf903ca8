//! Coalescing: callers that ask for one key at a time share one call.

mod flight;
mod group;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use self::group::{FlightOptions, FlightPanicked, Flights, Joined};
