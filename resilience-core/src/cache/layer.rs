//! The cache around a tower service.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use super::{Cache, CacheKey, CallOptions, LoadError, Loaded};
use crate::{
    error::{Error, Pattern, Reason, ServiceError},
    order::{self, Part},
};

/// Layer that answers requests from a [`Cache`], and calls the service for what is missing. From
/// [`Cache::layer`].
pub struct CacheLayer<K: CacheKey, V: Send + Sync + 'static, F> {
    cache: Cache<K, V>,
    key_of: F,
    ttl_of: Option<Read<V, Option<Duration>>>,
    tags_of: Option<Read<V, Vec<Arc<str>>>>,
}

/// Called once per load.
type Read<V, T> = Arc<dyn Fn(&V) -> T + Send + Sync>;

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// Makes a layer around services whose response is the cached value. `key_of` returns the key of a request; `None`: it goes
    /// to the service, and its response is not cached. The key must say everything that the response depends on, the
    /// identity of the caller included.
    ///
    /// A hit does not need the service to be ready; on a miss the service is driven to readiness by the load, so no caller
    /// that waits takes a place in it. Callers share a load; an error that several of them share goes to one of them, and
    /// the others are rejected with [`Reason::SharedCallFailed`]. A rejection by a layer below, such as an open breaker, is
    /// returned to all of them. A key that is known to have no value
    /// ([`not_found`](super::CacheBuilder::not_found)) is rejected with [`Reason::NotFound`].
    ///
    /// ```
    /// use resilience_core::{Cache, Error, execute};
    /// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let prices = Cache::<String, u32>::builder("prices").build()?;
    /// let service = ServiceBuilder::new()
    ///     .layer(prices.layer(|product: &String| Some(product.clone())))
    ///     .service(service_fn(|product: String| async move { Ok::<_, Error<std::io::Error>>(product.len() as u32) }));
    ///
    /// assert_eq!(service.clone().oneshot("apple".to_owned()).await?, 5);
    /// assert_eq!(service.oneshot("apple".to_owned()).await?, 5);
    /// assert_eq!(prices.snapshot().totals.loads, 1);
    /// # Ok(()) }
    /// ```
    pub fn layer<Req, F>(&self, key_of: F) -> CacheLayer<K, V, F>
    where
        F: Fn(&Req) -> Option<K> + Clone,
    {
        CacheLayer {
            cache: self.clone(),
            key_of,
            ttl_of: None,
            tags_of: None,
        }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static, F> CacheLayer<K, V, F> {
    /// How long a response is fresh; `None`: the cache's time to live; zero: it is not cached.
    #[must_use]
    pub fn ttl_of(mut self, ttl: impl Fn(&V) -> Option<Duration> + Send + Sync + 'static) -> Self {
        self.ttl_of = Some(Arc::new(ttl));
        self
    }

    /// The [tags](Loaded::tag) of a response.
    #[must_use]
    pub fn tags_of(mut self, tags: impl Fn(&V) -> Vec<Arc<str>> + Send + Sync + 'static) -> Self {
        self.tags_of = Some(Arc::new(tags));
        self
    }

    /// A closure that makes a value to cache of a response.
    fn describe(&self) -> impl FnOnce(V) -> Loaded<V> + Send + 'static {
        let (ttl_of, tags_of) = (self.ttl_of.clone(), self.tags_of.clone());
        move |response| {
            let ttl = ttl_of.and_then(|ttl_of| ttl_of(&response));
            let tags = tags_of.map_or(Vec::new(), |tags_of| tags_of(&response));
            let loaded = Loaded::new(response).tags(tags);
            match ttl {
                Some(ttl) => loaded.ttl(ttl),
                None => loaded,
            }
        }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static, F: Clone> Clone for CacheLayer<K, V, F> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            key_of: self.key_of.clone(),
            ttl_of: self.ttl_of.clone(),
            tags_of: self.tags_of.clone(),
        }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static, F> fmt::Debug for CacheLayer<K, V, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CacheLayer").field(&self.cache).finish()
    }
}

impl<S, K, V, F> Layer<S> for CacheLayer<K, V, F>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Clone,
{
    type Service = CacheService<S, K, V, F>;

    fn layer(&self, inner: S) -> Self::Service {
        CacheService {
            inner,
            layer: self.clone(),
        }
    }
}

/// Service that a [`CacheLayer`] makes.
pub struct CacheService<S, K: CacheKey, V: Send + Sync + 'static, F> {
    inner: S,
    layer: CacheLayer<K, V, F>,
}

impl<S, K, V, F> Clone for CacheService<S, K, V, F>
where
    S: Clone,
    K: CacheKey,
    V: Send + Sync + 'static,
    F: Clone,
{
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S: fmt::Debug, K, V, F> fmt::Debug for CacheService<S, K, V, F>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.layer.cache.shared.name;
        let _entered = order::enter(|| Part::new(Pattern::Cache, Arc::clone(name)));
        f.debug_struct("CacheService")
            .field("layer", &self.layer)
            .field("inner", &self.inner)
            .finish()
    }
}

impl<S, Req, K, V, F> Service<Req> for CacheService<S, K, V, F>
where
    S: Service<Req, Response = V> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: ServiceError + Send + Sync + 'static,
    Req: Send + 'static,
    K: CacheKey,
    V: Clone + Unpin + Send + Sync + 'static,
    F: Fn(&Req) -> Option<K>,
{
    type Response = V;
    type Error = S::Error;
    type Future = CacheFuture<V, S::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // Whether the service is needed is not known yet.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let key = (self.layer.key_of)(&request);
        let cache = &self.layer.cache;
        if let Some(hit) = key.as_ref().and_then(|key| cache.shared.fresh(key)) {
            return CacheFuture(State::Hit(Some(hit)));
        }
        let mut inner = self.inner.clone();
        let call = async move {
            poll_fn(|cx| inner.poll_ready(cx)).await?;
            inner.call(request).await
        };
        let Some(key) = key else {
            return CacheFuture(State::Call(Box::pin(call)));
        };
        let (cache, describe) = (cache.clone(), self.layer.describe());
        CacheFuture(State::Call(Box::pin(async move {
            let load = move || async move { call.await.map(describe) };
            let loaded = cache.load_with(&key, CallOptions::new(), load).await;
            match loaded.map(|lookup| lookup.value) {
                Ok(Some(value)) => Ok(Arc::unwrap_or_clone(value)),
                Ok(None) => Err(cache.shared.reject(Reason::NotFound).into()),
                Err(error) => Err(own(&cache, error)),
            }
        })))
    }
}

/// The error of one of the callers that shared a load.
fn own<K: CacheKey, V: Send + Sync + 'static, E: ServiceError>(
    cache: &Cache<K, V>,
    error: LoadError<E>,
) -> E {
    match error {
        Error::Rejected(rejected) => rejected.into(),
        Error::Service(error) => Arc::try_unwrap(error).unwrap_or_else(|error| {
            let below = error.as_rejected().cloned();
            below
                .unwrap_or_else(|| cache.shared.reject(Reason::SharedCallFailed))
                .into()
        }),
    }
}

/// Future of a [`CacheService`]. A hit in this process needs no allocation.
pub struct CacheFuture<V, E>(State<V, E>);

enum State<V, E> {
    Hit(Option<V>),
    Call(Pin<Box<dyn Future<Output = Result<V, E>> + Send>>),
}

impl<V: Unpin, E> Future for CacheFuture<V, E> {
    type Output = Result<V, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Hit(hit) => Poll::Ready(Ok(hit.take().expect("polled after it was done"))),
            State::Call(call) => call.as_mut().poll(cx),
        }
    }
}

impl<V, E> fmt::Debug for CacheFuture<V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheFuture").finish_non_exhaustive()
    }
}
