//! What scripts are told: keys and words.

use resilience_core::stream::{
    Action, Begin, Effect, Position, Settlement, Start,
    broker::{StoreError, validate},
};

use crate::keys;
pub(super) use crate::words::Words;

/// The keys of one stream, and what all of them begin with.
pub(super) struct StreamKeys {
    pub(super) tag: String,
    pub(super) all: Vec<String>,
}

impl StreamKeys {
    pub(super) fn refs(&self) -> Vec<&str> {
        self.all.iter().map(String::as_str).collect()
    }
}

impl StreamKeys {
    /// The key of an effect, of the group that the keys are of.
    pub(super) fn add_effect(&mut self, key: &str) {
        let key = keys::bounded_part(key);
        self.all.push(format!("{}:effect:{key}", self.tag));
    }
}

/// Settlements; acknowledgements of all, plain or with effects, in fewer words.
pub(super) fn all_settlements(
    settlements: &[Settlement],
    words: &mut Words,
    keys: &mut StreamKeys,
) -> Result<(), StoreError> {
    range(settlements.iter().map(|it| it.position), words);
    if settlements.iter().all(|it| it.action == Action::Ack(None)) {
        words.text("A");
        for settlement in settlements {
            words.text(&settlement.position);
        }
        return Ok(());
    }
    if let Some(effects) = all_effects(settlements) {
        completions(&effects, words, keys);
        return Ok(());
    }
    for settlement in settlements {
        words.text(&settlement.position);
        action(&settlement.action, words, keys)?;
    }
    Ok(())
}

/// The effects, if there are no other settlements, and all outcomes are kept for the same time.
fn all_effects(settlements: &[Settlement]) -> Option<Vec<(Position, &Effect)>> {
    let mut effects: Vec<(Position, &Effect)> = Vec::with_capacity(settlements.len());
    for settlement in settlements {
        let Action::Ack(Some(effect)) = &settlement.action else {
            return None;
        };
        if effects
            .first()
            .is_some_and(|(_, it)| it.ttl_ms != effect.ttl_ms)
        {
            return None;
        }
        effects.push((settlement.position, effect));
    }
    Some(effects)
}

/// In runs of the same fence, as those that were begun together have, and of the same outcome.
fn completions(effects: &[(Position, &Effect)], words: &mut Words, keys: &mut StreamKeys) {
    words.text("E").text(&effects[0].1.ttl_ms);
    let alike =
        |one: &Effect, other: &Effect| (one.fence, &one.outcome) == (other.fence, &other.outcome);
    for run in effects.chunk_by(|one, other| alike(one.1, other.1)) {
        let (_, effect) = run[0];
        words.text(&run.len()).text(&effect.fence);
        words.bytes(&effect.outcome);
        for (position, effect) in run {
            words.text(position);
            keys.add_effect(&effect.key);
        }
    }
}

/// Begins, in runs of those whose records are kept for the same time.
pub(super) fn all_begins(begins: &[Begin], words: &mut Words, keys: &mut StreamKeys) {
    range(begins.iter().map(|it| it.position), words);
    for run in begins.chunk_by(|one, other| one.keep_ms == other.keep_ms) {
        words.text(&run.len()).text(&run[0].keep_ms);
        for begin in run {
            words.text(&begin.position);
            keys.add_effect(&begin.key);
        }
    }
}

fn action(action: &Action, words: &mut Words, keys: &mut StreamKeys) -> Result<(), StoreError> {
    match action {
        Action::Ack(None) => words.text("a"),
        Action::Ack(Some(effect)) => {
            keys.add_effect(&effect.key);
            let words = words.text("e").text(&effect.fence).text(&effect.ttl_ms);
            words.bytes(&effect.outcome)
        }
        Action::Retry { after_ms, reason } => words.text("r").text(after_ms).text(reason),
        Action::GiveBack { after_ms } => words.text("g").text(after_ms),
        Action::Dead { reason } => words.text("d").text(reason),
        other => {
            let reason = format!("this broker does not know {other:?}");
            return Err(StoreError::new(reason, false));
        }
    };
    Ok(())
}

/// The name of a group in Redis, where names that begin with `~` mark incarnations.
pub(super) fn native(group: &str) -> String {
    if group.starts_with('~') {
        format!("~{group}")
    } else {
        group.to_owned()
    }
}

/// The first words of a step on a group.
pub(super) fn of_group(group: &str, consumer: &str) -> Words {
    let mut words = Words::default();
    words.text(&native(group)).text(consumer);
    words
}

/// The lowest and the highest position of a list, as two words.
pub(super) fn range(positions: impl Iterator<Item = Position> + Clone, words: &mut Words) {
    let (first, last) = (positions.clone().min(), positions.max());
    words.text(&first.unwrap_or_default());
    words.text(&last.unwrap_or_default());
}

/// Where a group begins, as two words.
pub(super) fn start(start: Start, words: &mut Words) -> Result<(), StoreError> {
    let (to, ago) = match start {
        Start::Oldest => (Position::START.to_string(), 0),
        Start::Next => ("$".to_owned(), 0),
        Start::After(position) => (position.to_string(), 0),
        Start::Ago(ms) => ("ago".to_owned(), ms.min(validate::MAX_MS)),
        other => {
            let reason = format!("this broker does not know {other:?}");
            return Err(StoreError::new(reason, false));
        }
    };
    words.text(&to).text(&ago);
    Ok(())
}

/// A number for a stream or incarnation that does not exist.
pub(super) fn incarnation() -> u64 {
    fastrand::u64(1..validate::BEYOND)
}
