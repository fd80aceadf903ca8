//! The OpenTelemetry side: one observable instrument per row of the table, over all handles of the process.

use std::collections::BTreeMap;

use opentelemetry::{KeyValue, metrics::Meter};

use super::{Kind, Metric, TABLE};

const NAME: &str = "resilience.name";

/// Exports every metric of [`TABLE`] through `meter`, for all handles that exist and all that will.
///
/// Call it once per meter provider, before or after the handles are built. The instruments live as long as the
/// provider; handles are held weakly and vanish from the next export on when they are dropped. Cost: none per call;
/// an export reads every handle of the pattern once per metric.
///
/// ```
/// use opentelemetry::metrics::MeterProvider;
/// use opentelemetry_sdk::metrics::SdkMeterProvider;
///
/// let provider = SdkMeterProvider::builder().build(); // with your reader
/// resilience_core::telemetry::export(&provider.meter("payments-service"));
/// ```
pub fn export(meter: &Meter) {
    for metric in TABLE {
        // The instrument handles may go: the callbacks stay with the provider.
        match metric.kind {
            Kind::Counter => drop(
                meter
                    .u64_observable_counter(metric.name)
                    .with_unit(metric.unit)
                    .with_description(metric.description)
                    .with_callback(move |observer| {
                        observe(metric, |value, at| observer.observe(value, at));
                    })
                    .build(),
            ),
            Kind::UpDownCounter => drop(
                meter
                    .i64_observable_up_down_counter(metric.name)
                    .with_unit(metric.unit)
                    .with_description(metric.description)
                    .with_callback(move |observer| {
                        observe(metric, |value, at| {
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
                        observe(metric, |value, at| observer.observe(value, at));
                    })
                    .build(),
            ),
        }
    }
}

/// Adds up what all handles say of `metric`, by name and attribute: two handles of one name are one series.
fn observe(metric: &'static Metric, mut each: impl FnMut(u64, &[KeyValue])) {
    let mut sums: BTreeMap<(String, String), u64> = BTreeMap::new();
    for source in super::live()
        .iter()
        .filter(|source| source.pattern() == metric.pattern)
    {
        let mut add = |of: &Metric, attribute: &str, value| {
            if of == metric {
                let series = (source.name().to_owned(), attribute.to_owned());
                *sums.entry(series).or_default() += value;
            }
        };
        source.read(&mut |reading| add(reading.metric, reading.attribute, reading.value));
        source.read_named(&mut |of, attribute, value| add(of, attribute, value));
    }
    for ((name, attribute), value) in sums {
        let name = KeyValue::new(NAME, name);
        match metric.attribute {
            Some(key) => each(value, &[name, KeyValue::new(key, attribute)]),
            None => each(value, &[name]),
        }
    }
}
