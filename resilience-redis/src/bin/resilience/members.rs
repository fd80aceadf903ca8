//! The instances of one breaker, as a table and as JSON.

use resilience_core::breaker::fleet::{BreakerMember, BreakerMembers, BreakerView};
use serde_json::{Value, json};

use crate::output::{as_json, new_table, plain, print_one, time};

/// Prints one breaker and its instances.
pub(crate) fn print_with_members(
    json: bool,
    name: &str,
    view: &BreakerView,
    members: &BreakerMembers,
) {
    if json {
        let mut all = as_json(name, view);
        all["members"] = members.instances.iter().map(member).collect();
        all["failing_names"] = json!(members.failing_names);
        println!("{all}");
        return;
    }
    print_one(json, name, view);
    if members.instances.is_empty() {
        println!("no live instance");
        return;
    }
    let mut table = new_table(["instance", "state", "failing", "last report", "live for"]);
    for member in &members.instances {
        let failing = member
            .failing
            .map(|failing| if failing { "yes" } else { "no" });
        table.add_row([
            plain(&member.instance),
            or_unknown(member.state.map(|state| state.to_string())),
            or_unknown(failing.map(str::to_owned)),
            or_unknown(member.reported_ms.map(|age| format!("{} ago", time(age)))),
            time(member.live_ms),
        ]);
    }
    println!("{table}");
    print_rest("live", members.live, members.instances.len());
    if !members.failing_names.is_empty() {
        let names: Vec<_> = members
            .failing_names
            .iter()
            .map(|name| plain(name))
            .collect();
        println!("failing: {}", names.join(", "));
        print_rest("failing", members.failing, names.len());
    }
}

fn print_rest(what: &str, all: u64, listed: usize) {
    let more = all.saturating_sub(listed as u64);
    if more > 0 {
        println!("and {more} more {what}");
    }
}

/// Instances of an earlier version do not tell.
fn or_unknown(word: Option<String>) -> String {
    word.unwrap_or_else(|| "unknown".to_owned())
}

fn member(member: &BreakerMember) -> Value {
    json!({
        "instance": member.instance,
        "state": member.state.map(|state| state.as_str()),
        "failing": member.failing,
        "reported_ms": member.reported_ms,
        "live_ms": member.live_ms,
    })
}
