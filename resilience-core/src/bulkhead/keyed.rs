//! A bulkhead per key.

use std::{hash::Hash, sync::Arc};

use super::{Bulkhead, builder::BulkheadBuilder, shared::Totals, snapshot::BulkheadSnapshot};
use crate::{
    admission::{AdmissionLayer, AdmissionService, PerKey},
    completion::OnResponse,
    error::{InvalidConfig, Pattern},
    keyed::{Evict, Family, InFamily, Keyed, Member, Members},
    telemetry::Reading,
};

/// A bulkhead per key (host, tenant, shard), all with the same settings and all reporting under one
/// name. Clones share the family.
///
/// ```
/// use resilience_core::{Bulkhead, Keyed, Rejected};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let tenants = Bulkhead::builder("tenants").max_concurrent(4).keyed(Keyed::new().max_keys(10_000))?;
/// let service = ServiceBuilder::new()
///     .layer(tenants.layer(|(tenant, _): &(u64, &str)| *tenant))
///     .service(service_fn(|(_, query)| async move { Ok::<_, Rejected>(query) }));
/// assert_eq!(service.oneshot((7, "select 1")).await?, "select 1");
/// assert_eq!(tenants.get(&7).snapshot().in_flight, 0);
/// # Ok(()) }
/// ```
///
/// A member that is idle for long enough is dropped, and created again when its key returns; one
/// with calls in flight or queued stays. The limits are in [`Keyed`].
pub type KeyedBulkhead<K> = Family<K, Bulkhead>;

impl BulkheadBuilder {
    /// Builds a family of bulkheads, one per key, each with these settings.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule.
    pub fn keyed<K>(self, limits: Keyed) -> Result<KeyedBulkhead<K>, InvalidConfig>
    where
        K: Hash + Eq + Send + Sync + 'static,
    {
        let settings = self.resolve()?;
        let (name, clock) = (Arc::clone(&settings.name), settings.clock);
        // The totals are the family's, so nothing has to be kept of a member that leaves.
        let totals = Arc::<Totals>::default();
        let of_all = Arc::clone(&totals);
        let make = move |_: Option<&K>| Bulkhead::new(&settings, &of_all);
        Family::start(name, clock, limits, totals, make)
    }
}

impl<K> KeyedBulkhead<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    /// Creates a layer that sends each request through the bulkhead of `key(&request)`.
    pub fn layer<F>(&self, key: F) -> KeyedBulkheadLayer<K, F> {
        AdmissionLayer::new(PerKey::new(self.clone(), key))
    }

    /// Returns the sums over all members: permits, calls in flight and queued, and the family's
    /// totals of rejections. [`typical_hold`](BulkheadSnapshot::typical_hold) is left out.
    #[must_use]
    pub fn snapshot(&self) -> BulkheadSnapshot {
        self.members(sum)
    }
}

fn sum(members: &Members<'_, Bulkhead>) -> BulkheadSnapshot {
    let mut sum = members.common.snapshot();
    members.for_each(|bulkhead| {
        let load = bulkhead.shared.semaphore.load();
        sum.in_flight += load.in_flight;
        sum.queued += load.waiting;
        sum.max_concurrent += load.limit;
    });
    sum
}

impl Evict for Bulkhead {
    fn evictable(&self) -> bool {
        let load = self.shared.semaphore.load();
        load.in_flight == 0 && load.waiting == 0
    }
}

impl Member for Bulkhead {
    type Snapshot = BulkheadSnapshot;

    fn snapshot(&self) -> BulkheadSnapshot {
        self.snapshot()
    }
}

impl InFamily for Bulkhead {
    const PATTERN: Pattern = Pattern::Bulkhead;

    type Common = Arc<Totals>;

    #[expect(private_interfaces, reason = "sealed")]
    fn read(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading)) {
        sum(members).read_load(out);
        members.common.read(out);
    }

    #[expect(private_interfaces, reason = "sealed")]
    fn read_last(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading)) {
        members.common.read(out);
    }
}

/// Layer that limits concurrent calls per key. Created by [`KeyedBulkhead::layer`].
pub type KeyedBulkheadLayer<K, F, C = OnResponse> = AdmissionLayer<PerKey<K, Bulkhead, F>, C>;

/// Service with a limit on concurrent calls per key. Created by [`KeyedBulkheadLayer`].
pub type KeyedBulkheadService<S, K, F, C = OnResponse> =
    AdmissionService<S, PerKey<K, Bulkhead, F>, C>;
