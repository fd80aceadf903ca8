//! The last changes of one breaker, as a table and as JSON.

use resilience_core::breaker::fleet::{BreakerLogEntry, LogAction};
use serde_json::{Value, json};

use crate::output::{kind, new_table, plain, state, time};

/// Prints the log of one breaker.
pub(crate) fn print_log(json: bool, name: &str, entries: &[BreakerLogEntry]) {
    if json {
        println!("{}", Value::Array(entries.iter().map(as_json).collect()));
    } else if entries.is_empty() {
        println!("no change of `{}` within the last week", plain(name));
    } else {
        let header = [
            "when", "action", "from", "to", "lasting", "by", "why", "epoch",
        ];
        let mut table = new_table(header);
        for entry in entries {
            table.add_row([
                format!("{} ago", time(entry.age_ms)),
                action(entry.action).to_owned(),
                state(entry.from),
                state(entry.to),
                entry.lasting_ms.map_or_else(|| "-".to_owned(), time),
                plain(&entry.by),
                plain(&entry.why),
                entry.epoch.to_string(),
            ]);
        }
        println!("{table}");
    }
}

const fn action(action: LogAction) -> &'static str {
    match action {
        LogAction::Changed => "changed",
        LogAction::Restored => "restored",
        LogAction::Overridden(set) => kind(set),
        LogAction::Cleared => "cleared",
        LogAction::Reset => "reset",
        _ => "unknown",
    }
}

fn as_json(entry: &BreakerLogEntry) -> Value {
    json!({
        "age_ms": entry.age_ms,
        "epoch": entry.epoch,
        "action": action(entry.action),
        "from": state(entry.from),
        "to": state(entry.to),
        "lasting_ms": entry.lasting_ms,
        "by": entry.by,
        "why": entry.why,
    })
}
