//! Load shedding: a call is rejected at once when the inner service is not ready.
//!
//! Differences from tower's `LoadShed`, which suits stacks whose error is a `BoxError`:
//!
//! | | tower's | this one |
//! |---|---|---|
//! | error | `BoxError`, with `Overloaded` inside | the stack's own; a [`Rejected`] with [`Reason::Overloaded`], which the layers around it do not count against the dependency |
//! | name, count, event | none | yes |
//! | inner service that was not ready | keeps its place in the queue, which no call uses | is replaced by a clone: idle clones hold nothing |
//! | inner service | any | `Clone` |
//!
//! The last two belong together: the queue slot of a service such as tower's `ConcurrencyLimit` or `Buffer` becomes a
//! permit, which an idle clone would withhold from all others. In return, readiness must not be work that each clone
//! starts from the beginning. Put such a service (e.g. one that connects) behind a `tower::buffer`, whose worker drives
//! it.
//!
//! To shed by the number of calls in flight, use a [`Bulkhead`](crate::bulkhead::Bulkhead) without a queue: its rejections
//! say when to retry.
//!
//! ```
//! use resilience_core::{LoadShed, Rejected};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let shed = LoadShed::new("api");
//! let service = ServiceBuilder::new()
//!     .layer(shed.layer())
//!     .buffer(16)
//!     .service(service_fn(|n: u32| async move { Ok::<_, Rejected>(n + 1) }));
//! assert_eq!(service.oneshot(1).await?, 2);
//! assert_eq!(shed.snapshot().rejected, 0);
//! # Ok(()) }
//! ```
//!
//! **Order**: outside of all layers that may make callers wait. **Cost**: one flag for a passing call, a clone of the inner
//! service for a shed one. **Cancellation**: drops the inner future.
//!
//! # References
//!
//! "Handling Overload", in: Site Reliability Engineering, O'Reilly, 2016.

mod future;
mod layer;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{fmt, sync::Arc};

pub use self::{
    future::ResponseFuture,
    layer::{LoadShedLayer, LoadShedService},
};
use crate::{
    error::{Pattern, Reason, Rejected},
    telemetry::{self, Reading, Scope, Source, counters},
};

/// Load shed: rejects calls that would wait. Clones share the counters.
#[derive(Clone)]
pub struct LoadShed {
    shared: Arc<Shared>,
}

struct Shared {
    name: Arc<str>,
    counters: Counters,
}

counters! {
    /// Counters of a [`LoadShed`].
    struct Counters;
    /// Counts of a [`LoadShed`] since it was built. From [`LoadShed::snapshot`].
    pub struct LoadShedSnapshot;
    rejected = SHED_REJECTIONS, "Calls shed because the inner service was not ready.";
}

impl LoadShed {
    /// A load shed called `name`, as it appears in rejections, events and metrics.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let shared = Arc::new(Shared {
            name: name.into(),
            counters: Counters::default(),
        });
        telemetry::register(&shared);
        Self { shared }
    }

    /// A layer that rejects calls while its inner service is not ready.
    pub fn layer(&self) -> LoadShedLayer {
        LoadShedLayer::new(self.clone())
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The counts since it was built.
    #[must_use]
    pub fn snapshot(&self) -> LoadShedSnapshot {
        self.shared.counters.snapshot()
    }
}

impl Shared {
    #[cold]
    fn reject(&self) -> Rejected {
        let scope = Scope::new(Pattern::LoadShed, &self.name);
        scope.count_and_reject(&self.counters.rejected, Reason::Overloaded, None)
    }
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::LoadShed
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.counters.read(out);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl fmt::Debug for LoadShed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShed")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}
