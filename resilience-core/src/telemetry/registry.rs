//! Every handle of the process that has metrics, and the counters of dropped handles.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ptr::from_ref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{Kind, Metric};
use crate::error::Pattern;

/// One value of one metric. Readings of the same metric, name and attribute are added up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) metric: &'static Metric,
    /// The value of [`Metric::attribute`]; empty where there is none.
    pub(crate) attribute: &'static str,
    pub(crate) value: u64,
}

/// A handle with metrics. Implementations call [`register`] when they are built and [`retire`] when they are dropped.
pub(crate) trait Source: Send + Sync + 'static {
    /// The pattern of the handle.
    #[cfg_attr(not(test), allow(dead_code))]
    fn pattern(&self) -> Pattern;
    /// The name the handle was built with.
    fn name(&self) -> &str;
    /// Passes every value to `out`. Called once per export, off the hot path.
    fn read(&self, out: &mut dyn FnMut(Reading));
    /// As [`read`](Self::read), for metrics whose attribute is a configured name.
    fn read_named(&self, _out: &mut dyn FnMut(&'static Metric, &str, u64)) {}
    /// Passes the counters of a handle that is being dropped to `out`; other values are ignored. Must change nothing.
    fn read_last(&self, out: &mut dyn FnMut(Reading)) {
        self.read(out);
    }
}

/// The value of one series at one moment. From [`series`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Series {
    /// The row of the table.
    pub metric: &'static Metric,
    /// The name that the handle was built with.
    pub name: Arc<str>,
    /// The value of [`Metric::attribute`]; empty where there is none.
    pub attribute: Cow<'static, str>,
    /// The sum over the handles of this name; for counters, dropped handles included.
    pub value: u64,
}

/// Returns every series of this process, for consoles and status pages without OpenTelemetry.
///
/// Reads each handle once. A counter never goes down when handles are dropped.
#[must_use]
pub fn series() -> Vec<Series> {
    let (live, retired) = {
        let registry = lock();
        let live: Vec<_> = registry.live.values().filter_map(Weak::upgrade).collect();
        (live, registry.retired.clone())
    };
    let mut sums = retired;
    for source in &live {
        let name: Arc<str> = source.name().into();
        source.read(&mut |reading| sums.add_reading(&name, reading));
        source.read_named(&mut |metric, limit, value| sums.add_named(&name, metric, limit, value));
    }
    // The last reference of a handle may be dropped here, which retires it: not under the lock.
    drop(live);
    lock().never_less(&mut sums);
    let one = |(key, (metric, value)): (Key, (&'static Metric, u64))| Series {
        metric,
        name: key.name,
        attribute: key.attribute,
        value,
    };
    sums.0.into_iter().map(one).collect()
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    metric: &'static str,
    name: Arc<str>,
    attribute: Cow<'static, str>,
}

/// Values by series.
#[derive(Clone, Default)]
struct Sums(BTreeMap<Key, (&'static Metric, u64)>);

struct Registry {
    /// By address; the weak reference keeps an address from being used again.
    live: BTreeMap<usize, Weak<dyn Source>>,
    /// Counters of dropped handles. Kept forever: names are configuration, so there are few.
    retired: Sums,
    /// Counters as they were last read. A handle between its last reference and its retirement is in neither of the
    /// two above.
    told: Sums,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    live: BTreeMap::new(),
    retired: Sums(BTreeMap::new()),
    told: Sums(BTreeMap::new()),
});

fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn address<S>(source: &S) -> usize {
    from_ref(source).addr()
}

/// Enters a handle in the process-wide list.
pub(crate) fn register<S: Source>(source: &Arc<S>) {
    let weak: Weak<S> = Arc::downgrade(source);
    lock().live.insert(address(&**source), weak);
}

/// Keeps what a handle has counted beyond its life: a counter must not go down when one of two handles of a name is
/// dropped. To be called when the handle is dropped; does nothing for one that was not registered.
pub(crate) fn retire<S: Source>(source: &S) {
    let at = address(source);
    if !lock().live.contains_key(&at) {
        return;
    }
    // Reading a family may drop members of it, which come here too: not under the lock.
    let (mut last, name) = (Sums::default(), Arc::from(source.name()));
    source.read_last(&mut |reading| last.add_reading(&name, reading));
    source.read_named(&mut |metric, limit, value| last.add_named(&name, metric, limit, value));
    last.0.retain(|_, (metric, _)| metric.kind == Kind::Counter);
    let mut registry = lock();
    registry.live.remove(&at);
    for (key, (metric, value)) in last.0 {
        registry.retired.add(key, metric, value);
    }
}

impl Sums {
    fn add_reading(&mut self, name: &Arc<str>, reading: Reading) {
        let (metric, attribute) = (reading.metric, Cow::Borrowed(reading.attribute));
        self.add(Key::new(metric, name, attribute), metric, reading.value);
    }

    fn add_named(&mut self, name: &Arc<str>, metric: &'static Metric, limit: &str, value: u64) {
        let attribute = Cow::Owned(limit.to_owned());
        self.add(Key::new(metric, name, attribute), metric, value);
    }

    fn add(&mut self, key: Key, metric: &'static Metric, value: u64) {
        let sum = self.0.entry(key).or_insert((metric, 0));
        sum.1 = sum.1.saturating_add(value);
    }
}

impl Key {
    fn new(metric: &Metric, name: &Arc<str>, attribute: Cow<'static, str>) -> Self {
        Self {
            metric: metric.name,
            name: Arc::clone(name),
            attribute,
        }
    }
}

impl Registry {
    /// Raises counters to what was read before.
    fn never_less(&mut self, sums: &mut Sums) {
        for (key, (metric, told)) in &self.told.0 {
            let now = sums.0.entry(key.clone()).or_insert((metric, 0));
            now.1 = now.1.max(*told);
        }
        let counters = sums.0.iter();
        let counters = counters.filter(|(_, (metric, _))| metric.kind == Kind::Counter);
        self.told.0 = counters.map(|(key, value)| (key.clone(), *value)).collect();
    }
}
