//! One breaker per key: per host, per tenant, per shard.

use std::{
    fmt,
    hash::Hash,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    CircuitBreaker, CircuitBreakerBuilder, Permit,
    builder::Config,
    events::{Events, Hub},
    fleet::ProbeRequest,
    future::ResponseFuture,
    levels::Levels,
    refusal::Refusal,
    shared::{InFamily, Shared},
    snapshot::BreakerSnapshot,
    totals::{Bequest, Departed},
};
use crate::{
    admission::take_ready,
    classify::{self, Classify},
    completion::{self, Completion},
    error::{InvalidConfig, Pattern, ServiceError},
    fleet::StillRunning,
    keyed::{self, Evict, Family, Keyed, Member, Members},
    order,
    stripe::{self, Striped},
    telemetry::Reading,
};

/// A family of circuit breakers of one configuration, one per key, made when a key is first seen.
/// From [`CircuitBreakerBuilder::keyed`](super::CircuitBreakerBuilder::keyed).
///
/// The family is bounded ([`Keyed`]): breakers that are closed and idle are dropped; when none can
/// go, keys that are new share one overflow breaker.
///
/// Rejections, events and logs carry the key as name; metrics carry the family's name, never the
/// key.
///
/// Memory: a breaker with a time window takes about 4.5 KiB (4 stripes at most, however many
/// cores), the key and its name extra.
pub type KeyedCircuitBreaker<K> = Family<K, CircuitBreaker>;

/// What the breakers of a family have in common.
#[derive(Debug)]
#[expect(unnameable_types, reason = "sealed")]
pub struct Common {
    hub: Arc<Hub>,
    departed: Arc<Departed>,
}

impl CircuitBreakerBuilder {
    /// Checks all values and makes a family of such breakers, one per key. See
    /// [`KeyedCircuitBreaker`].
    ///
    /// # Errors
    ///
    /// Names the first value that cannot work, and the rule that it breaks.
    pub fn keyed<K>(self, keyed: Keyed) -> Result<KeyedCircuitBreaker<K>, InvalidConfig>
    where
        K: Hash + Eq + fmt::Display + Send + Sync + 'static,
    {
        family(self.check()?, keyed)
    }
}

fn family<K>(mut config: Config, keyed: Keyed) -> Result<KeyedCircuitBreaker<K>, InvalidConfig>
where
    K: Hash + Eq + fmt::Display + Send + Sync + 'static,
{
    let (name, clock) = (Arc::clone(&config.name), config.clock);
    let (hub, departed) = (
        Arc::new(Hub::new(config.event_capacity)),
        Arc::<Departed>::default(),
    );
    let common = Common {
        hub: Arc::clone(&hub),
        departed: Arc::clone(&departed),
    };
    config.rules.stripes = stripe::count().min(4);
    let make = move |key: Option<&K>| {
        let in_family = InFamily {
            name: Arc::clone(&config.name),
            bequest: Bequest::new(Arc::clone(&departed)),
        };
        let mut config = config.clone();
        config.name = match key {
            Some(key) => key.to_string().into(),
            None => format!("{} (overflow)", config.name).into(),
        };
        CircuitBreaker {
            shared: Shared::start(config, Arc::clone(&hub), Some(in_family)),
        }
    };
    Family::start(name, clock, keyed, common, make)
}

impl<K> KeyedCircuitBreaker<K> {
    /// A layer that guards each request with the breaker of the key that `key` finds in it.
    /// Fail-fast.
    pub fn layer<Req, F>(&self, key: F) -> KeyedCircuitBreakerLayer<K, F>
    where
        F: Fn(&Req) -> K,
    {
        KeyedCircuitBreakerLayer {
            breakers: self.clone(),
            key,
            classify: classify::Standard,
            completion: completion::OnResponse,
        }
    }

    /// Ends the background tasks of all breakers of the family, as [`CircuitBreaker::shutdown`] does, within `within` in
    /// all. Keys that are seen later have a task again.
    ///
    /// # Errors
    ///
    /// [`StillRunning`] when some had not ended by then. They go on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning>
    where
        K: Hash + Eq + Send + Sync + 'static,
    {
        let mut all = Vec::new();
        self.members(|members| {
            members.for_each(|breaker| all.extend(breaker.shared.member().cloned()));
        });
        // All at once, and then one after the other until the same moment.
        all.iter().for_each(|member| member.close());
        let until = Instant::now() + within;
        let mut tasks = 0;
        for member in all {
            let left = until.saturating_duration_since(Instant::now());
            if let Err(running) = member.shutdown(left).await {
                tasks += running.tasks;
            }
        }
        if tasks == 0 {
            Ok(())
        } else {
            Err(StillRunning { tasks })
        }
    }

    /// The events of all breakers of the family, from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.common().hub.subscribe()
    }
}

impl Evict for CircuitBreaker {
    fn evictable(&self) -> bool {
        self.shared.is_idle()
    }
}

impl Member for CircuitBreaker {
    type Snapshot = BreakerSnapshot;

    fn snapshot(&self) -> BreakerSnapshot {
        self.snapshot()
    }
}

impl keyed::InFamily for CircuitBreaker {
    const PATTERN: Pattern = Pattern::CircuitBreaker;

    type Common = Common;

    fn left(&self) {
        self.shared.leave_family();
    }

    #[expect(private_interfaces, reason = "sealed")]
    fn read(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading)) {
        let mut levels = Levels::default();
        members.for_each(|breaker| {
            levels.add(&breaker.snapshot());
            breaker.shared.read_degraded(out);
        });
        levels.read(out);
        <Self as keyed::InFamily>::read_last(members, out);
    }

    #[expect(private_interfaces, reason = "sealed")]
    fn read_last(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading)) {
        let departed = members.common.departed.lock();
        let mut sum = *departed;
        // Under the lock only numbers are added: no code of the user's runs here.
        members.for_each(|breaker| {
            if !breaker.shared.has_left_family() {
                sum.add(&breaker.shared.counted());
            }
        });
        drop(departed);
        sum.read(out);
    }
}

/// Layer that guards each request with the breaker of its key. From [`KeyedCircuitBreaker::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyedCircuitBreakerLayer<K, F, C = classify::Standard, U = completion::OnResponse> {
    breakers: KeyedCircuitBreaker<K>,
    key: F,
    classify: C,
    completion: U,
}

impl<K, F, C, U> KeyedCircuitBreakerLayer<K, F, C, U> {
    /// What results mean. Default: [`classify::Standard`].
    pub fn classify<D>(self, classify: D) -> KeyedCircuitBreakerLayer<K, F, D, U> {
        KeyedCircuitBreakerLayer {
            breakers: self.breakers,
            key: self.key,
            classify,
            completion: self.completion,
        }
    }

    /// When a call that was answered is over. Default: [`completion::OnResponse`], at once.
    pub fn complete_on<V>(self, completion: V) -> KeyedCircuitBreakerLayer<K, F, C, V> {
        KeyedCircuitBreakerLayer {
            breakers: self.breakers,
            key: self.key,
            classify: self.classify,
            completion,
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
            completion: self.completion.clone(),
        }
    }
}

/// A service behind a family of circuit breakers. From [`KeyedCircuitBreakerLayer`].
///
/// It is ready when the inner service is: which breaker a call will meet is not known before. A
/// call that is rejected leaves a fresh clone of the inner service behind, so that nothing stays
/// reserved for it.
#[derive(Clone)]
pub struct KeyedCircuitBreakerService<S, K, F, C = classify::Standard, U = completion::OnResponse> {
    inner: S,
    breakers: KeyedCircuitBreaker<K>,
    key: F,
    classify: C,
    completion: U,
}

impl<S: fmt::Debug, K, F, C, U> fmt::Debug for KeyedCircuitBreakerService<S, K, F, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter_policy(&self.breakers);
        f.debug_struct("KeyedCircuitBreakerService")
            .field("breakers", &self.breakers)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, K, F, C, U, Req> Service<Req> for KeyedCircuitBreakerService<S, K, F, C, U>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    K: Hash + Eq + Clone + fmt::Display + Send + Sync + 'static,
    F: Fn(&Req) -> K,
    C: Classify<S::Response, S::Error> + Clone,
    U: Completion<S::Response, Permit>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, C, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Req) -> Self::Future {
        let (classify, completion) = (self.classify.clone(), self.completion.clone());
        let inner = &mut self.inner;
        match admit(&self.breakers, &(self.key)(&req)) {
            Ok(call) => ResponseFuture::calling(inner, req, call, classify, completion),
            Err(refused) => {
                let (breaker, refusal) = *refused;
                // What was made ready for this call must not stay so.
                let readied = take_ready(inner);
                match ProbeRequest::start(&breaker, &refusal, req, || readied) {
                    Ok(asking) => ResponseFuture::asking(asking, classify, completion),
                    Err(_) => {
                        let rejected = breaker.reject(refusal);
                        ResponseFuture::rejected(rejected, classify, completion)
                    }
                }
            }
        }
    }
}

#[inline]
fn admit<K>(breakers: &KeyedCircuitBreaker<K>, key: &K) -> Result<Permit, Refused>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    breakers.with(key, |breaker| {
        let breaker = &breaker.shared;
        Permit::pass(breaker).map_or_else(|| admit_otherwise(breaker), Ok)
    })
}

/// Behind a pointer, so that calls that pass do not carry the room for it.
type Refused = Box<(Striped<Shared>, Refusal)>;

#[cold]
fn admit_otherwise(breaker: &Striped<Shared>) -> Result<Permit, Refused> {
    match Permit::try_admit(breaker) {
        Ok(mut call) => {
            call.begin_in_layer();
            Ok(call)
        }
        Err(refusal) => Err(Box::new((breaker.clone(), refusal))),
    }
}
