//! The OpenTelemetry side: one observable instrument per row of the table, over all handles of the process.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{InstrumentationScope, KeyValue, metrics::MeterProvider};

use super::{Kind, Metric, Series, TABLE, series};
use crate::clock::{Clock, Moment};

const NAME: &str = "resilience.name";

/// Exports every metric of [`TABLE`] through a meter of `provider`, for all handles that exist and all that will.
///
/// Call it once per meter provider, before or after the handles are built. The instruments live as long as the
/// provider. Handles are held weakly: when one is dropped, its gauges vanish from the next export and its counters
/// keep their last values. Cost: none per call; an export reads every handle once.
///
/// The scope of the meter is `resilience`, with the version of this crate. The Prometheus exporter writes the scope on
/// every series unless built with `scope_info_enabled(false)`, which also keeps a new version from beginning new series.
///
/// ```
/// use opentelemetry_sdk::metrics::SdkMeterProvider;
///
/// let provider = SdkMeterProvider::builder().build(); // with your reader
/// resilience_core::telemetry::export(&provider);
/// ```
pub fn export(provider: &(impl MeterProvider + ?Sized)) {
    let scope = InstrumentationScope::builder("resilience")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build();
    let meter = provider.meter_with_scope(scope);
    let shared = Arc::new(Export::default());
    for (row, metric) in TABLE.iter().enumerate() {
        let export = Arc::clone(&shared);
        // The instrument handles may go: the callbacks stay with the provider.
        match metric.kind {
            Kind::Counter => drop(
                meter
                    .u64_observable_counter(metric.name)
                    .with_unit(metric.unit)
                    .with_description(metric.description)
                    .with_callback(move |observer| {
                        export.observe(row, |value, at| observer.observe(value, at));
                    })
                    .build(),
            ),
            Kind::UpDownCounter => drop(
                meter
                    .i64_observable_up_down_counter(metric.name)
                    .with_unit(metric.unit)
                    .with_description(metric.description)
                    .with_callback(move |observer| {
                        export.observe(row, |value, at| {
                            observer.observe(i64::try_from(value).unwrap_or(i64::MAX), at);
                        });
                    })
                    .build(),
            ),
            Kind::Gauge => drop(
                meter
                    .u64_observable_gauge(metric.name)
                    .with_unit(metric.unit)
                    .with_description(metric.description)
                    .with_callback(move |observer| {
                        export.observe(row, |value, at| observer.observe(value, at));
                    })
                    .build(),
            ),
        }
    }
}

/// One reading of all handles, shared by the rows of one export: otherwise the values of one scrape would be of
/// different moments.
#[derive(Default)]
struct Export(Mutex<Option<Shared>>);

struct Shared {
    series: Arc<[Series]>,
    at: Moment,
    /// The rows that were exported from it. The first row that comes again begins the next export.
    served: [bool; TABLE.len()],
}

/// Maximum age of a reading, for readers that export only some of the rows.
const MAX_AGE: Duration = Duration::from_secs(1);

impl Export {
    fn observe(&self, row: usize, mut each: impl FnMut(u64, &[KeyValue])) {
        let metric = &TABLE[row];
        for one in self.reading(row).iter().filter(|one| one.metric == metric) {
            let name = KeyValue::new(NAME, Arc::clone(&one.name));
            match attribute(metric, one) {
                Some(attribute) => each(one.value, &[name, attribute]),
                None => each(one.value, &[name]),
            }
        }
    }

    fn reading(&self, row: usize) -> Arc<[Series]> {
        let now = Clock::auto().now();
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = match shared.take() {
            Some(fresh) if !fresh.served[row] && now.since(fresh.at) <= MAX_AGE => fresh,
            _ => Shared {
                series: series().into(),
                at: now,
                served: [false; TABLE.len()],
            },
        };
        let reading = shared.insert(reading);
        reading.served[row] = true;
        Arc::clone(&reading.series)
    }
}

fn attribute(metric: &Metric, series: &Series) -> Option<KeyValue> {
    let key = metric.attribute?.key;
    Some(KeyValue::new(key, series.attribute.clone()))
}
