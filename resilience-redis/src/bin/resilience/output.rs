//! Breakers as tables and as JSON.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use resilience_core::breaker::fleet::{FleetOrder, FleetState, OrderKind, View};
use serde_json::{Value, json};

/// One breaker.
pub(crate) fn print_one(json: bool, name: &str, view: &View) {
    if json {
        println!("{}", as_json(name, view));
    } else {
        println!("{}", table(&[(name.to_owned(), view.clone())]));
    }
}

/// All breakers.
pub(crate) fn print_all(json: bool, views: &[(String, View)]) {
    if json {
        let all = views.iter().map(|(name, view)| as_json(name, view));
        println!("{}", Value::Array(all.collect()));
    } else if views.is_empty() {
        println!("no breaker has reported within the last day");
    } else {
        println!("{}", table(views));
    }
}

fn table(views: &[(String, View)]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "breaker",
        "state",
        "for",
        "left",
        "failed",
        "instances",
        "probes",
        "order",
        "by",
        "why",
        "epoch",
    ]);
    for (name, view) in views {
        let window = &view.window;
        table.add_row([
            name.clone(),
            state(view.state),
            time(view.age_ms),
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
            view.order
                .as_ref()
                .map_or_else(|| "-".into(), order_in_words),
            view.by.clone(),
            view.cause.clone(),
            view.epoch.to_string(),
        ]);
    }
    table
}

fn order_in_words(order: &FleetOrder) -> String {
    let ends = order
        .expires_ms
        .map_or_else(String::new, |left| format!(", {} left", time(left)));
    format!(
        "{} by {}: {}{ends}",
        kind(order.kind),
        order.by,
        order.reason
    )
}

fn time(ms: u64) -> String {
    let coarse = if ms >= 10_000 { ms / 1_000 * 1_000 } else { ms };
    humantime::format_duration(Duration::from_millis(coarse)).to_string()
}

fn state(state: FleetState) -> String {
    match state {
        FleetState::Closed => "closed".to_owned(),
        FleetState::Open => "open".to_owned(),
        FleetState::HalfOpen => "half_open".to_owned(),
        FleetState::RampUp(stage) => format!("ramp_up {stage}"),
    }
}

const fn kind(kind: OrderKind) -> &'static str {
    match kind {
        OrderKind::ForceOpen => "force_open",
        OrderKind::ForceClosed => "force_closed",
        OrderKind::Disable => "disable",
        OrderKind::MetricsOnly => "metrics_only",
    }
}

fn as_json(name: &str, view: &View) -> Value {
    let order = view.order.as_ref().map(|order| {
        json!({
            "kind": kind(order.kind),
            "reason": order.reason,
            "by": order.by,
            "expires_in_ms": order.expires_ms,
        })
    });
    let total = view.window.total();
    json!({
        "name": name,
        "state": match view.state { FleetState::RampUp(_) => "ramp_up".to_owned(), other => state(other) },
        "stage": match view.state { FleetState::RampUp(stage) => Some(stage), _ => None },
        "epoch": view.epoch,
        "since_ms": view.age_ms,
        "left_ms": view.remaining_ms,
        "trips": view.trips,
        "calls": total,
        "failures": view.window.failure,
        "slow": view.window.slow,
        "failure_rate": (total > 0).then(|| view.window.failure as f64 / total as f64),
        "live": view.live,
        "failing": view.failing,
        "probes_out": view.leased,
        "probes_succeeded": view.probes.success,
        "probes_failed": view.probes.failure,
        "order": order,
        "by": view.by,
        "cause": view.cause,
    })
}
