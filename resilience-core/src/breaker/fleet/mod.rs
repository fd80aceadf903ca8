//! What a fleet of instances knows together about one dependency.
//!
//! The local window decides for this instance, instantly, with or without a store. The fleet adds what one instance
//! cannot know: that the dependency is failing for everybody, that it was open before this instance started, that
//! somebody else is already probing, that an operator gave an order.
//!
//! - [`Record`] is the shared state of one breaker, and everything that may happen to it: merge a report, compare
//!   and set a state, lease and settle a probe. It holds no policy. The in-process store keeps it in a map; the
//!   Redis store's scripts do the same things to the same fields, and one conformance suite holds both to it.
//! - [`Policy`] decides, purely, what an instance should propose when it sees a [`View`] of that record: the fleet opens
//!   when its rate is too high *and* a quorum of instances finds the dependency failing, so that one instance with a
//!   broken network opens alone.
//! - [`Ledger`] is what an instance knows and has reported, and what follows from a view: adopt it, or bring back what
//!   the store has lost.
//! - One task per breaker and instance reports, hears, proposes, and brings the verdict to the machine. No call waits
//!   for it, but for those that ask for one of the fleet's probes while it is half-open.
//! - [`BreakerStore`] is what a store offers.
//!
//! Times between instances are durations on the store's own clock: ages and remainders, never wall-clock instants.

mod agent;
mod handle;
mod ledger;
mod local;
mod member;
mod memory;
mod policy;
mod probes;
mod record;
mod rules;
mod shared;
mod store;
#[cfg(all(test, not(loom)))]
mod tests;

pub use handle::Fleet;
pub use ledger::{Ledger, Sight, Standing};
pub use local::LocalState;
pub use memory::InProcess;
pub use policy::{Policy, Proposal};
pub use record::{
    BUCKETS, Change, Counts, FleetOrder, FleetState, LeaseAnswer, OrderKind, Record, Report, View,
};
pub use rules::FleetRules;
pub use store::{Answer, BreakerStore, Push, StoreFailure, Subscription};

pub(super) use member::{Lease, Membership, Unanswered};
pub(super) use probes::HeldProbes;
pub(super) use shared::{join, speak_for};
