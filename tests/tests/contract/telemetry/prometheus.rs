//! Two ways from the table to Prometheus: the Rust exporter, and the specification's algorithm, which collectors and
//! Prometheus' own receiver follow. Dashboards must not depend on which of them was taken.

use std::collections::BTreeMap;

use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use resilience_core::telemetry::{self, Kind, TABLE};

use super::metrics::everything_happens;

#[tokio::test]
async fn both_spellings_of_every_name_agree() {
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .without_target_info()
        .build()
        .unwrap();
    let provider = SdkMeterProvider::builder().with_reader(exporter).build();
    telemetry::export(&provider);
    let _kept = everything_happens("telemetry.prometheus").await;

    let text = TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let types: BTreeMap<&str, &str> = types.filter_map(|line| line.split_once(' ')).collect();
    for row in TABLE {
        let name = row.prometheus_name();
        let kind = match row.kind {
            Kind::Counter => "counter",
            _ => "gauge",
        };
        assert_eq!(types.get(&*name), Some(&kind), "{name}: {types:?}");
        assert!(!name.ends_with("_ratio"), "{name}");
        if let Some(attribute) = row.attribute {
            let label = format!(",{}=\"", attribute.key.replace('.', "_"));
            let mut samples = text
                .lines()
                .filter(|line| line.starts_with(&format!("{name}{{")));
            assert!(
                samples.all(|line| line.replace('{', ",").contains(&label)),
                "{label}: {text}"
            );
        }
    }
    assert_eq!(types.len(), TABLE.len(), "{types:?}");
}
