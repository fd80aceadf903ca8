//! The figures that the project is held to: stable names, one JSON line each.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    report::{Allocations, Row},
    subjects::{
        LIMIT_OF_A_KEY, cache, caches, coalesce, others, ours, seatbelt, sketches, tower_own,
        tower_resilience,
    },
};

/// One figure, with a peer's beside it where there is one.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Stable.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// In which unit.
    pub unit: &'static str,
    /// The peer, and what was measured of it in the same run.
    pub peer: Option<(&'static str, f64)>,
    /// What the project wants it to be.
    pub target: Option<Target>,
}

/// A bound on a figure.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Target {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

impl Target {
    /// Whether `value` keeps to the bound.
    #[must_use]
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

impl Figure {
    /// The line for scripts.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut line = json!({
            "figure": self.name,
            "value": round(self.value),
            "unit": self.unit,
        });
        if let Some((peer, value)) = self.peer {
            line["peer"] = json!(peer);
            line["peer_value"] = json!(round(value));
        }
        line
    }
}

/// Every figure for which there are rows, and the memory of a key.
#[must_use]
pub fn from(rows: &[Row], allocations: &[Allocations]) -> Vec<Figure> {
    let row = |name: &str| rows.iter().find(|row| row.name == name);
    let mut figures = Vec::new();
    for (name, ours, peer, target) in COSTS {
        if let Some(ours) = row(ours) {
            figures.push(Figure {
                name: format!("{name}_ns"),
                value: ours.ns,
                unit: "ns over bare",
                peer: row(peer).map(|peer| (peer.name, peer.ns)),
                target: *target,
            });
        }
    }
    if let (Some(shared), Some(local)) = (row(ours::SHARED), row(ours::TIME_WINDOW)) {
        figures.push(Figure {
            name: "breaker_shared_over_local_ns".to_owned(),
            value: shared.ns - local.ns,
            unit: "ns over the local breaker",
            peer: Some((local.name, local.ns)),
            target: Some(Target::AtMost(10.0)),
        });
    }
    // It allocates, as a call that others can go on with has to.
    figures.extend(row(coalesce::STARTED).map(|started| Figure {
        name: "coalesce_started_ns".to_owned(),
        value: started.ns,
        unit: "ns over bare",
        peer: None,
        target: None,
    }));
    for (name, ours, peer, target) in RATIOS {
        if let (Some(ours), Some(peer)) = (row(ours), row(peer)) {
            figures.push(Figure {
                name: (*name).to_owned(),
                value: peer.ns / ours.ns,
                unit: "times faster",
                peer: Some((peer.name, 1.0)),
                target: *target,
            });
        }
    }
    for (name, ours, peer, target) in TWO_CORES {
        if let Some(two) = row(ours).and_then(|ours| ours.two_cores) {
            figures.push(Figure {
                name: format!("{name}_two_cores"),
                value: two.ratio,
                unit: "x of one core",
                // What a busy machine made of the peer is not held against it.
                peer: row(peer).and_then(|peer| {
                    let two = peer.two_cores.filter(|two| two.sound)?;
                    Some((peer.name, two.ratio))
                }),
                target: *target,
            });
        }
    }
    for (name, ours, peer, _) in COSTS {
        if let Some(ours) = row(ours) {
            figures.push(Figure {
                name: format!("{name}_allocations"),
                value: ours.allocations,
                unit: "allocations per call",
                peer: row(peer).map(|peer| (peer.name, peer.allocations)),
                target: Some(Target::AtMost(0.0)),
            });
        }
    }
    let of_a_key = allocations.iter().find(|row| row.name == LIMIT_OF_A_KEY);
    figures.extend(of_a_key.map(|row| Figure {
        name: "rate_limit_bytes_per_key".to_owned(),
        value: row.bytes,
        unit: "bytes beside the key",
        peer: None,
        target: Some(Target::AtMost(128.0)),
    }));
    figures
}

/// Name of the figure, our row, the peer's row, the target.
type Line = (&'static str, &'static str, &'static str, Option<Target>);

/// What a layer adds to a call. The peer is the one whose layer does the most of the same.
const COSTS: &[Line] = &[
    (
        "breaker_time_window",
        ours::TIME_WINDOW,
        tower_resilience::BREAKER,
        Some(Target::AtMost(35.0)),
    ),
    (
        "breaker_count_window",
        ours::COUNT_WINDOW,
        tower_resilience::BREAKER,
        None,
    ),
    (
        "breaker_slow_calls",
        ours::SLOW_CALLS,
        tower_resilience::BREAKER,
        None,
    ),
    (
        "breaker_shared",
        ours::SHARED,
        tower_resilience::BREAKER,
        None,
    ),
    ("breaker_keyed", ours::KEYED, seatbelt::BREAKER, None),
    ("deadline", ours::DEADLINE, tower_own::TIMEOUT, None),
    ("retry", ours::RETRY, tower_resilience::RETRY, None),
    ("bulkhead", ours::BULKHEAD, tower_resilience::BULKHEAD, None),
    (
        "bulkhead_keyed",
        ours::BULKHEAD_KEYED,
        tower_resilience::BULKHEAD,
        None,
    ),
    (
        "rate_limit_check",
        ours::LIMIT_CHECK,
        others::GOVERNOR,
        None,
    ),
    (
        "rate_limit_check_keyed",
        ours::LIMIT_CHECK_KEYED,
        others::GOVERNOR_KEYED,
        None,
    ),
    (
        "rate_limit_check_256_keys",
        ours::LIMIT_CHECK_256,
        others::GOVERNOR_256,
        None,
    ),
    (
        "rate_limit_check_100000_keys",
        ours::LIMIT_CHECK_100000,
        others::GOVERNOR_100000,
        None,
    ),
    ("rate_limit", ours::RATE_LIMIT, others::GOVERNOR, None),
    ("shed", ours::SHED, tower_own::LOAD_SHED, None),
    // No peer passes calls by.
    ("coalesce_passing", ours::COALESCE_PASSING, "", None),
    ("cache_local_hit", cache::HIT, caches::MOKA, None),
    ("cache_layer_hit", cache::LAYER_HIT, "", None),
    (
        "five_layers",
        ours::FIVE,
        tower_own::FIVE,
        Some(Target::AtMost(110.0)),
    ),
];

/// Costs compared: how many times the peer's is ours.
const RATIOS: &[Line] = &[
    (
        "breaker_vs_tower_resilience",
        ours::TIME_WINDOW,
        tower_resilience::BREAKER,
        Some(Target::AtLeast(6.0)),
    ),
    (
        "breaker_vs_tower_resilience_time_window",
        ours::TIME_WINDOW,
        tower_resilience::TIME_WINDOW,
        None,
    ),
    (
        "breaker_vs_seatbelt",
        ours::TIME_WINDOW,
        seatbelt::BREAKER,
        None,
    ),
    (
        "breaker_vs_failsafe",
        ours::TIME_WINDOW,
        others::FAILSAFE,
        None,
    ),
    (
        "breaker_vs_recloser",
        ours::COUNT_WINDOW,
        others::RECLOSER,
        None,
    ),
    // The same, with its target.
    (
        "breaker_count_window_vs_recloser",
        ours::COUNT_WINDOW,
        others::RECLOSER,
        Some(Target::AtLeast(1.0)),
    ),
    // At most a quarter more than counting alone.
    (
        "breaker_time_window_vs_sketch",
        ours::TIME_WINDOW,
        sketches::TIME_WINDOW,
        Some(Target::AtLeast(0.8)),
    ),
    // At most half as much again as governor's.
    (
        "rate_limit_check_vs_governor",
        ours::LIMIT_CHECK,
        others::GOVERNOR,
        Some(Target::AtLeast(0.667)),
    ),
    (
        "rate_limit_check_keyed_vs_governor",
        ours::LIMIT_CHECK_KEYED,
        others::GOVERNOR_KEYED,
        None,
    ),
    (
        "rate_limit_check_256_keys_vs_governor",
        ours::LIMIT_CHECK_256,
        others::GOVERNOR_256,
        Some(Target::AtLeast(1.0)),
    ),
    (
        "rate_limit_check_100000_keys_vs_governor",
        ours::LIMIT_CHECK_100000,
        others::GOVERNOR_100000,
        Some(Target::AtLeast(1.0)),
    ),
    (
        "cache_local_hit_vs_moka_future",
        cache::HIT,
        caches::MOKA,
        Some(Target::AtLeast(4.0)),
    ),
    (
        "cache_local_hit_vs_moka_future_load",
        cache::HIT,
        caches::MOKA_LOAD,
        None,
    ),
    (
        "cache_local_hit_vs_quick_cache",
        cache::HIT,
        caches::QUICK_CACHE,
        None,
    ),
    (
        "five_layers_vs_tower_resilience",
        ours::FIVE,
        tower_resilience::FIVE,
        Some(Target::AtLeast(9.0)),
    ),
    (
        "five_layers_vs_tower",
        ours::FIVE,
        tower_own::FIVE,
        // At most 0.6 of the time.
        Some(Target::AtLeast(1.667)),
    ),
];

/// Throughput of two cores over that of one.
const TWO_CORES: &[Line] = &[
    (
        "breaker_time_window",
        ours::TIME_WINDOW,
        tower_resilience::BREAKER,
        Some(Target::AtLeast(1.6)),
    ),
    (
        "breaker_count_window",
        ours::COUNT_WINDOW,
        others::RECLOSER,
        None,
    ),
    ("breaker_keyed", ours::KEYED, seatbelt::BREAKER, None),
    ("retry", ours::RETRY, tower_resilience::RETRY, None),
    (
        "bulkhead",
        ours::BULKHEAD,
        tower_own::CONCURRENCY_LIMIT,
        Some(Target::AtLeast(1.0)),
    ),
    (
        "rate_limit_check",
        ours::LIMIT_CHECK,
        others::GOVERNOR,
        None,
    ),
    (
        "five_layers",
        ours::FIVE,
        tower_resilience::FIVE,
        Some(Target::AtLeast(1.7)),
    ),
    (
        "cache_local_hit",
        cache::PEEK,
        caches::QUICK_CACHE,
        Some(Target::AtLeast(1.7)),
    ),
    // A counter in the value that both cores write.
    ("cache_local_hit_cloned", cache::HIT, caches::MOKA, None),
    ("cache_local_hit_one_key", cache::PEEK_ONE, "", None),
];

/// Two decimals are more than the machine can keep.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
