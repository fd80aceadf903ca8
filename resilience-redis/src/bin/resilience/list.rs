//! Lists of the other patterns.

use resilience_core::bulkhead::fleet::{BulkheadStore, BulkheadView};
use resilience_redis::RedisBulkheads;
use serde_json::{Value, json};

use crate::{
    Failure,
    args::Global,
    output::{new_table, plain},
};

/// Prints the bulkheads with what is taken of them.
pub(crate) async fn bulkheads(bulkheads: &RedisBulkheads, global: &Global) -> Result<(), Failure> {
    let mut views = Vec::new();
    for name in bulkheads.names().await? {
        let view = bulkheads.view(&name).await?;
        views.push((name, view));
    }
    if global.json {
        let all = views.iter().map(|(name, view)| as_json(name, view));
        println!("{}", Value::Array(all.collect()));
    } else if views.is_empty() {
        println!("{}", global.nothing("bulkhead"));
    } else {
        let mut table = new_table(["bulkhead", "in flight", "leases", "waiting", "instances"]);
        for (name, view) in &views {
            let numbers = [view.in_flight, view.leases, view.waiting, view.live];
            let numbers = numbers.map(|number| number.to_string());
            table.add_row([plain(name)].into_iter().chain(numbers));
        }
        println!("{table}");
    }
    Ok(())
}

fn as_json(name: &str, view: &BulkheadView) -> Value {
    json!({
        "name": name,
        "in_flight": view.in_flight,
        "leases": view.leases,
        "waiting": view.waiting,
        "live": view.live,
        "fence": view.fence,
    })
}

/// Prints names.
pub(crate) fn names(what: &str, names: &[String], global: &Global) -> Result<(), Failure> {
    if global.json {
        let all = names.iter().map(|name| json!({ "name": name }));
        println!("{}", Value::Array(all.collect()));
    } else if names.is_empty() {
        println!("{}", global.nothing(what));
    } else {
        let mut table = new_table([what]);
        for name in names {
            table.add_row([plain(name)]);
        }
        println!("{table}");
    }
    Ok(())
}
