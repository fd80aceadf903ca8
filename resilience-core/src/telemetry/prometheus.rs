//! How Prometheus spells the names of the table.
//!
//! # References
//! OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility", section "OTLP metric points to Prometheus".

use super::{Kind, Metric};

impl Metric {
    /// The name of this metric in Prometheus, by the algorithm of the OpenTelemetry specification: underscores, the
    /// unit in words, `_total` for counters.
    ///
    /// ```
    /// use resilience_core::telemetry::IDEMPOTENCY_OUTCOME_SIZE;
    ///
    /// assert_eq!(IDEMPOTENCY_OUTCOME_SIZE.prometheus_name(), "resilience_idempotency_outcome_size_bytes_total");
    /// ```
    #[must_use]
    pub fn prometheus_name(&self) -> String {
        let monotonic = self.kind == Kind::Counter;
        let mut words = words(self.name);
        words.retain(|word| !(monotonic && *word == "total"));
        let unit = match self.unit {
            "1" if self.kind == Kind::Gauge => "ratio".to_owned(),
            unit => unit_in_words(unit),
        };
        for part in unit.split('_').filter(|part| !part.is_empty()) {
            if !words.contains(&part) {
                words.push(part);
            }
        }
        if monotonic {
            words.push("total");
        }
        let name = words.join("_");
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            format!("_{name}")
        } else {
            name
        }
    }
}

/// The label that Prometheus makes of an attribute's key.
#[cfg(all(test, not(loom)))]
pub(super) fn label(key: &str) -> String {
    words(key).join("_")
}

fn words(name: &str) -> Vec<&str> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == ':';
    let words = name.split(|letter| !is_word(letter));
    words.filter(|word| !word.is_empty()).collect()
}

/// `By` is bytes, `By/s` is bytes_per_second; annotations in braces are left out.
fn unit_in_words(unit: &str) -> String {
    let mut plain = String::new();
    let mut annotation = false;
    for letter in unit.chars() {
        match letter {
            '{' => annotation = true,
            '}' => annotation = false,
            _ if !annotation => plain.push(letter),
            _ => {}
        }
    }
    let plural = |unit: &str| match unit {
        "d" => "days",
        "h" => "hours",
        "min" => "minutes",
        "s" => "seconds",
        "ms" => "milliseconds",
        "us" => "microseconds",
        "ns" => "nanoseconds",
        "By" => "bytes",
        "KiBy" => "kibibytes",
        "MiBy" => "mebibytes",
        "%" => "percent",
        _ => "",
    };
    let singular = |unit: &str| match unit {
        "s" => "second",
        "min" => "minute",
        "h" => "hour",
        "d" => "day",
        _ => "",
    };
    match plain.split_once('/') {
        None => plural(&plain).to_owned(),
        Some((unit, per)) if singular(per).is_empty() => plural(unit).to_owned(),
        Some((unit, per)) => format!("{}_per_{}", plural(unit), singular(per)),
    }
}
