//! One bulkhead per key.

use std::{
    borrow::Borrow,
    fmt,
    hash::Hash,
    sync::Arc,
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

use super::{Bulkhead, BulkheadBuilder, Permit, ResponseFuture, Snapshot, shared::Totals};
use crate::{
    error::{InvalidConfig, Pattern, ServiceError},
    keyed::{Keyed, Registry},
    telemetry::{self, Reading, Source},
    until::{self, Until},
};

/// A bulkhead per key (host, tenant, shard), all with the same settings and all reporting under one name. Clones
/// share the family.
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
/// A member that is idle for long enough is dropped and made anew when its key comes back; one with calls in flight
/// or queued stays. The limits are in [`Keyed`].
pub struct KeyedBulkhead<K> {
    family: Arc<Family<K>>,
}

struct Family<K> {
    name: Arc<str>,
    settings: BulkheadBuilder,
    members: Registry<K, Bulkhead>,
    totals: Arc<Totals>,
    /// [`telemetry::retire`], for a `Drop` without the bounds of its trait.
    retire: fn(&Self),
}

impl<K> KeyedBulkhead<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    pub(super) fn new(
        name: Arc<str>,
        settings: BulkheadBuilder,
        limits: Keyed,
    ) -> Result<Self, InvalidConfig> {
        let totals = Arc::<Totals>::default();
        let (make, of_all) = (settings.clone(), Arc::clone(&totals));
        // Totals are the family's, so nothing has to be saved of a member that goes.
        let members = Registry::new(limits, move |_| make.unregistered(&of_all), |_| {})?;
        let family = Arc::new(Family {
            name,
            settings,
            members,
            totals,
            retire: telemetry::retire,
        });
        telemetry::register(&family);
        Ok(Self { family })
    }

    /// A layer that sends each request through the bulkhead of `key(&request)`.
    pub fn layer<F>(&self, key: F) -> KeyedBulkheadLayer<K, F> {
        KeyedBulkheadLayer {
            bulkheads: self.clone(),
            key,
            until: until::Response,
        }
    }

    /// The bulkhead of `key`, made if there is none. Holding on to it does not keep it in the family.
    pub fn get<Q>(&self, key: &Q) -> Bulkhead
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.family.with(key, Bulkhead::clone)
    }

    /// The sums over all members: places, calls in flight and queued, and the family's totals of rejections.
    /// [`typical_hold`](Snapshot::typical_hold) is left out.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.family.snapshot()
    }

    /// How many keys have a bulkhead at this moment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.family.members.len()
    }

    /// Whether no key has a bulkhead.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K> Family<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    #[inline]
    fn with<Q, R>(&self, key: &Q, f: impl FnOnce(&Bulkhead) -> R) -> R
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.members.with(key, || self.settings.clock_now(), f)
    }

    fn snapshot(&self) -> Snapshot {
        let mut sum = self.totals.snapshot();
        self.members.for_each(|_, bulkhead| {
            let load = bulkhead.shared.gate.load();
            sum.in_flight += load.in_flight;
            sum.queued += load.waiting;
            sum.max_concurrent += load.limit;
        });
        sum
    }
}

impl<K> Clone for KeyedBulkhead<K> {
    fn clone(&self) -> Self {
        Self {
            family: Arc::clone(&self.family),
        }
    }
}

impl<K> fmt::Debug for KeyedBulkhead<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBulkhead")
            .field("name", &self.family.name)
            .finish_non_exhaustive()
    }
}

impl<K> Source for Family<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    fn pattern(&self) -> Pattern {
        Pattern::Bulkhead
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.members.sweep(self.settings.clock_now());
        self.snapshot().read_load(out);
        self.totals.read(out);
    }

    fn read_last(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
    }
}

impl<K> Drop for Family<K> {
    fn drop(&mut self) {
        (self.retire)(self);
    }
}

/// Makes [`KeyedBulkheadService`]s. See [`KeyedBulkhead::layer`].
#[must_use]
pub struct KeyedBulkheadLayer<K, F, U = until::Response> {
    bulkheads: KeyedBulkhead<K>,
    key: F,
    until: U,
}

impl<K, F, U> KeyedBulkheadLayer<K, F, U> {
    /// When a call gives its place back. The default is when its response is there; an HTTP body can keep it until
    /// it has been read.
    pub fn until<V>(self, until: V) -> KeyedBulkheadLayer<K, F, V> {
        KeyedBulkheadLayer {
            bulkheads: self.bulkheads,
            key: self.key,
            until,
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
            until: self.until.clone(),
        }
    }
}

/// A service of whose calls so many *per key* can be in flight at once. Made by [`KeyedBulkheadLayer`].
pub struct KeyedBulkheadService<S, K, F, U = until::Response> {
    inner: S,
    bulkheads: KeyedBulkhead<K>,
    key: F,
    until: U,
}

impl<S, K, F, U, Req> Service<Req> for KeyedBulkheadService<S, K, F, U>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Fn(&Req) -> K,
    U: Until<S::Response, Permit>,
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
        let admission = self.bulkheads.family.with(&key, Bulkhead::admit);
        ResponseFuture::new(&mut self.inner, req, admission, self.until.clone())
    }
}

impl<K, F: Clone, U: Clone> Clone for KeyedBulkheadLayer<K, F, U> {
    fn clone(&self) -> Self {
        Self {
            bulkheads: self.bulkheads.clone(),
            key: self.key.clone(),
            until: self.until.clone(),
        }
    }
}

impl<S: Clone, K, F: Clone, U: Clone> Clone for KeyedBulkheadService<S, K, F, U> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            bulkheads: self.bulkheads.clone(),
            key: self.key.clone(),
            until: self.until.clone(),
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
