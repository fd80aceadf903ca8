//! Figures of what a fleet shares, taken on a real Redis over loopback; one JSON line each, with its target.
//!
//! ```text
//! cargo run --release -p resilience-figures                 all figures: about two minutes
//! cargo run --release -p resilience-figures -- torture      a thousand instances, and processes that are killed: about eight minutes
//! cargo run --release -p resilience-figures -- only NAME    the groups whose name contains NAME
//! ```
//!
//! Instances are breakers in this process, each with a connection of its own; where it matters that an instance dies,
//! it is a process. The server shares the machine with them: the last line says how loaded it was.

// What is measured here is real time, which is what std's clock is for.
#![allow(clippy::disallowed_types)]

mod bare;
mod cached;
mod caches;
mod clock;
mod commands;
mod fleet;
mod hammer;
mod handlers;
mod hang_ups;
mod leases;
mod limits;
mod opening;
mod places;
mod probes;
mod records;
mod report;
mod shares;
mod streams;
mod stuck;
mod torture;
mod traffic;

#[path = "../../src/cache_scene/mod.rs"]
#[allow(unreachable_pub)]
mod cache_scene;
#[path = "../../src/child_process.rs"]
#[allow(dead_code, unreachable_pub)]
mod child_process;
#[path = "../../src/clock_steps.rs"]
#[allow(unreachable_pub)]
mod clock_steps;
#[path = "../../src/lasting.rs"]
#[allow(unreachable_pub)]
mod lasting;
#[path = "../../src/limit_script.rs"]
#[allow(unreachable_pub)]
mod limit_script;
#[path = "../../src/redis.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis;
#[path = "../../src/redis_clock.rs"]
#[allow(unreachable_pub)]
mod redis_clock;
#[path = "../../src/redis_connection.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis_connection;
#[path = "../../src/redis_sentinel.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis_sentinel;

use std::env;

#[tokio::main]
async fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        [probes::HOLD, url, name] => probes::hold(url, name).await,
        [places::CROWD, url, addr] => return places::crowd(url, addr).await,
        [hammer::ONE, url, mode, file] => hammer::one(url, mode, file).await,
        [cache_scene::INSTANCE, ..] => return cache_scene::instance(&args[1..]).await,
        ["torture"] => {
            torture::run().await;
            stuck::run().await;
            hammer::run().await;
            probes::cuts().await;
            shares::run().await;
            caches::torture().await;
        }
        ["torture", "caches"] => caches::torture().await,
        ["torture", "probes"] => probes::cuts().await,
        ["torture", "shares"] => shares::run().await,
        ["torture", "hammer"] => hammer::run().await,
        ["torture", "stuck"] => stuck::run().await,
        ["only", part] => figures(part).await,
        [] => figures("").await,
        _ => {
            eprintln!(
                "usage: resilience-figures [torture [caches | hammer | probes | shares | stuck] | only NAME]"
            );
            std::process::exit(2);
        }
    }
    report::load();
}

async fn figures(part: &str) {
    if "cached".contains(part) {
        cached::run().await;
    }
    if "caches".contains(part) {
        caches::run().await;
    }
    if "clock".contains(part) {
        clock::run().await;
    }
    if "commands".contains(part) {
        commands::run().await;
    }
    if "handlers".contains(part) {
        handlers::run().await;
    }
    if "hang_ups".contains(part) {
        hang_ups::run().await;
    }
    if "limits".contains(part) {
        limits::run().await;
    }
    if "leases".contains(part) {
        leases::run().await;
    }
    if "opening".contains(part) {
        opening::run().await;
    }
    if "places".contains(part) {
        places::run().await;
    }
    if "probes".contains(part) {
        probes::run().await;
    }
    if "records".contains(part) {
        records::run().await;
    }
    if "streams".contains(part) {
        streams::run().await;
    }
    if "traffic".contains(part) {
        traffic::run().await;
    }
}
