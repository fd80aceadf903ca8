//! One bulkhead per key.

use std::{
    fmt,
    hash::Hash,
    sync::Arc,
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

use super::{Bulkhead, BulkheadBuilder, BulkheadSnapshot, Permit, ResponseFuture, shared::Totals};
use crate::{
    completion::{self, Completion},
    error::{InvalidConfig, Pattern, ServiceError},
    keyed::{Evict, Family, InFamily, Keyed, Member, Members},
    telemetry::Reading,
};

/// A bulkhead per key (host, tenant, shard), all with the same settings and all reporting under one
/// name. Clones share the family.
///
/// ```
/// use resilience_core::{Rejected, bulkhead::Bulkhead, keyed::Keyed};
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
/// A member that is idle for long enough is dropped and made anew when its key comes back; one with
/// calls in flight or queued stays. The limits are in [`Keyed`].
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
        let (name, clock, settings) = self.resolved()?;
        // The totals are the family's: nothing has to be kept of a member that leaves.
        let totals = Arc::<Totals>::default();
        let of_all = Arc::clone(&totals);
        let make = move |_: Option<&K>| settings.unregistered(&of_all);
        Family::start(name, clock, limits, totals, make)
    }
}

impl<K> KeyedBulkhead<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    /// A layer that sends each request through the bulkhead of `key(&request)`.
    pub fn layer<F>(&self, key: F) -> KeyedBulkheadLayer<K, F> {
        KeyedBulkheadLayer {
            bulkheads: self.clone(),
            key,
            completion: completion::OnResponse,
        }
    }

    /// The sums over all members: places, calls in flight and queued, and the family's totals of
    /// rejections. [`typical_hold`](BulkheadSnapshot::typical_hold) is left out.
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

/// Makes [`KeyedBulkheadService`]s. See [`KeyedBulkhead::layer`].
#[must_use]
pub struct KeyedBulkheadLayer<K, F, U = completion::OnResponse> {
    bulkheads: KeyedBulkhead<K>,
    key: F,
    completion: U,
}

impl<K, F, U> KeyedBulkheadLayer<K, F, U> {
    /// When a call gives its place back. The default is when its response is there; an HTTP body
    /// can keep it until it has been read.
    pub fn complete_on<V>(self, completion: V) -> KeyedBulkheadLayer<K, F, V> {
        KeyedBulkheadLayer {
            bulkheads: self.bulkheads,
            key: self.key,
            completion,
        }
    }
}

impl<S, K, F: Clone, U: Clone> Layer<S> for KeyedBulkheadLayer<K, F, U> {
    type Service = KeyedBulkheadService<S, K, F, U>;

    fn layer(&self, inner: S) -> Self::Service {
        KeyedBulkheadService {
            inner,
            bulkheads: self.bulkheads.clone(),
            key: self.key.clone(),
            completion: self.completion.clone(),
        }
    }
}

/// A service of whose calls so many *per key* can be in flight at once. Made by
/// [`KeyedBulkheadLayer`].
pub struct KeyedBulkheadService<S, K, F, U = completion::OnResponse> {
    inner: S,
    bulkheads: KeyedBulkhead<K>,
    key: F,
    completion: U,
}

impl<S, K, F, U, Req> Service<Req> for KeyedBulkheadService<S, K, F, U>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Fn(&Req) -> K,
    U: Completion<S::Response, Permit>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, U>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let key = (self.key)(&req);
        let admission = self.bulkheads.with(&key, Bulkhead::admit);
        ResponseFuture::new(&mut self.inner, req, admission, self.completion.clone())
    }
}

impl<K, F: Clone, U: Clone> Clone for KeyedBulkheadLayer<K, F, U> {
    fn clone(&self) -> Self {
        Self {
            bulkheads: self.bulkheads.clone(),
            key: self.key.clone(),
            completion: self.completion.clone(),
        }
    }
}

impl<S: Clone, K, F: Clone, U: Clone> Clone for KeyedBulkheadService<S, K, F, U> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            bulkheads: self.bulkheads.clone(),
            key: self.key.clone(),
            completion: self.completion.clone(),
        }
    }
}

impl<K, F, U> fmt::Debug for KeyedBulkheadLayer<K, F, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedBulkheadLayer")
            .field(&self.bulkheads)
            .finish()
    }
}

impl<S, K, F, U> fmt::Debug for KeyedBulkheadService<S, K, F, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedBulkheadService")
            .field(&self.bulkheads)
            .finish()
    }
}
