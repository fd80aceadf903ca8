//! The view between the scripts and here: one list of twenty, in the order of `view()` in `common.lua`.

use redis::Value;
use resilience_core::breaker::{
    State,
    fleet::{
        BreakerLogEntry, BreakerMember, BreakerMembers, BreakerView, Counts, FleetOverride,
        FleetState, LogAction, OverrideKind, Report,
    },
};

use crate::error::CommandError;

/// A script's answer: whether it was done, and the view.
pub(super) fn answer(items: &[Value]) -> Result<(bool, BreakerView), CommandError> {
    let mut words = items.iter().map(word);
    let done = words.next().flatten().is_some_and(|word| word == "1");
    match view(words) {
        Some(view) => Ok((done, view)),
        None => Err(CommandError::Unexpected(format!("{items:?}"))),
    }
}

/// A report as arguments of its script, behind the channel.
pub(super) fn report(report: &Report) -> [Vec<u8>; 11] {
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
        report.state.and_then(code).unwrap_or_default(),
    ]
}

/// By their numbers in a report.
const STATES: [State; 7] = [
    State::Closed,
    State::Open,
    State::HalfOpen,
    State::RampingUp,
    State::ForcedOpen,
    State::ForcedClosed,
    State::Disabled,
];

fn code(state: State) -> Option<Vec<u8>> {
    let code = STATES.iter().position(|one| *one == state)?;
    Some(code.to_string().into_bytes())
}

fn word(item: &Value) -> Option<String> {
    match item {
        Value::Int(number) => Some(number.to_string()),
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

/// The answer of members.lua.
pub(super) fn members(items: &[Value]) -> Result<BreakerMembers, CommandError> {
    let read = || {
        let [live, failing, Value::Array(members), Value::Array(names)] = items else {
            return None;
        };
        let number = |item: &Value| word(item)?.parse().ok();
        let members = members.chunks(5).map(member).collect::<Option<_>>()?;
        let names = names.iter().map(word).collect::<Option<_>>()?;
        Some(BreakerMembers::new(
            number(live)?,
            number(failing)?,
            members,
            names,
        ))
    };
    read().ok_or_else(|| CommandError::Unexpected(format!("{items:?}")))
}

fn member(items: &[Value]) -> Option<BreakerMember> {
    let [instance, left, reported, failing, state] = items else {
        return None;
    };
    // Below zero: not told.
    let number = |item: &Value| word(item)?.parse::<u64>().ok();
    let mut member = BreakerMember::new(word(instance)?, number(left)?);
    member.reported_ms = number(reported);
    member.failing = number(failing).map(|failing| failing == 1);
    let code = number(state).and_then(|code| usize::try_from(code).ok());
    member.state = code.and_then(|code| STATES.get(code).copied());
    Some(member)
}

/// The answer of read_log.lua. Entries of a later format are left out.
pub(super) fn log(items: &[Value]) -> Result<Vec<BreakerLogEntry>, CommandError> {
    let [now, Value::Array(entries)] = items else {
        return Err(CommandError::Unexpected(format!("{items:?}")));
    };
    let now = word(now).and_then(|now| now.parse().ok());
    let now = now.ok_or_else(|| CommandError::Unexpected(format!("{items:?}")))?;
    Ok(entries.iter().filter_map(|one| logged(one, now)).collect())
}

fn logged(entry: &Value, now: u64) -> Option<BreakerLogEntry> {
    let Value::Array(entry) = entry else {
        return None;
    };
    let [_id, Value::Array(fields)] = &entry[..] else {
        return None;
    };
    let field = |name: &str| {
        let mut pairs = fields.chunks_exact(2);
        pairs
            .find(|pair| word(&pair[0]).as_deref() == Some(name))
            .and_then(|pair| word(&pair[1]))
    };
    let number = |name: &str| field(name)?.parse::<u64>().ok();
    if number("format")? > FORMAT {
        return None;
    }
    let state = |name: &str| {
        let word = field(name)?;
        let (state, stage) = word.split_once(':').unwrap_or((&word, "0"));
        state_of(state, stage.parse().ok()?)
    };
    let action = action_of(&field("action")?)?;
    let mut entry = BreakerLogEntry::new(number("epoch")?, action, state("from")?, state("to")?);
    entry.age_ms = now.saturating_sub(number("at")?);
    entry.by = field("by")?;
    entry.why = field("why")?;
    // Below zero: no end.
    entry.lasting_ms = number("lasting");
    Some(entry)
}

fn action_of(word: &str) -> Option<LogAction> {
    Some(match word {
        "changed" => LogAction::Changed,
        "restored" => LogAction::Restored,
        "cleared" => LogAction::Cleared,
        "reset" => LogAction::Reset,
        kind => LogAction::Overridden(override_of(kind)?),
    })
}

/// The format of records and messages that this version knows: `FORMAT` in common.lua.
const FORMAT: u64 = 1;

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
