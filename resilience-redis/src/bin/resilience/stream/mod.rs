//! Streams: their groups, messages and dead letters.

mod show;

use std::time::Duration;

use resilience_core::stream::{GroupState, Pause, Position, StreamBroker, StreamState};
use resilience_redis::RedisStreams;

use crate::{
    Failure,
    args::{DeadArgs, Global, GroupArgs, Page, StreamCommand},
};

/// Number of dead letters in one step: each may be large.
const BATCH: usize = 100;

pub(crate) async fn run(
    streams: &RedisStreams,
    command: &StreamCommand,
    global: &Global,
) -> Result<(), Failure> {
    let json = global.json;
    match command {
        StreamCommand::List => list(streams, global).await,
        StreamCommand::Groups { stream } => {
            let state = require(streams, stream, global).await?;
            show::groups(json, stream, &state);
            Ok(())
        }
        StreamCommand::Peek {
            stream,
            dead: None,
            body,
            page,
        } => {
            require(streams, stream, global).await?;
            let messages = streams.peek(stream, page.from, page.count.into()).await?;
            show::messages(json, *body, &messages);
            Ok(())
        }
        StreamCommand::Peek {
            stream,
            dead: Some(group),
            body,
            page,
        } => {
            require_group(streams, stream, group, global).await?;
            let max = page.count.into();
            let letters = streams.dead_letters(stream, group, page.from, max).await?;
            show::dead_letters(json, *body, &letters);
            Ok(())
        }
        StreamCommand::Pending { group, page } => pending(streams, group, page, global).await,
        StreamCommand::Redrive(args) => end_dead(streams, args, Verb::Redrive, global).await,
        StreamCommand::Drop(args) => end_dead(streams, args, Verb::Drop, global).await,
        StreamCommand::Pause {
            group,
            reason,
            expires,
            author,
        } => {
            let pause = Pause {
                by: author.by.as_str().into(),
                reason: reason.as_str().into(),
                for_ms: expires.map(millis).transpose()?,
            };
            set_pause(streams, group, Some(&pause), global).await
        }
        StreamCommand::Resume(group) => set_pause(streams, group, None, global).await,
    }
}

fn millis(expires: Duration) -> Result<u64, Failure> {
    match u64::try_from(expires.as_millis()).unwrap_or(u64::MAX) {
        0 => Err(Failure::Usage(
            "`--expires` is 0: must be at least 1 ms".to_owned(),
        )),
        ms => Ok(ms),
    }
}

async fn list(streams: &RedisStreams, global: &Global) -> Result<(), Failure> {
    let mut all = Vec::new();
    for name in streams.names().await? {
        // One that has ended since it was announced is not shown.
        if let Some(state) = streams.state(&name).await? {
            all.push((name, state));
        }
    }
    show::streams(global, &all);
    Ok(())
}

async fn require(
    streams: &RedisStreams,
    stream: &str,
    global: &Global,
) -> Result<StreamState, Failure> {
    if let Some(state) = streams.state(stream).await? {
        return Ok(state);
    }
    Err(Failure::NoSuch {
        what: "stream",
        name: stream.to_owned(),
        known: streams.names().await?,
        nothing: global.nothing("stream"),
    })
}

async fn require_group(
    streams: &RedisStreams,
    stream: &str,
    group: &str,
    global: &Global,
) -> Result<GroupState, Failure> {
    let state = require(streams, stream, global).await?;
    let known = state.groups.iter().map(|it| it.group.to_string()).collect();
    let found = state.groups.into_iter().find(|it| &*it.group == group);
    found.ok_or_else(|| Failure::NoSuch {
        what: "group",
        name: group.to_owned(),
        known,
        nothing: format!("the stream `{stream}` has no groups"),
    })
}

async fn pending(
    streams: &RedisStreams,
    GroupArgs { stream, group }: &GroupArgs,
    page: &Page,
    global: &Global,
) -> Result<(), Failure> {
    require_group(streams, stream, group, global).await?;
    let max = page.count.into();
    let pending = streams.pending(stream, group, page.from, max).await?;
    show::pending(global.json, &pending);
    Ok(())
}

async fn set_pause(
    streams: &RedisStreams,
    GroupArgs { stream, group }: &GroupArgs,
    pause: Option<&Pause>,
    global: &Global,
) -> Result<(), Failure> {
    require_group(streams, stream, group, global).await?;
    streams.pause(stream, group, pause).await?;
    let group = require_group(streams, stream, group, global).await?;
    show::group(global.json, &group);
    Ok(())
}

/// What is done to dead letters.
#[derive(Clone, Copy)]
enum Verb {
    Redrive,
    Drop,
}

async fn end_dead(
    streams: &RedisStreams,
    args: &DeadArgs,
    verb: Verb,
    global: &Global,
) -> Result<(), Failure> {
    let GroupArgs { stream, group } = &args.group;
    require_group(streams, stream, group, global).await?;
    let positions = if args.all {
        all_dead(streams, stream, group).await?
    } else {
        args.positions.clone()
    };
    let (mut ended, mut missing) = (Vec::new(), Vec::new());
    for positions in positions.chunks(BATCH) {
        let were_there = match verb {
            Verb::Redrive => streams.redrive(stream, group, positions).await?,
            Verb::Drop => streams.drop_dead(stream, group, positions).await?,
        };
        for (position, was_there) in positions.iter().zip(were_there) {
            let to = if was_there { &mut ended } else { &mut missing };
            to.push(*position);
        }
    }
    let word = match verb {
        Verb::Redrive => "redriven",
        Verb::Drop => "dropped",
    };
    show::ended(global.json, word, &ended);
    // Another command, or the time that they are kept, may end some meanwhile.
    if missing.is_empty() || args.all {
        return Ok(());
    }
    Err(Failure::NoSuch {
        what: "dead letter",
        name: show::listed(&missing),
        known: Vec::new(),
        nothing: format!("the group `{group}` has none there"),
    })
}

/// The positions of all dead letters. Found before the first one is redriven: one that fails again meanwhile is not found twice.
async fn all_dead(
    streams: &RedisStreams,
    stream: &str,
    group: &str,
) -> Result<Vec<Position>, Failure> {
    let (mut all, mut from) = (Vec::new(), Position::START);
    loop {
        let page = streams.dead_letters(stream, group, from, BATCH).await?;
        all.extend(page.iter().map(|letter| letter.position));
        match page.last() {
            Some(last) if page.len() == BATCH => from = last.position.next(),
            _ => return Ok(all),
        }
    }
}
