//! The view between the scripts and here: one list of twenty, in the order of `view()` in `common.lua`.

use redis::Value;
use resilience_core::breaker::fleet::{
    BreakerView, Counts, FleetOverride, FleetState, OverrideKind, Report,
};

use crate::error::CommandError;

/// A script's answer: whether it was done, and the view.
pub(super) fn answer(items: &[Value]) -> Result<(bool, BreakerView), CommandError> {
    let mut words = items.iter().map(|item| match item {
        Value::Int(number) => Some(number.to_string()),
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    });
    let done = words.next().flatten().is_some_and(|word| word == "1");
    match view(words) {
        Some(view) => Ok((done, view)),
        None => Err(CommandError::Unexpected(format!("{items:?}"))),
    }
}

/// A report as arguments of its script, behind the channel.
pub(super) fn report(report: &Report) -> [Vec<u8>; 10] {
    let number = |number: u64| number.to_string().into_bytes();
    [
        report.instance.as_bytes().to_vec(),
        number(report.sequence),
        number(report.epoch),
        number(report.counts.success),
        number(report.counts.failure),
        number(report.counts.slow),
        number(report.failing.into()),
        number(report.bucket_ms),
        number(report.live_ms),
        report.voter.as_bytes().to_vec(),
    ]
}

/// A published view.
pub(super) fn pushed(message: &[u8]) -> Option<BreakerView> {
    let items: Vec<serde_json::Value> = serde_json::from_slice(message).ok()?;
    view(items.iter().map(|item| match item {
        serde_json::Value::String(word) => Some(word.clone()),
        // Lua's numbers are doubles: whole ones may come as "3.0" or "1e+15".
        serde_json::Value::Number(number) => number.as_f64().map(|number| format!("{number:.0}")),
        _ => None,
    }))
}

fn view(mut words: impl Iterator<Item = Option<String>>) -> Option<BreakerView> {
    let mut word = || words.next().flatten();
    let number = |word: Option<String>| word?.parse::<u64>().ok();
    Some(BreakerView {
        epoch: number(word())?,
        state: {
            let state = word()?;
            let stage = number(word())?;
            state_of(&state, stage)?
        },
        remaining_ms: number(word())?,
        age_ms: number(word())?,
        trips: number(word())?.try_into().ok()?,
        window: Counts {
            success: number(word())?,
            failure: number(word())?,
            slow: number(word())?,
        },
        live: number(word())?,
        failing: number(word())?,
        leased: number(word())?.try_into().ok()?,
        probes: Counts {
            success: number(word())?,
            failure: number(word())?,
            slow: 0,
        },
        by: word()?,
        cause: word()?,
        active_override: {
            let (kind, reason, by) = (word()?, word()?, word()?);
            let left = word()?.parse::<i64>().ok()?;
            if kind.is_empty() {
                None
            } else {
                let expires_ms = u64::try_from(left).ok();
                Some(FleetOverride {
                    kind: override_of(&kind)?,
                    reason,
                    by,
                    expires_ms,
                })
            }
        },
    })
}

pub(super) fn state_words(state: FleetState) -> (&'static str, u64) {
    match state {
        FleetState::Open => ("open", 0),
        FleetState::HalfOpen => ("half_open", 0),
        FleetState::RampUp(stage) => ("ramp_up", stage.into()),
        _ => ("closed", 0),
    }
}

fn state_of(word: &str, stage: u64) -> Option<FleetState> {
    Some(match word {
        "closed" => FleetState::Closed,
        "open" => FleetState::Open,
        "half_open" => FleetState::HalfOpen,
        "ramp_up" => FleetState::RampUp(stage.try_into().ok()?),
        _ => return None,
    })
}

const ORDERS: [(&str, OverrideKind); 4] = [
    ("force_open", OverrideKind::ForceOpen),
    ("force_closed", OverrideKind::ForceClosed),
    ("disable", OverrideKind::Disable),
    ("metrics_only", OverrideKind::MetricsOnly),
];

fn override_of(word: &str) -> Option<OverrideKind> {
    ORDERS
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, kind)| *kind)
}

/// An order as arguments of a script; no order is an empty kind.
pub(super) struct OverrideWords<'a> {
    pub(super) kind: &'static str,
    pub(super) reason: &'a str,
    pub(super) by: &'a str,
    expires_ms: Option<u64>,
}

impl<'a> OverrideWords<'a> {
    pub(super) fn of(active_override: Option<&'a FleetOverride>) -> Self {
        let Some(active_override) = active_override else {
            return Self {
                kind: "",
                reason: "",
                by: "",
                expires_ms: None,
            };
        };
        let kind = ORDERS
            .iter()
            .find(|(_, kind)| *kind == active_override.kind)
            .map_or("", |(name, _)| name);
        Self {
            kind,
            reason: &active_override.reason,
            by: &active_override.by,
            expires_ms: active_override.expires_ms,
        }
    }

    pub(super) fn expires(&self) -> String {
        self.expires_ms
            .map_or_else(|| "-1".to_owned(), |left| left.to_string())
    }
}
