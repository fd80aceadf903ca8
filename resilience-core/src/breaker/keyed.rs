//! One breaker per key: per host, per tenant, per shard.

use std::{
    fmt,
    hash::Hash,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

use super::{
    Call, CircuitBreaker,
    asking::Asking,
    config::Config,
    events::{Events, Hub},
    layer::ResponseFuture,
    machine::Refusal,
    shared::{Counted, Levels, Shared, read_counted},
    snapshot::Snapshot,
};
use crate::{
    classify::{self, Classify},
    clock::{Clock, Moment},
    error::{InvalidConfig, Pattern, ServiceError},
    keyed::{Keyed, Member, Registry},
    stripe::{self, Striped},
    telemetry::{self, Reading},
    until::{self, Until},
};

/// A family of circuit breakers of one configuration, one per key, made when a key is first seen. From
/// [`Builder::keyed`](super::Builder::keyed).
///
/// The family is bounded ([`Keyed`]): breakers that are closed and idle are dropped; when none can go, keys that are
/// new share one overflow breaker.
///
/// Rejections, events and logs carry the key as name; metrics carry the family's name, never the key.
///
/// Memory: a breaker with a time window takes about 4.5 KiB (4 stripes at most, however many cores), the key and
/// its name extra.
pub struct KeyedCircuitBreaker<K> {
    pub(super) inner: Arc<Inner<K>>,
}

pub(super) struct Inner<K> {
    members: Registry<K, CircuitBreaker>,
    family: Arc<Family>,
    clock: Clock,
    /// [`telemetry::retire`], for a `Drop` without the bounds of its trait.
    retire: fn(&Self),
}

/// What the members of a family have in common.
#[derive(Debug)]
pub(super) struct Family {
    name: Arc<str>,
    hub: Arc<Hub>,
    /// What members that are gone have counted.
    gone: Mutex<Counted>,
}

impl<K> KeyedCircuitBreaker<K>
where
    K: Hash + Eq + fmt::Display + Send + Sync + 'static,
{
    pub(super) fn new(mut config: Config, keyed: Keyed) -> Result<Self, InvalidConfig> {
        let family = Arc::new(Family {
            name: Arc::clone(&config.name),
            hub: Arc::new(Hub::new(config.event_capacity)),
            gone: Mutex::default(),
        });
        let stripes = stripe::count().min(4);
        config.rules.stripes = stripes;
        let (clock, shared_family) = (config.clock, Arc::clone(&family));
        let make = move |key: Option<&K>| {
            let mut config = config.clone();
            config.name = match key {
                Some(key) => key.to_string().into(),
                None => format!("{} (overflow)", config.name).into(),
            };
            let hub = Arc::clone(&shared_family.hub);
            CircuitBreaker {
                shared: Shared::start(config, hub, Some(Arc::clone(&shared_family))),
            }
        };
        let heir = Arc::clone(&family);
        let evicted = move |breaker: &CircuitBreaker| heir.inherit(&breaker.shared);
        let inner = Arc::new(Inner {
            members: Registry::new(keyed, make, evicted)?,
            family,
            clock,
            retire: telemetry::retire,
        });
        telemetry::register(&inner);
        Ok(Self { inner })
    }

    /// A layer that guards each request with the breaker of the key that `key` finds in it. Fail-fast.
    pub fn layer<Req, F>(&self, key: F) -> KeyedCircuitBreakerLayer<K, F>
    where
        F: Fn(&Req) -> K,
    {
        KeyedCircuitBreakerLayer {
            breakers: self.clone(),
            key,
            classify: classify::Standard,
            until: until::Response,
        }
    }

    /// The breaker of this key. It stays usable when the family has dropped it, but is then no longer the one that
    /// new calls go through: ask for it anew.
    #[must_use]
    pub fn get(&self, key: &K) -> CircuitBreaker
    where
        K: Clone,
    {
        self.inner
            .members
            .with(key, || self.inner.clock.now(), Clone::clone)
    }

    /// The name of the family.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.family.name
    }

    /// The number of keys that have a breaker at present.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.members.len()
    }

    /// Whether no key has a breaker at present.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How each of the breakers stands, in no particular order.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let mut all = Vec::with_capacity(self.len());
        self.inner
            .members
            .for_each(|_, breaker| all.push(breaker.snapshot()));
        all
    }

    /// The events of all breakers of the family, from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.inner.family.hub.subscribe()
    }
}

impl<K> Clone for KeyedCircuitBreaker<K> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K> fmt::Debug for KeyedCircuitBreaker<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedCircuitBreaker")
            .field("name", &self.inner.family.name)
            .finish_non_exhaustive()
    }
}

impl Family {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Keeps what a member that goes has counted. Called when it is no longer a member, and once more when the last
    /// call through it is over.
    pub(super) fn inherit(&self, member: &Shared) {
        let mut gone = self.gone();
        let before = member.handed_over().get().copied().unwrap_or_default();
        let all = member.counted();
        add(&mut gone, &all);
        subtract(&mut gone, &before);
        // The second time it is the last, and nobody will ask again.
        let _ = member.handed_over().set(all);
    }

    fn gone(&self) -> MutexGuard<'_, Counted> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(sum: &mut Counted, more: &Counted) {
    combine(sum, more, u64::wrapping_add);
}

/// Of what was added before.
fn subtract(sum: &mut Counted, less: &Counted) {
    combine(sum, less, u64::wrapping_sub);
}

fn combine(sum: &mut Counted, other: &Counted, with: fn(u64, u64) -> u64) {
    sum.0.combine(&other.0, with);
    for (sum, count) in sum.1.iter_mut().zip(other.1) {
        *sum = with(*sum, count);
    }
}

impl Member for CircuitBreaker {
    fn evictable(&self) -> bool {
        self.shared.is_idle()
    }
}

impl<K> telemetry::Source for Inner<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    fn pattern(&self) -> Pattern {
        Pattern::CircuitBreaker
    }

    fn name(&self) -> &str {
        &self.family.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.members.sweep(self.clock.now());
        let mut levels = Levels::default();
        self.members.for_each(|_, breaker| {
            levels.add(&breaker.snapshot());
            breaker.shared.read_degraded(out);
        });
        levels.read(out);
        self.read_last(out);
    }

    fn read_last(&self, out: &mut dyn FnMut(Reading)) {
        // Nobody leaves while the sum is made: each is counted as a member or as gone. No code of others runs here.
        let gone = self.family.gone();
        let mut sum = *gone;
        self.members.for_each(|_, breaker| {
            if breaker.shared.handed_over().get().is_none() {
                add(&mut sum, &breaker.shared.counted());
            }
        });
        drop(gone);
        read_counted(&sum, out);
    }
}

impl<K> Drop for Inner<K> {
    fn drop(&mut self) {
        (self.retire)(self);
    }
}

/// Guards each request with the breaker of its key. From [`KeyedCircuitBreaker::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyedCircuitBreakerLayer<K, F, C = classify::Standard, U = until::Response> {
    breakers: KeyedCircuitBreaker<K>,
    key: F,
    classify: C,
    until: U,
}

impl<K, F, C, U> KeyedCircuitBreakerLayer<K, F, C, U> {
    /// What results mean. Default: [`classify::Standard`].
    pub fn classify<D>(self, classify: D) -> KeyedCircuitBreakerLayer<K, F, D, U> {
        KeyedCircuitBreakerLayer {
            breakers: self.breakers,
            key: self.key,
            classify,
            until: self.until,
        }
    }

    /// When a call that was answered is over. Default: [`until::Response`], at once.
    pub fn until<V>(self, until: V) -> KeyedCircuitBreakerLayer<K, F, C, V> {
        KeyedCircuitBreakerLayer {
            breakers: self.breakers,
            key: self.key,
            classify: self.classify,
            until,
        }
    }
}

impl<S, K, F, C, U> Layer<S> for KeyedCircuitBreakerLayer<K, F, C, U>
where
    S: Clone,
    F: Clone,
    C: Clone,
    U: Clone,
{
    type Service = KeyedCircuitBreakerService<S, K, F, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        KeyedCircuitBreakerService {
            inner,
            breakers: self.breakers.clone(),
            key: self.key.clone(),
            classify: self.classify.clone(),
            until: self.until.clone(),
        }
    }
}

/// A service behind a family of circuit breakers. From [`KeyedCircuitBreakerLayer`].
///
/// It is ready when the inner service is: which breaker a call will meet is not known before. A call that is
/// rejected leaves a fresh clone of the inner service behind, so that nothing stays reserved for it.
#[derive(Clone, Debug)]
pub struct KeyedCircuitBreakerService<S, K, F, C = classify::Standard, U = until::Response> {
    inner: S,
    breakers: KeyedCircuitBreaker<K>,
    key: F,
    classify: C,
    until: U,
}

impl<S, K, F, C, U, Req> Service<Req> for KeyedCircuitBreakerService<S, K, F, C, U>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    K: Hash + Eq + Clone + fmt::Display + Send + Sync + 'static,
    F: Fn(&Req) -> K,
    C: Classify<S::Response, S::Error> + Clone,
    U: Until<S::Response, Call>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, C, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Req) -> Self::Future {
        let (classify, until) = (self.classify.clone(), self.until.clone());
        let inner = &mut self.inner;
        match self.breakers.inner.admit(&(self.key)(&req)) {
            Ok(call) => ResponseFuture::calling(inner, req, call, classify, until),
            Err(refused) => {
                let (breaker, refusal) = *refused;
                // What was made ready for this call must not stay so.
                let fresh = inner.clone();
                let readied = mem::replace(inner, fresh);
                match Asking::start(&breaker, &refusal, req, || readied) {
                    Ok(asking) => ResponseFuture::asking(asking, classify, until),
                    Err(_) => {
                        let rejected = breaker.reject(refusal);
                        ResponseFuture::rejected(rejected, classify, until)
                    }
                }
            }
        }
    }
}

impl<K> Inner<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    #[inline]
    fn admit(&self, key: &K) -> Result<Call, Refused> {
        let now = || -> Moment { self.clock.now() };
        self.members.with(key, now, |breaker| {
            let breaker = &breaker.shared;
            Call::pass(breaker).map_or_else(|| admit_otherwise(breaker), Ok)
        })
    }
}

/// Behind a pointer, so that calls that pass do not carry the room for it.
type Refused = Box<(Striped<Shared>, Refusal)>;

#[cold]
fn admit_otherwise(breaker: &Striped<Shared>) -> Result<Call, Refused> {
    match Call::try_admit(breaker) {
        Ok(mut call) => {
            call.begin_in_layer();
            Ok(call)
        }
        Err(refusal) => Err(Box::new((breaker.clone(), refusal))),
    }
}
