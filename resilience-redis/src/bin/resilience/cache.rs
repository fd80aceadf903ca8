//! Caches: what they hold, what their instances say, and invalidation.

use std::collections::BTreeMap;

use resilience_core::cache::{CacheStore, record::Entry};
use resilience_redis::RedisCache;
use serde_json::{Value, json};

use crate::{
    Failure,
    args::{CacheCommand, Global},
    list,
    output::{new_table, plain, time},
};

/// How long nothing is cached after an invalidation, as caches have it by default.
const TOMBSTONE_MS: u64 = 100;
/// Longer than any value is kept.
const KEEP_MS: u64 = 366 * 86_400_000;

pub(crate) async fn run(
    caches: &RedisCache,
    command: &CacheCommand,
    global: &Global,
) -> Result<(), Failure> {
    let json = global.json;
    match command {
        CacheCommand::List => list::names("cache", &caches.names().await?, global),
        CacheCommand::Stats { name } => stats(caches, name, json).await,
        CacheCommand::Hot { name } => hot(caches, name, json).await,
        CacheCommand::Get { name, key } => get(caches, name, key, json).await,
        CacheCommand::Invalidate { name, key } => {
            caches.invalidate(name, key, TOMBSTONE_MS).await?;
            done(json, &format!("invalidated {}", plain(key)))
        }
        CacheCommand::InvalidateTag { name, tag } => {
            caches.invalidate_tag(name, tag, KEEP_MS).await?;
            done(
                json,
                &format!("invalidated all values with the tag {}", plain(tag)),
            )
        }
        CacheCommand::Clear { name } => {
            caches.invalidate_tag(name, "", KEEP_MS).await?;
            done(json, &format!("invalidated all values of {}", plain(name)))
        }
    }
}

fn done(json: bool, what: &str) -> Result<(), Failure> {
    if json {
        println!("{}", json!({ "done": what }));
    } else {
        println!("{what}");
    }
    Ok(())
}

async fn get(caches: &RedisCache, name: &str, key: &str, json: bool) -> Result<(), Failure> {
    let entry = CacheStore::get(caches, name, &[key]).await?.pop().flatten();
    if json {
        println!("{}", entry.as_ref().map_or(Value::Null, as_json));
        return Ok(());
    }
    let Some(entry) = entry else {
        println!(
            "no value: nothing is stored under {}",
            caches.key(name, key)
        );
        return Ok(());
    };
    let tags = entry.tags.iter().map(|tag| plain(&tag.tag));
    let tags: Vec<String> = tags.filter(|tag| !tag.is_empty()).collect();
    let mut table = new_table(["size", "age", "fresh for", "kept for", "took", "tags"]);
    table.add_row([
        entry.body.as_ref().map_or_else(
            || "known not to exist".into(),
            |body| format!("{} bytes", body.len()),
        ),
        time(entry.age_ms),
        time(entry.fresh_ms.saturating_sub(entry.age_ms)),
        time(entry.keep_ms.saturating_sub(entry.age_ms)),
        time(entry.load_ms),
        tags.join(", "),
    ]);
    println!("{table}");
    Ok(())
}

fn as_json(entry: &Entry) -> Value {
    let tags = entry.tags.iter().filter(|tag| !tag.tag.is_empty());
    json!({
        "exists": entry.body.is_some(),
        "bytes": entry.body.as_ref().map(|body| body.len()),
        "age_ms": entry.age_ms,
        "fresh_ms": entry.fresh_ms,
        "keep_ms": entry.keep_ms,
        "load_ms": entry.load_ms,
        "tags": tags.map(|tag| &*tag.tag).collect::<Vec<_>>(),
    })
}

/// The snapshots of the live instances.
async fn snapshots(caches: &RedisCache, name: &str) -> Result<Vec<(String, Value)>, Failure> {
    let reports = caches.reports(name).await?;
    let read = |report: resilience_redis::CacheReport| {
        let snapshot = serde_json::from_str(&report.snapshot).ok()?;
        Some((report.instance, snapshot))
    };
    Ok(reports.into_iter().filter_map(read).collect())
}

async fn stats(caches: &RedisCache, name: &str, json: bool) -> Result<(), Failure> {
    let snapshots = snapshots(caches, name).await?;
    if json {
        let all = snapshots.into_iter().map(|(instance, mut snapshot)| {
            snapshot["instance"] = instance.into();
            snapshot
        });
        println!("{}", Value::Array(all.collect()));
        return Ok(());
    }
    if snapshots.is_empty() {
        println!(
            "no instance of {} has reported within the last minute",
            plain(name)
        );
        return Ok(());
    }
    let columns = [
        "instance", "requests", "local", "store", "stale", "loads", "failed", "entries", "coherent",
    ];
    let mut table = new_table(columns);
    for (instance, snapshot) in &snapshots {
        let number = |field: &str| snapshot[field].as_u64().unwrap_or(0);
        let stale = number("stale") + number("stale_on_error");
        let (local, store) = (number("hits_local"), number("hits_store"));
        let others = number("loaded") + number("missing") + number("failed");
        let requests = local + store + stale + others;
        let share = |part: u64| format!("{:.1} %", 100.0 * part as f64 / requests.max(1) as f64);
        table.add_row([
            plain(instance),
            requests.to_string(),
            share(local),
            share(store),
            share(stale),
            number("loads").to_string(),
            number("loads_failed").to_string(),
            number("entries").to_string(),
            if snapshot["coherent"] == true {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
        ]);
    }
    println!("{table}");
    Ok(())
}

async fn hot(caches: &RedisCache, name: &str, json: bool) -> Result<(), Failure> {
    let mut requests: BTreeMap<String, u64> = BTreeMap::new();
    for (_, snapshot) in snapshots(caches, name).await? {
        for hot in snapshot["hot_keys"].as_array().into_iter().flatten() {
            if let (Some(key), Some(number)) = (hot["key"].as_str(), hot["requests"].as_u64()) {
                *requests.entry(key.to_owned()).or_default() += number;
            }
        }
    }
    let mut hot: Vec<_> = requests.into_iter().collect();
    hot.sort_by_key(|(_, requests)| std::cmp::Reverse(*requests));
    if json {
        let all = hot
            .iter()
            .map(|(key, requests)| json!({ "key": key, "requests": requests }));
        println!("{}", Value::Array(all.collect()));
    } else if hot.is_empty() {
        println!(
            "no instance of {} has reported within the last minute",
            plain(name)
        );
    } else {
        let mut table = new_table(["key", "requests, about"]);
        for (key, requests) in hot {
            table.add_row([plain(&key), requests.to_string()]);
        }
        println!("{table}");
    }
    Ok(())
}
