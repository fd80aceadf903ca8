//! Circuit breaker state that a fleet of instances shares.
//!
//! The local window decides for this instance, instantly, with or without a store. The fleet adds what one instance cannot
//! know: that the dependency fails for all of them, that it was open before this instance started, that other instances
//! are probing already, that an operator set an override.
//!
//! - [`BreakerRecord`] is the shared state of one breaker and every step on it: merging a report, changing the state by
//!   compare-and-set, leasing and settling a probe. It holds no policy. The in-process store keeps it in a map, the scripts
//!   of the Redis store do the same steps on the same fields, and one conformance suite tests both.
//! - [`Policy`] is pure and decides what an instance proposes on a [`BreakerView`] of that record: the fleet opens when its
//!   rate is too high *and* a quorum of instances finds the dependency failing, so an instance with a broken network opens
//!   alone.
//! - [`BreakerLedger`] is pure and holds what an instance knows and has reported. It decides whether a view is adopted or
//!   the store is behind.
//! - One background task per breaker reports, receives views, proposes changes and brings the verdict to the machine. Calls
//!   do not wait for it; only a call that needs one of the fleet's probes, while half-open, waits for the store.
//! - [`BreakerStore`] is what a store implements.
//!
//! # While the store is unavailable
//!
//! A step of the store has 250 ms ([`FleetOptions::budget`](crate::fleet::FleetOptions::budget)). After three steps in a row
//! without an answer the store is [unavailable](crate::fleet#health): reports, proposals and requests for probes are
//! skipped until it answers again, and [`degraded`](crate::breaker::BreakerSnapshot::degraded) is true in snapshots. Pushes
//! are still received. The results of probes are sent again until the lease of the probe ends.
//!
//! The outage policy is [`OnOutage::Local`](crate::fleet::OnOutage::Local), the default and the only one: the local window
//! decides, a verdict of the fleet ends by its own clock, and afterwards this instance sends probes of its own, as below. The
//! other policies are refused, since a breaker without a store can still decide.
//!
//! # Probes
//!
//! In half-open the whole fleet sends as many probes as the breaker is configured for, each by a lease of the store. A
//! request for one that gets no answer is repeated under the same id while its budget lasts; then the call is rejected, and
//! the probe, if it was granted, is given back. So connections that are cut cost no probe and send none.
//!
//! An instance sends probes of its own only when its store has been unavailable for two heartbeats (4 seconds), or for a
//! [`probe_lease`](FleetRules::probe_lease) if that is shorter: the fleet may have gone on without it by then. The bound: the
//! probes of one half-open state are as many as configured, and as many again for each instance that has been cut off for
//! that long, was shut down, or has opened by its own window and not heard of the fleet's verdict before that time was over.
//! A store that has lost its data grants them once more.
//!
//! # Instances that differ in their window
//!
//! While a new window is rolled out, each report moves the fleet's counts to buckets of its own window, to the nearest one:
//! calls count once, up to half a bucket (a twentieth of the longer window) earlier or later, and for as long as the
//! shortest window of the instances.
//!
//! # Agreement after an outage of the store
//!
//! During the outage instances may close or open by themselves. At each view that the store gives afterwards, an instance
//! compares the record with its own breaker ([`LocalPhase`]):
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
//! A proposal names the epoch that it is based on, so it loses to anything newer. Only the half-open state of the same trip
//! yields to an instance's own probes: a fleet that has opened again since does not close by the recovery of one instance.
//!
//! The bound: with the store answering, calls flowing and no override in force, record and instances agree after at most 1.2
//! heartbeats where an instance recovered alone. Otherwise after at most the sum of
//!
//! - 1.2 heartbeats until the next report,
//! - the time left of the open state, of the record or of the instance, whichever is longer,
//! - `max_wait` of half-open, and one more open time, where an instance's own probes hang,
//! - one `probe_lease`, where instances died with the fleet's probes,
//! - the duration of the probes, and the time budget of each step of the store,
//!
//! whichever instances are left. Probes that fail open the record again, which is agreement too. The stages of a ramp-up
//! follow.
//!
//! # Live instances
//!
//! The quorum is a share of the live instances of the record. If the store counts its members
//! ([`StoreHandle::live_instances`](crate::fleet::StoreHandle::live_instances)), a report without failures tells that the
//! instance is live for an hour, and no more instances are counted than there are members. A report of an instance that finds
//! the dependency failing, and every report on a store without members, counts for three heartbeats. An instance that is
//! dropped or shut down leaves the record at once. While old instances that are no members run beside new ones, the new
//! ones count fewer; the quorum is never below [`FleetRules::min_instances`].
//!
//! # What operators see
//!
//! [`Fleet::members`] names the live instances and those that find the dependency failing, with the age of each one's last
//! report and the state of its own breaker, which each report tells. [`Fleet::log`] tells the last changes of state and
//! overrides, with author and reason. Neither is asked for in the background.
//!
//! # Commands
//!
//! A breaker is active in an interval if a call ended in it, or if it or its record is not closed, or has an override.
//! Breakers that are not active report nothing, except once in half an hour, if the store counts its members. On one server
//! the reports of all breakers on one store handle that are due at the same tick go in scripts of at most 32; on a Cluster
//! each is a command of its own, sent together and pipelined per node. Commands per second, whatever the number of calls:
//!
//! ```text
//! one server: handles × (1 + ceil(active ÷ 32)) ÷ heartbeat  +  handles × ceil(failing ÷ 32) ÷ alert
//! Cluster:    handles × (1 + active) ÷ heartbeat             +  handles × failing ÷ alert
//! ```
//!
//! `handles` are the store handles of the fleet (one per instance), `active` the active breakers of a handle without
//! failures, `failing` those that have failures in the interval or whose record is not closed. The 1 is the heartbeat of the
//! membership. A first failure is reported at once, in a command of its own, and at most once per
//! [`alert`](FleetRules::alert). A change of state is one command more, of the instance that proposes it.
//!
//! Times between instances are durations on the store's own clock: ages and remainders, never wall-clock instants.
//!
//! # References
//!
//! M. Nygard, *Release It!*, 2nd ed., 2018, chapter 5 (circuit breaker); C. Gray and D. Cheriton, *Leases*, SOSP 1989 (probe leases).

mod agent;
mod batch;
mod handle;
mod ledger;
mod local;
mod log;
mod member;
mod members;
mod memory;
mod message;
mod policy;
mod probe_lease;
mod probe_request;
mod probes;
mod record;
mod rules;
mod settle;
mod shared;
mod store;
#[cfg(all(test, not(loom)))]
mod tests;

pub use handle::Fleet;
pub use ledger::{BreakerLedger, LocalState, ViewAge};
pub use local::LocalPhase;
pub use log::{BreakerLogEntry, LOG_ENTRIES, LOG_TEXT, LogAction};
pub use members::{BreakerMember, BreakerMembers, MOST_MEMBERS};
pub use memory::InProcessBreakers;
pub use policy::{Policy, Proposal};
pub use record::{
    BUCKETS, BreakerRecord, BreakerView, Change, Counts, FleetOverride, FleetState, LeaseAnswer,
    OverrideKind, Report,
};
pub use rules::FleetRules;
pub use store::BreakerStore;

pub(super) use member::FleetMember;
pub(super) use probe_lease::{Lease, StoreUnavailable};
pub(super) use probe_request::ProbeRequest;
pub(super) use probes::HeldProbes;
pub(super) use rules::{DEFAULTS, FleetConfig};
pub(super) use shared::{enter, spawn_agent};
