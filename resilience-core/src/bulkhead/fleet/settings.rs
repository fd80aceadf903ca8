//! The checked settings of a fleet's bulkhead.

use std::{sync::Arc, time::Duration};

use super::store::BulkheadStore;
use crate::{
    admission::QueueSettings,
    clock::Clock,
    error::InvalidConfig,
    fleet::{FleetDefaults, FleetOptions, FleetSettings, OnOutage},
};

/// What happens to a call whose lease is lost while it is in progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhenLost {
    /// The call goes on, although other calls may have taken its permits.
    /// [`FleetPermit::lost`](super::FleetPermit::lost) tells. The default.
    #[default]
    GoOn,
    /// The layer drops the call and returns [`LeaseLost`](crate::Reason::LeaseLost).
    Abort,
}

/// Settings that are complete and valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) store: Arc<dyn BulkheadStore>,
    pub(super) max_concurrent: u64,
    pub(super) lease: Duration,
    pub(super) queue: Option<QueueSettings>,
    pub(super) when_lost: WhenLost,
    pub(super) clock: Clock,
    pub(super) fleet: FleetSettings,
}

/// Longer leases block permits of a dead instance for too long.
const LONGEST_LEASE: Duration = Duration::from_secs(86_400);
/// Shorter leases are lost to the first delay in the network.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

pub(super) fn check_lease(lease: Duration) -> Result<(), InvalidConfig> {
    if (SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
        return Ok(());
    }
    let rule = "must be between 100 milliseconds and 1 day";
    Err(InvalidConfig::new("lease", lease, rule))
}

/// Resolves `options` for a valid `lease`.
pub(super) fn check_fleet(
    options: &FleetOptions,
    lease: Duration,
) -> Result<FleetSettings, InvalidConfig> {
    let settings = options.resolve(&FleetDefaults {
        budget: BUDGET.min(lease / 2),
        heartbeat: None,
        no_heartbeat: "follows the lease, which is renewed three times; set `lease` instead",
        on_outage: OnOutage::Local,
        accepts: &[OnOutage::FailOpen, OnOutage::FailClosed, OnOutage::Local],
        rule: "must be `FailOpen`, `FailClosed` or `Local`",
    })?;
    if settings.budget > lease / 2 {
        let rule =
            "must be at most half of the lease, which could not be renewed in time otherwise";
        return Err(InvalidConfig::new("budget", settings.budget, rule));
    }
    Ok(settings)
}

const BUDGET: Duration = Duration::from_millis(250);
