//! What a fleet of instances knows together about one dependency.
//!
//! The local window decides for this instance, instantly, with or without a store. The fleet adds what one instance
//! cannot know: that the dependency is failing for everybody, that it was open before this instance started, that
//! somebody else is already probing, that an operator gave an order.
//!
//! - [`BreakerRecord`] is the shared state of one breaker, and everything that may happen to it: merge a report, compare
//!   and set a state, lease and settle a probe. It holds no policy. The in-process store keeps it in a map; the
//!   Redis store's scripts do the same things to the same fields, and one conformance suite holds both to it.
//! - [`Policy`] decides, purely, what an instance should propose when it sees a [`BreakerView`] of that record: the fleet opens
//!   when its rate is too high *and* a quorum of instances finds the dependency failing, so that one instance with a
//!   broken network opens alone.
//! - [`BreakerLedger`] is what an instance knows and has reported, and what follows from a view: adopt it, or bring back what
//!   the store has lost.
//! - One task per breaker and instance reports, hears, proposes, and brings the verdict to the machine. No call waits
//!   for it, but for those that ask for one of the fleet's probes while it is half-open.
//! - [`BreakerStore`] is what a store offers.
//!
//! # Agreement after an outage of the store
//!
//! While the store does not answer, instances go on by their local windows, and may close or open by
//! themselves. At each view that the store gives afterwards, an instance compares the record with its own
//! breaker ([`LocalPhase`]):
//!
//! | record | own breaker | then |
//! |---|---|---|
//! | newer epoch | any | follows the record; exception: half-open, while its own probes have passed since the same trip |
//! | older epoch | any | restores the record, then as below |
//! | open or half-open | closed or ramping up after its own probes passed | proposes that the fleet recovers: the first ramp-up stage, or closed |
//! | open or half-open | closed or ramping up without such probes (a reset, an expired override) | returns to the record's state, and asks for probes |
//! | open or half-open | open by itself | returns to the record's state, open for the longer of both times |
//! | open or half-open | half-open with its own probes | finishes them first |
//! | closed or ramping up | open or half-open by the fleet's verdict | returns to the record's state |
//! | closed or ramping up | open or half-open by itself | keeps its own state: one instance may open alone |
//! | any, with an override | any | the override holds; afterwards as above |
//! | any | an override of this instance | nothing until it ends; afterwards as above |
//!
//! A proposal names the epoch that it is based on, so it loses to anything newer. Only the half-open state
//! of the same trip gives way to an instance's own probes: a fleet that has opened again since does not close
//! by the recovery of one instance.
//!
//! The bound: with the store answering, calls flowing and no override in force, record and instances agree
//! after at most 1.2 `calm` intervals where an instance recovered alone. Otherwise after at most the sum of
//!
//! - 1.2 `calm` intervals until the next report,
//! - the time left of the open state, of the record or of the instance, whichever is longer,
//! - `max_wait` of half-open, and one more open time, where an instance's own probes hang,
//! - one `probe_lease`, where instances died with the fleet's probes,
//! - the duration of the probes, and 250 ms for each step of the store,
//!
//! whichever instances are left. Probes that fail open the record again, which is agreement too. The stages of a
//! ramp-up follow.
//!
//! Each step of the store has 250 ms. A store without an answer by then counts as unreachable; the agent goes
//! on hearing pushes, and reports itself degraded after two such steps in a row.
//!
//! Times between instances are durations on the store's own clock: ages and remainders, never wall-clock instants.

mod agent;
mod batch;
mod handle;
mod ledger;
mod local;
mod member;
mod memory;
mod policy;
mod probe_request;
mod probes;
mod record;
mod rules;
mod shared;
mod store;
#[cfg(all(test, not(loom)))]
mod tests;

pub use handle::Fleet;
pub use ledger::{BreakerLedger, LocalState, ViewAge};
pub use local::LocalPhase;
pub use memory::InProcessBreakers;
pub use policy::{Policy, Proposal};
pub use record::{
    BUCKETS, BreakerRecord, BreakerView, Change, Counts, FleetOverride, FleetState, LeaseAnswer,
    OverrideKind, Report,
};
pub use rules::FleetRules;
pub use store::BreakerStore;

pub(super) use member::{FleetMember, Lease, StoreUnavailable};
pub(super) use probe_request::ProbeRequest;
pub(super) use probes::HeldProbes;
pub(super) use rules::{DEFAULTS, FleetConfig};
pub(super) use shared::{enter, spawn_agent};
