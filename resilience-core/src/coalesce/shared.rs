//! What all clones and layers of a handle share: the calls in progress, and the counts.

use std::{hash::Hash, sync::Arc};

use super::{CoalesceSnapshot, FlightOptions, Flights, outcome::Outcome};
use crate::{
    error::{Pattern, Reason, Rejected},
    stripe::Counter,
    telemetry::{
        self, COALESCE_CALLS, COALESCE_IN_PROGRESS, COALESCE_WAITING, Reading, Scope, Source,
        counters,
    },
};

pub(super) type ShareError<E> = Box<dyn Fn(&E) -> E + Send + Sync>;

pub(super) struct Shared<K, T, E> {
    pub(super) flights: Flights<K, Outcome<T, E>>,
    pub(super) share_error: Option<ShareError<E>>,
    pub(super) count: Arc<Count>,
}

/// Name and counters, as the exporter reads them: without the types of the calls.
pub(super) struct Count {
    pub(super) name: Arc<str>,
    pub(super) started: Counter,
    pub(super) joined: Counter,
    counters: Counters,
    load: Box<dyn Fn() -> Load + Send + Sync>,
}

struct Load {
    in_progress: usize,
    waiting: usize,
}

counters! {
    /// Counters of what is rare.
    struct Counters;
    reruns = COALESCE_RERUNS, "Callers that began again because the call they had joined failed.";
    rejected = COALESCE_REJECTIONS, "Callers whose second shared call failed too.";
}

impl<K, T, E> Shared<K, T, E>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: Send + 'static,
{
    pub(super) fn new(
        name: Arc<str>,
        options: FlightOptions,
        share_error: Option<ShareError<E>>,
    ) -> Self {
        let flights = Flights::new(options);
        let read = flights.clone();
        let load = Box::new(move || Load {
            in_progress: read.len(),
            waiting: read.waiters(),
        });
        let count = Arc::new(Count {
            name,
            started: Counter::new(),
            joined: Counter::new(),
            counters: Counters::default(),
            load,
        });
        telemetry::register(&count);
        Self {
            flights,
            share_error,
            count,
        }
    }
}

impl Count {
    pub(super) fn snapshot(&self) -> CoalesceSnapshot {
        use std::sync::atomic::Ordering::Relaxed;
        let load = (self.load)();
        CoalesceSnapshot {
            in_progress: load.in_progress,
            waiting: load.waiting,
            started: self.started.sum(),
            joined: self.joined.sum(),
            reruns: self.counters.reruns.load(Relaxed),
            rejected: self.counters.rejected.load(Relaxed),
        }
    }

    #[cold]
    pub(super) fn rerun(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.counters.reruns.fetch_add(1, Relaxed);
        let (pattern, name) = (Pattern::Coalesce.as_str(), &*self.name);
        tracing::debug!(target: "resilience", pattern, name, "shared call failed, beginning again");
    }

    #[cold]
    pub(super) fn reject(&self) -> Rejected {
        let scope = Scope::new(Pattern::Coalesce, &self.name);
        scope.count_and_reject(&self.counters.rejected, Reason::SharedCallFailed, None)
    }
}

impl Source for Count {
    fn pattern(&self) -> Pattern {
        Pattern::Coalesce
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.counters.read(out);
        let load = (self.load)();
        for (metric, attribute, value) in [
            (&COALESCE_CALLS, "started", self.started.sum()),
            (&COALESCE_CALLS, "joined", self.joined.sum()),
            (&COALESCE_IN_PROGRESS, "", load.in_progress as u64),
            (&COALESCE_WAITING, "", load.waiting as u64),
        ] {
            out(Reading {
                metric,
                attribute,
                value,
            });
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}
