//! `cargo bench -p resilience-benches`: see the library's documentation for the arguments and the method.

use std::env;

use resilience_benches::{
    figures,
    measure::Effort,
    report::{self, Row},
    subject::{self, BARE},
    subjects,
};

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    // Without cargo's own `--bench` this is a test run: see that everything works, measure nothing.
    let effort = if has("--bench") && !has("--quick") {
        Effort::FULL
    } else {
        Effort::QUICK
    };
    let only = args.iter().skip_while(|arg| *arg != "--only").nth(1);

    let runtime = subject::runtime();
    let _within = runtime.enter();
    let mut chosen = subjects::all();
    if let Some(only) = only {
        let is_wanted = |name: &str| match only.strip_prefix('=') {
            Some(exact) => name == exact,
            None => name.contains(only.as_str()),
        };
        chosen.retain(|subject| subject.name == BARE || is_wanted(subject.name));
    }
    let allocations = report::count_allocations(env!("CARGO_BIN_EXE_count-allocations"));
    let rows = report::rows(&chosen, effort, &allocations);

    if has("--figures") {
        for figure in figures::from(&rows, &allocations) {
            println!("{}", figure.json());
        }
    } else if has("--json") {
        rows.iter().for_each(|row| println!("{}", json(row)));
    } else {
        println!("{}", report::table(&rows));
        println!("{}", report::comparison(&rows, &allocations));
    }
}

fn json(row: &Row) -> serde_json::Value {
    serde_json::json!({
        "subject": row.name,
        "ns": row.ns,
        "spread": row.spread,
        "undisturbed": row.undisturbed,
        "allocations": row.allocations,
        "bytes": row.bytes,
        "two_cores": row.two_cores.map(|two| two.ratio),
        "two_cores_sound": row.two_cores.map(|two| two.sound),
    })
}
