//! How a figure is told.

use serde_json::json;

/// A bound on a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    Exactly(f64),
    /// Told, not held to.
    Open,
}

/// Prints one figure.
pub(crate) fn figure(name: &str, value: f64, unit: &str, target: Target) {
    let mut line = json!({ "figure": name, "value": round(value), "unit": unit });
    let (bound, met) = match target {
        Target::AtMost(bound) => (format!("<= {bound}"), value <= bound),
        Target::AtLeast(bound) => (format!(">= {bound}"), value >= bound),
        Target::Exactly(bound) => (format!("= {bound}"), value == bound),
        Target::Open => (String::new(), true),
    };
    if !bound.is_empty() {
        line["target"] = json!(bound);
        line["met"] = json!(met);
    }
    println!("{line}");
}

/// The value below which this share of the samples lies.
pub(crate) fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len());
    samples[at - 1]
}

/// How loaded the machine was during the last minute, by itself and by us.
pub(crate) fn load() {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    if let Some(load) = text.split(' ').next().and_then(|word| word.parse().ok()) {
        figure(
            "machine_load",
            load,
            &format!("of {cores} cores"),
            Target::Open,
        );
    }
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
