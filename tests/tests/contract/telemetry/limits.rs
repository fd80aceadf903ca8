//! What happens to the limits of a fleet.

use resilience_core::{
    fleet::{FleetOptions, OnOutage},
    limit::{
        Quota,
        fleet::{self, FleetRateLimit},
        store::InProcessLimits,
    },
};
use resilience_redis::Redis;
use resilience_tests::until::eventually;

use super::LONG;

/// One whose store answers, one that leases, and one whose store is missing.
pub(crate) async fn shared_limits(name: &'static str, missing: &Redis) -> [FleetRateLimit; 3] {
    let quota = Quota::per(2, LONG).unwrap();
    let found = FleetRateLimit::builder(name)
        .store(InProcessLimits::new())
        .limit("per-long", quota)
        .limit("never", Quota::per(1_000_000, LONG).unwrap())
        .build()
        .unwrap();
    assert!(found.check("t", 2).await.is_ok());
    assert!(found.check("t", 1).await.is_err());
    found.set_shadow(true);
    assert!(found.check("t", 1).await.unwrap().is_shadowed());
    let leasing = FleetRateLimit::builder(name)
        .store(InProcessLimits::new())
        .limit("many", Quota::per(1_000_000, LONG).unwrap())
        .mode(fleet::Mode::Leased(fleet::LeaseRules::new().time(LONG)))
        .build()
        .unwrap();
    while leasing
        .peek("t")
        .await
        .unwrap()
        .binding()
        .unwrap()
        .remaining
        + 10
        > 1_000_000
    {
        assert!(leasing.check("t", 1).await.is_ok());
    }
    let lost = FleetRateLimit::builder(name)
        .store(missing.limits())
        .limit("per-long", quota)
        .fleet(FleetOptions::new().on_outage(OnOutage::FailClosed))
        .build()
        .unwrap();
    eventually("the store is found missing", LONG, || async {
        lost.check("t", 0).await.is_err() && lost.snapshot().degraded
    })
    .await;
    [found, leasing, lost]
}
