//! The commands on circuit breakers.

use std::time::Duration;

use resilience_core::breaker::fleet::{BreakerStore, FleetOverride, OverrideKind};
use resilience_redis::RedisBreakers;

use crate::{
    Failure,
    args::{Breaker, Global, OverrideArgs},
    log::print_log,
    members::print_with_members,
    output::{print_all, print_one},
};

/// Runs one command.
pub(crate) async fn run(
    breakers: &RedisBreakers,
    command: &Breaker,
    global: &Global,
) -> Result<(), Failure> {
    let json = global.json;
    let (name, view) = match command {
        Breaker::List => return list(breakers, global).await,
        Breaker::Watch { every, count } => return watch(breakers, global, *every, *count).await,
        Breaker::Get { name } => {
            require(breakers, global, name).await?;
            let (view, members) = (breakers.view(name).await?, breakers.members(name).await?);
            print_with_members(json, name, &view, &members);
            return Ok(());
        }
        Breaker::Log { name, count } => {
            require(breakers, global, name).await?;
            print_log(json, name, &breakers.log(name, *count).await?);
            return Ok(());
        }
        Breaker::Clear { name, author } => {
            require(breakers, global, name).await?;
            (name, breakers.set_override(name, None, &author.by).await?)
        }
        Breaker::Reset {
            name,
            reason,
            author,
        } => {
            require(breakers, global, name).await?;
            (name, breakers.reset(name, &author.by, reason).await?)
        }
        Breaker::ForceOpen(args) => {
            return set_override(breakers, global, OverrideKind::ForceOpen, args).await;
        }
        Breaker::ForceClosed(args) => {
            return set_override(breakers, global, OverrideKind::ForceClosed, args).await;
        }
        Breaker::Disable(args) => {
            return set_override(breakers, global, OverrideKind::Disable, args).await;
        }
        Breaker::MetricsOnly(args) => {
            return set_override(breakers, global, OverrideKind::MetricsOnly, args).await;
        }
    };
    print_one(json, name, &view);
    Ok(())
}

/// Fails for a name that no breaker has: a typing error must not make a record that nothing reads.
async fn require(breakers: &RedisBreakers, global: &Global, name: &str) -> Result<(), Failure> {
    let known = names(breakers).await?;
    if known.iter().any(|known| known == name) {
        return Ok(());
    }
    Err(Failure::NoSuch {
        what: "breaker",
        name: name.to_owned(),
        known,
        nothing: global.nothing("breaker"),
    })
}

async fn names(breakers: &RedisBreakers) -> Result<Vec<String>, Failure> {
    Ok(breakers.names().await?)
}

async fn set_override(
    breakers: &RedisBreakers,
    global: &Global,
    kind: OverrideKind,
    args: &OverrideArgs,
) -> Result<(), Failure> {
    require(breakers, global, &args.name).await?;
    let expires_ms = args
        .expires
        .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    if expires_ms == Some(0) {
        return Err(Failure::Usage(
            "`--expires` is 0: must be at least 1 ms".to_owned(),
        ));
    }
    let (reason, by) = (args.reason.clone(), args.author.by.clone());
    let active_override = FleetOverride {
        kind,
        reason,
        by,
        expires_ms,
    };
    let view = breakers
        .set_override(&args.name, Some(active_override), &args.author.by)
        .await?;
    print_one(global.json, &args.name, &view);
    Ok(())
}

async fn list(breakers: &RedisBreakers, global: &Global) -> Result<(), Failure> {
    let mut views = Vec::new();
    for name in names(breakers).await? {
        let view = breakers.view(&name).await?;
        views.push((name, view));
    }
    print_all(global, &views);
    Ok(())
}

async fn watch(
    breakers: &RedisBreakers,
    global: &Global,
    every: Duration,
    count: Option<u32>,
) -> Result<(), Failure> {
    let mut lists = 0;
    loop {
        list(breakers, global).await?;
        lists += 1;
        if count.is_some_and(|count| lists >= count) {
            return Ok(());
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
    }
}
