//! Instructions per call of every hot path, counted by callgrind; one JSON line each.
//!
//! ```text
//! make instructions                             all paths: about two minutes
//! target/release/instructions NAME...           the paths whose names contain one of these
//! target/release/instructions run NAME CALLS    one path alone, without valgrind
//! ```
//!
//! Times wander with the machine, counts of instructions do not: runs of one binary differ by less
//! than 0.2 %. Two builds are comparable on one machine with one compiler; the cut into codegen units
//! alone can move a figure by 1 %.
//!
//! A path runs in a process of its own, on one thread, without I/O. The figure is
//! `(2N calls - N calls) / N`, and only what happens inside of [`counted_calls`] is counted: not the
//! start, the calibration of a clock, or the warm-up. Each figure includes the loop and the bare
//! service, which `instructions_bare_service` reports. Background tasks of a path run on the same
//! thread; their work during its calls is included.

mod paths;

use std::{
    env,
    hint::black_box,
    io::ErrorKind,
    process::{Command, ExitCode},
};

use serde_json::json;
use tokio::runtime::Runtime;

use paths::{Calls, PATHS};

/// A multiple of the number of keys in all families.
const CALLS: u64 = 1 << 13;
/// Maps grow, leases are taken, agents are started.
const WARM_UP: u64 = CALLS;
/// Of the generator that the layers draw from.
const SEED: u64 = 7;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["run", name, calls] => run(name, calls),
        _ => count_all(&words),
    };
    if let Err(why) = done {
        eprintln!("instructions: {why}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs one path, for valgrind or a profiler to watch.
fn run(name: &str, calls: &str) -> Result<(), String> {
    let (_, set_up) = (PATHS.iter().find(|(path, _)| *path == name))
        .ok_or_else(|| format!("no path is called {name:?}"))?;
    let calls: u64 = calls.parse().map_err(|why| format!("{calls:?}: {why}"))?;
    fastrand::seed(SEED);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|why| why.to_string())?;
    let mut path = {
        let _context = runtime.enter();
        set_up()
    };
    runtime.block_on(settle());
    path(&runtime, WARM_UP);
    runtime.block_on(settle());
    counted_calls(&mut path, &runtime, calls);
    Ok(())
}

/// Lets tasks in the background come to rest.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Callgrind counts from when this function is entered to when it is left.
#[inline(never)]
fn counted_calls(path: &mut Calls, runtime: &Runtime, calls: u64) {
    path(runtime, calls);
    // Not a jump into the path: this function has to be left.
    black_box(calls);
}

fn count_all(parts: &[&str]) -> Result<(), String> {
    let chosen = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part));
    let names = PATHS.iter().map(|(name, _)| *name);
    let names: Vec<&str> = names.filter(|name| chosen(name)).collect();
    if names.is_empty() {
        return Err(format!("no path's name contains any of {parts:?}"));
    }
    for name in names {
        let (once, twice) = (count(name, CALLS)?, count(name, 2 * CALLS)?);
        let per_call = twice.saturating_sub(once) as f64 / CALLS as f64;
        let figure = format!("instructions_{name}");
        let value = (per_call * 10.0).round() / 10.0;
        println!(
            "{}",
            json!({ "figure": figure, "value": value, "unit": "instructions/call" })
        );
    }
    Ok(())
}

/// Instructions that this number of calls takes.
fn count(name: &str, calls: u64) -> Result<u64, String> {
    let program = env::current_exe().map_err(|why| why.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*counted_calls*")
        .arg(program)
        .args(["run", name, &calls.to_string()])
        .output()
        .map_err(|why| match why.kind() {
            ErrorKind::NotFound => {
                "valgrind is needed to count instructions, and is not installed".to_owned()
            }
            _ => format!("valgrind: {why}"),
        })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{name}: {}\n{said}", output.status));
    }
    (collected(&said).filter(|count| *count > 0))
        .ok_or_else(|| format!("{name}: nothing was counted\n{said}"))
}

/// `==7== Collected : 123456`
fn collected(said: &str) -> Option<u64> {
    let (_, count) = said.split_once("Collected : ")?;
    count.split_whitespace().next()?.parse().ok()
}
