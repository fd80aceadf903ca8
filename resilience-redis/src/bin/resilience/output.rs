//! Breakers as tables and as JSON.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use resilience_core::breaker::fleet::{BreakerView, FleetOverride, FleetState, OverrideKind};
use serde_json::{Value, json};

use crate::args::Global;

/// One breaker.
pub(crate) fn print_one(json: bool, name: &str, view: &BreakerView) {
    if json {
        println!("{}", as_json(name, view));
    } else {
        println!("{}", table(&[(name.to_owned(), view.clone())]));
    }
}

/// All breakers.
pub(crate) fn print_all(global: &Global, views: &[(String, BreakerView)]) {
    if global.json {
        let all = views.iter().map(|(name, view)| as_json(name, view));
        println!("{}", Value::Array(all.collect()));
    } else if views.is_empty() {
        println!("{}", global.nothing("breaker"));
    } else {
        println!("{}", table(views));
    }
}

fn table(views: &[(String, BreakerView)]) -> Table {
    let mut table = new_table([
        "breaker",
        "state",
        "for",
        "left",
        "failed",
        "instances",
        "probes",
        "override",
        "by",
        "cause",
        "epoch",
    ]);
    for (name, view) in views {
        let window = &view.window;
        table.add_row([
            plain(name),
            in_force(view),
            age(view).map_or_else(|| "-".into(), time),
            if view.remaining_ms == 0 {
                "-".into()
            } else {
                time(view.remaining_ms)
            },
            format!("{} of {}", window.failure, window.total()),
            format!("{} of {} failing", view.failing, view.live),
            format!(
                "{} out, {} of {} failed",
                view.leased,
                view.probes.failure,
                view.probes.total()
            ),
            view.active_override
                .as_ref()
                .map_or_else(|| "-".into(), override_in_words),
            plain(&view.by),
            plain(&view.cause),
            view.epoch.to_string(),
        ]);
    }
    table
}

/// An empty table with these columns.
pub(crate) fn new_table<const N: usize>(columns: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(columns);
    table
}

/// Text from Redis, for a terminal: any process may have written it, so control characters are replaced.
pub(crate) fn plain(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

fn override_in_words(active_override: &FleetOverride) -> String {
    let ends = active_override
        .expires_ms
        .map_or_else(String::new, |left| format!(", {} left", time(left)));
    format!(
        "{} by {}: {}{ends}",
        kind(active_override.kind),
        plain(&active_override.by),
        plain(&active_override.reason)
    )
}

/// Milliseconds since the last change; `None`: there was none.
const fn age(view: &BreakerView) -> Option<u64> {
    if view.epoch == 0 {
        return None;
    }
    Some(view.age_ms)
}

pub(crate) fn time(ms: u64) -> String {
    let coarse = if ms >= 10_000 { ms / 1_000 * 1_000 } else { ms };
    humantime::format_duration(Duration::from_millis(coarse)).to_string()
}

/// The state that instances act by: that of an override, with the record's own state behind it, or the record's.
fn in_force(view: &BreakerView) -> String {
    let own = state(view.state);
    match view.active_override.as_ref().map(|it| it.kind) {
        None => own,
        Some(OverrideKind::ForceOpen) => format!("forced_open ({own})"),
        Some(OverrideKind::ForceClosed) => format!("forced_closed ({own})"),
        Some(OverrideKind::Disable) => format!("disabled ({own})"),
        Some(OverrideKind::MetricsOnly) => format!("{own} (metrics only)"),
    }
}

pub(crate) fn state(state: FleetState) -> String {
    match state {
        FleetState::Closed => "closed".to_owned(),
        FleetState::Open => "open".to_owned(),
        FleetState::HalfOpen => "half_open".to_owned(),
        FleetState::RampUp(stage) => format!("ramp_up {stage}"),
    }
}

pub(crate) const fn kind(kind: OverrideKind) -> &'static str {
    match kind {
        OverrideKind::ForceOpen => "force_open",
        OverrideKind::ForceClosed => "force_closed",
        OverrideKind::Disable => "disable",
        OverrideKind::MetricsOnly => "metrics_only",
    }
}

pub(crate) fn as_json(name: &str, view: &BreakerView) -> Value {
    let active_override = view.active_override.as_ref().map(|active_override| {
        json!({
            "kind": kind(active_override.kind),
            "reason": active_override.reason,
            "by": active_override.by,
            "expires_ms": active_override.expires_ms,
        })
    });
    let total = view.window.total();
    json!({
        "name": name,
        "state": match view.state { FleetState::RampUp(_) => "ramp_up".to_owned(), other => state(other) },
        "stage": match view.state { FleetState::RampUp(stage) => Some(stage), _ => None },
        "epoch": view.epoch,
        "age_ms": age(view),
        "remaining_ms": view.remaining_ms,
        "trips": view.trips,
        "calls": total,
        "failures": view.window.failure,
        "slow": view.window.slow,
        "failure_rate": (total > 0).then(|| view.window.failure as f64 / total as f64),
        "live": view.live,
        "failing": view.failing,
        "probes_leased": view.leased,
        "probes_succeeded": view.probes.success,
        "probes_failed": view.probes.failure,
        "override": active_override,
        "by": view.by,
        "cause": view.cause,
    })
}
