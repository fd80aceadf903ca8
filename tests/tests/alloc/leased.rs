//! A call that is paid for out of a lease allocates nothing.

use std::time::Duration;

use resilience_core::{
    fleet::FleetOptions,
    limit::{
        Quota,
        fleet::{Costs, DecidedBy, FleetRateLimit, LeaseRules, Mode},
        store::InProcessLimits,
    },
};

use crate::{alone, count, subject};

const HOUR: Duration = Duration::from_secs(3600);

/// Makes a number of calls, and returns how often something was allocated meanwhile.
async fn allocations(limit: &FleetRateLimit, calls: u64) -> usize {
    let costs = Costs::each(1).on("bytes", 7);
    let region = count();
    for _ in 0..calls {
        let ruling = limit.ask("tenant", costs).await;
        assert_eq!(ruling.decided_by(), DecidedBy::Lease);
    }
    region.change().allocations
}

#[test]
fn a_call_that_is_paid_for_out_of_a_lease_allocates_nothing() {
    alone(|| subject::runtime().block_on(calls_out_of_a_lease()));
}

async fn calls_out_of_a_lease() {
    let quota = |permits| Quota::per(permits, HOUR).unwrap();
    let limit = FleetRateLimit::builder("allocations")
        .store(InProcessLimits::new())
        .limit("calls", quota(10_000_000))
        .limit("bytes", quota(100_000_000))
        .mode(Mode::Leased(LeaseRules::new().time(HOUR)))
        .fleet(FleetOptions::new().heartbeat(HOUR))
        .build()
        .unwrap();
    // The first calls lease ever more. That this is seen shows that the counter counts.
    assert!(allocations(&limit, 100_000).await > 0);
    // Between two leases there is a stretch without one.
    let mut fewest = usize::MAX;
    for _ in 0..100 {
        fewest = fewest.min(allocations(&limit, 1_000).await);
    }
    assert_eq!(fewest, 0);
}
