//! Work that must be done once, by processes that are killed, stopped and cut off; see `resilience_tests::torture`.
//!
//! ```text
//! torture             eight processes, 2,000 keys, 100,000 calls: figures, one JSON line each; about ten minutes
//! torture only NAME   one part of it: inbox, redis, outbox, hang_ups, failover, switch, shards, cluster, deploys, outages,
//!                     clock, upgrade, write_behind or streams
//! torture only upgrade REVISION
//!                     a rolling upgrade from the program of this git revision (HEAD~1, or what UPGRADE_FROM says), which is
//!                     checked out and built under target/upgrade
//! torture worker ..   one of the processes
//! torture server ..   one of the servers
//! torture mixed ..    one of the processes that use every pattern
//! torture relay ..    one of the processes that publish what is in an outbox
//! torture write_behind ..  one of the processes that write or sink
//! torture stampede .. one of the processes whose callers all ask for one key
//! torture consumer .. one of the processes that consume a stream
//! ```

use std::{env, time::Duration};

use resilience_tests::{
    answers::{Told, in_a_cluster, under_sentinels, with_killed_connections},
    cache_scene, clock_steps,
    postgres::Postgres,
    redis_cluster::RedisCluster,
    redis_sentinel::RedisSentinels,
    stream_scene::{self, LEASE, Plan as StreamPlan, out_of_order, redelivered_after},
    torture::{
        ClockSteps, DISTANCE, Former, How, Loss, Mixed, OutboxPlan, PLACES, Plan, Rollout, Subject,
        WRITE_BEHIND, WriteBehindPlan, clock_steps_under_load, deploys, failover,
        hang_ups_on_postgres, hang_ups_on_sqlite, mixed, one_master_frozen, outages, outbox, relay,
        run, serve, switch, switches, upgrade, work, write_behind, write_behind_process,
    },
};

#[path = "../../figures/src/report.rs"]
#[allow(dead_code, unreachable_pub)]
mod report;

use report::{Target, figure};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let from = env::var("UPGRADE_FROM");
    let mut from = from.as_deref().unwrap_or("HEAD~1");
    let only = match words[..] {
        [cache_scene::INSTANCE, ..] => return cache_scene::instance(&arguments[1..]).await,
        [stream_scene::INSTANCE, ..] => return stream_scene::consume(&arguments[1..]).await,
        ["worker", ..] => return work(&arguments[1..]).await,
        ["server", ..] => return serve(&arguments[1..]).await,
        ["mixed", ..] => return mixed(&arguments[1..]).await,
        ["relay", ..] => return relay(&arguments[1..]).await,
        [WRITE_BEHIND, _, ..] => return write_behind_process(&arguments[1..]).await,
        ["only", "upgrade", revision] => {
            from = revision;
            "upgrade"
        }
        ["only", part] => part,
        [] => "",
        _ => {
            eprintln!(
                "usage: torture [only NAME | only upgrade REVISION | worker .. | server .. | mixed .. | relay ..]"
            );
            std::process::exit(2);
        }
    };
    for subject in Subject::ALL {
        if subject.to_string().contains(only) {
            tortured(*subject).await;
        }
    }
    if "outbox".contains(only) {
        relayed().await;
    }
    if "write_behind".contains(only) {
        for fsync in ["always", "everysec"] {
            written_behind(fsync).await;
        }
    }
    if "hang_ups".contains(only) {
        hang_ups().await;
    }
    if "failover".contains(only) {
        for durable in [false, true] {
            failovers(durable).await;
        }
    }
    if "switch".contains(only) {
        switched().await;
    }
    if "shards".contains(only) {
        shards().await;
    }
    if "cluster".contains(only) {
        answers().await;
    }
    if "deploys".contains(only) {
        restarts().await;
    }
    if "outages".contains(only) {
        unrecorded().await;
    }
    if "clock".contains(only) {
        clock().await;
    }
    if "upgrade".contains(only) {
        upgraded(from).await;
    }
    if "streams".contains(only) {
        streams().await;
    }
    report::load();
}

/// Consumers of a stream that are killed, stopped and cut off.
async fn streams() {
    const EVENTS: u64 = 100_000;
    let program = env::current_exe().expect("this program");
    let plan = StreamPlan {
        processes: 8,
        events: EVENTS,
        pace: Duration::from_millis(10),
        calm: Duration::from_millis(250),
        faults: usize::MAX,
        limit: Duration::from_secs(900),
    };
    let came = stream_scene::run(&program, plan).await;
    let faults = came.faults;
    let unit = format!(
        "of {EVENTS} events; {} kill -9, {} kill -STOP past the lease, {} cuts, {} script caches emptied, in {:.0} s",
        faults.kills,
        faults.stops,
        faults.cuts,
        faults.flushes,
        came.took.as_secs_f64()
    );
    let tell = |what: &str, value: usize, unit: &str, target| {
        figure(&format!("stream_{what}"), value as f64, unit, target);
    };
    let none = Target::Exactly(0.0);
    tell("effects_twice", came.twice, &unit, none);
    tell("effects_lost", came.lost, &unit, none);
    tell(
        "effects_doubted",
        came.doubted,
        "events with more than one attempt",
        Target::Open,
    );
    tell(
        "effects_fenced",
        came.fenced,
        "writes of zombies that were refused",
        Target::Open,
    );
    tell("no_graceful_end", came.hung, "processes", none);
    let late = out_of_order(&program, 20_000).await;
    tell(
        "order_violations",
        late,
        "of 20,000 events of 64 keys, one consumer",
        none,
    );
    let longest = redelivered_after(&program, 20).await.into_iter().max();
    figure(
        "stream_redelivered_after_kill_ms",
        longest.unwrap_or_default().as_secs_f64() * 1e3,
        &format!("ms, the longest of 20; lease {LEASE:?}"),
        Target::AtMost(LEASE.as_secs_f64() * 1e3 + 1_000.0),
    );
}

/// A server whose clock steps by an hour, forward and back, under a fleet that uses every pattern.
async fn clock() {
    let program = env::current_exe().expect("this program");
    let ClockSteps {
        longest_overrun,
        steps,
        fleet,
    } = clock_steps_under_load(&program).await;
    let longest = longest_overrun.max(clock_steps::longest_overrun().await);
    figure(
        "clock_step_longest_overrun_ms",
        longest.as_secs_f64() * 1e3,
        &format!("ms, also under a fleet and {steps} steps"),
        Target::AtMost(1_000.0),
    );
    let twice = clock_steps::granted_twice().await;
    figure(
        "clock_step_granted_twice",
        twice as f64,
        "undocumented",
        Target::Exactly(0.0),
    );
    tell_of("clock_steps", &fleet);
    figure(
        "clock_steps_bulkhead_above",
        fleet.above.as_secs_f64() * 1e3,
        "ms",
        Target::Open,
    );
}

/// A rolling upgrade from an earlier revision, undone and done again.
async fn upgraded(from: &str) {
    let program = env::current_exe().expect("this program");
    let revision = from.to_owned();
    let built = tokio::task::spawn_blocking(move || Former::build(&revision)).await;
    let upgraded = match built.expect("no panic") {
        Ok(former) => upgrade(&program, &former, Rollout::default()).await,
        Err(why) => Err(why),
    };
    let upgrade = match upgraded {
        Ok(upgrade) => upgrade,
        Err(why) => {
            eprintln!("no upgrade from {from}: {why}");
            std::process::exit(1);
        }
    };
    tell_of("upgrade", &upgrade.fleet);
    let unit = format!("processes, from and to {:.12}", upgrade.from);
    figure(
        "upgrade_replaced",
        upgrade.replaced as f64,
        &unit,
        Target::Open,
    );
    let peak = upgrade.fleet.peak as f64;
    let most = Target::AtMost(PLACES as f64);
    figure("upgrade_bulkhead_peak", peak, "calls at once", most);
    let warnings: usize = upgrade.fleet.warnings.values().sum();
    let unit = format!("events: {:?}", upgrade.fleet.warnings);
    figure(
        "upgrade_warnings",
        warnings as f64,
        &unit,
        Target::Exactly(0.0),
    );
}

/// What holds for every fleet, whatever happens to it.
fn tell_of(name: &str, fleet: &Mixed) {
    let tell = |what: &str, value: f64, unit: &str, target| {
        figure(&format!("{name}_{what}"), value, unit, target);
    };
    let none = Target::Exactly(0.0);
    let unit = format!("of {} keys, {} calls", fleet.keys, fleet.told);
    tell("effects_twice", fleet.twice as f64, &unit, none);
    let unit = format!("wrong answers of {}", fleet.told);
    tell("foreign_answers", fleet.foreign as f64, &unit, none);
    tell("left_unknown", fleet.unknown as f64, "keys", none);
    let above = fleet.admitted.saturating_sub(fleet.allowed);
    let unit = format!(
        "calls above the limit, {} of {} admitted",
        fleet.admitted, fleet.allowed
    );
    tell("limit_above", above as f64, &unit, none);
    let disagreed = fleet.disagreed as f64;
    tell("breakers_disagreed", disagreed, "times", none);
    let slow = fleet.slow as f64;
    tell("store_slow", slow, "events", Target::Open);
    let hung = fleet.hung as f64;
    tell("no_graceful_end", hung, "processes", none);
}

/// What becomes of events whose relays and database are killed.
async fn relayed() {
    let plan = OutboxPlan {
        events: 20_000,
        relays: 3,
        calm: Duration::from_millis(600),
        limit: Duration::from_secs(900),
    };
    let program = env::current_exe().expect("this program");
    let came = outbox(&program, plan).await;
    let tell = |name: &str, value: usize, unit: &str, target| {
        figure(&format!("outbox_{name}"), value as f64, unit, target);
    };
    let none = Target::Exactly(0.0);
    let of = format!("of {} events that were committed", came.committed);
    tell("lost", came.lost, &of, none);
    tell("duplicated_effects", came.effects_twice, &of, none);
    tell("stored_twice", came.stored_twice, &of, none);
    tell(
        "invented",
        came.invented,
        "events that were not committed",
        none,
    );
    tell("order_violations", came.out_of_order, &of, none);
    tell("relays_killed", came.kills, "kill -9", Target::Open);
    tell("relays_stopped", came.stops, "kill -STOP", Target::Open);
    tell(
        "database_killed",
        came.database_kills,
        "kill -9",
        Target::AtLeast(1.0),
    );
}

/// What becomes of acknowledged writes when writers, sinkers and their Redis are killed.
async fn written_behind(fsync: &'static str) {
    const WRITES: usize = 100_000;
    let plan = WriteBehindPlan {
        writes: WRITES,
        processes: 3,
        fsync,
        calm: Duration::from_millis(400),
        limit: Duration::from_secs(900),
    };
    let program = env::current_exe().expect("this program");
    let came = write_behind(&program, plan).await;
    let (suffix, target) = match fsync {
        "always" => ("", Target::Exactly(0.0)),
        // What the machine's crash would lose is not in a kill of the process.
        _ => ("_everysec", Target::Open),
    };
    let tell = |name: &str, value: usize, unit: &str, target| {
        figure(
            &format!("write_behind_{name}{suffix}"),
            value as f64,
            unit,
            target,
        );
    };
    let of = format!("keys, of {} acknowledged writes", came.acknowledged);
    tell("lost_of_100000", came.lost, &of, target);
    let none = Target::Exactly(0.0);
    let of = format!("of {} changes that were sunk", came.given);
    tell("reordered", came.reordered, &of, none);
    tell(
        "processes_killed",
        came.kills,
        "kill -9",
        Target::AtLeast(2.0),
    );
    tell(
        "redis_killed",
        came.redis_kills,
        "kill -9",
        Target::AtLeast(1.0),
    );
}

/// What another route loses on a pool whose transactions are given up.
async fn hang_ups() {
    const WRITES: usize = 1_000;
    let server = Postgres::start();
    let mut lost = 0;
    for (database, hung_up) in [
        ("postgres", hang_ups_on_postgres(&server, WRITES).await),
        ("sqlite", hang_ups_on_sqlite(WRITES).await),
    ] {
        lost += hung_up.lost;
        let tell = |name: &str, value: usize, unit: &str, target| {
            let name = format!("inbox_hang_ups_{name}_{database}");
            figure(&name, value as f64, unit, target);
        };
        let given_up = format!("of {} transactions", hung_up.given_up + hung_up.committed);
        tell("given_up", hung_up.given_up, &given_up, Target::Open);
        let writes = format!("of {} writes of another route", hung_up.acknowledged);
        tell("lost_writes", hung_up.lost, &writes, Target::Exactly(0.0));
        tell(
            "effects_twice",
            hung_up.twice,
            "effects",
            Target::Exactly(0.0),
        );
    }
    let unit = format!("of {WRITES} writes of another route, on each database");
    figure(
        "inbox_hang_ups_lost_writes",
        lost as f64,
        &unit,
        Target::Exactly(0.0),
    );
}

/// Whether an answer is taken for another's, when connections are lost and remade.
async fn answers() {
    const ANSWERS: usize = 100_000;
    const FAULTS: usize = 60;
    let tell = |name: &str, told: Told| {
        figure(
            name,
            told.wrong() as f64,
            &format!(
                "wrong answers of {} under {} faults",
                told.answers, told.faults
            ),
            Target::Exactly(0.0),
        );
    };
    let start = tokio::task::spawn_blocking(RedisCluster::start);
    let mut cluster = start.await.expect("a Cluster");
    let mut all = Told::default();
    for subscriptions in [8, 64] {
        let told;
        (cluster, told) = in_a_cluster(cluster, subscriptions, ANSWERS, FAULTS).await;
        tell(
            &format!("cluster_{subscriptions}_subscriptions_foreign_answers"),
            told,
        );
        all.answers += told.answers;
        all.foreign += told.foreign;
        all.reused += told.reused;
        all.superseded += told.superseded;
        all.faults += told.faults;
    }
    tell("cluster_foreign_answers", all);
    let told = under_sentinels(64, ANSWERS, 6).await;
    tell("sentinel_foreign_answers", told);
    let told = with_killed_connections(64, ANSWERS, FAULTS).await;
    tell("killed_connections_foreign_answers", told);
}

/// Servers that get a SIGTERM under load, among clients that hang up.
async fn restarts() {
    const KEYS: usize = 1_000;
    let program = env::current_exe().expect("this program");
    for (drains, name) in [
        (true, "graceful_restarts"),
        (false, "restarts_without_drain"),
    ] {
        let came = deploys(&program, KEYS, drains).await;
        let tell = |what: &str, value: usize, unit: &str, target| {
            let target = if drains { target } else { Target::Open };
            figure(&format!("{name}_{what}"), value as f64, unit, target);
        };
        let none = Target::Exactly(0.0);
        tell("effects_twice", came.twice, "of 1,000 keys", none);
        tell("contradictions", came.contradictory, "keys", none);
        let all = Target::Exactly(KEYS as f64);
        tell("answered", came.answered, "keys", all);
        tell("signals", came.signals, "SIGTERM", Target::Open);
        tell("hung_up", came.hung_up, "requests", Target::Open);
    }
}

/// A server that is cut off from its store while it serves.
async fn unrecorded() {
    const REQUESTS: usize = 5_000;
    let came = outages(REQUESTS).await;
    let tell = |what: &str, value: usize, unit: &str, target| {
        figure(&format!("store_outage_{what}"), value as f64, unit, target);
    };
    let none = Target::Exactly(0.0);
    tell(
        "2xx_without_record",
        came.without_record,
        "responses with neither a record nor the mark",
        none,
    );
    tell("lost_outcomes", came.lost, "of handlers that ran", none);
    tell("2xx", came.answered, "responses", Target::Open);
    tell("held_back", came.held_back, "responses", Target::Open);
    tell("cut_off", came.cut_off, "times", Target::Open);
}

/// What is lost of completions that were accepted, when the primary dies with what it had not passed on.
async fn failovers(durable: bool) {
    const ROUNDS: usize = 10;
    let mut sum = Loss::default();
    for _ in 0..ROUNDS {
        let loss = failover(durable).await;
        sum.accepted += loss.accepted;
        sum.lost += loss.lost;
        sum.fences_back += loss.fences_back;
    }
    let how = if durable { "wait_1" } else { "async" };
    let tell = |name: &str, value: f64, unit: &str, target| {
        figure(&format!("failover_{how}_{name}"), value, unit, target)
    };
    let unit = format!("completions, {ROUNDS} failovers, replica {DISTANCE:?} away");
    tell("accepted", sum.accepted as f64, &unit, Target::Open);
    let target = if durable {
        Target::Exactly(0.0)
    } else {
        Target::Open
    };
    tell("lost", sum.lost as f64, "completions", target);
    tell(
        "lost_per_failover",
        sum.lost as f64 / ROUNDS as f64,
        "completions",
        Target::Open,
    );
    tell(
        "fences_gone_back",
        sum.fences_back as f64,
        "keys",
        Target::Exactly(0.0),
    );
}

/// What callers of other shards notice when a master of a Cluster is frozen.
async fn shards() {
    let start = tokio::task::spawn_blocking(RedisCluster::start);
    let cluster = start.await.expect("a Cluster");
    let (_cluster, shards) = one_master_frozen(cluster, Duration::from_secs(5)).await;
    let mut most: f64 = 0.0;
    for (word, healthy) in [("limit", shards.limit), ("idempotency", shards.idempotency)] {
        let unit = format!("% of {} calls, one master frozen 5 s", healthy.calls);
        let name = format!("healthy_shards_refused_percent_{word}");
        figure(&name, healthy.percent(), &unit, Target::Open);
        most = most.max(healthy.percent());
    }
    figure(
        "healthy_shards_refused_percent",
        most,
        "% of calls",
        Target::AtMost(1.0),
    );
}

/// What a switch of the master costs, by the number of replicas that steps wait for.
async fn switched() {
    let mut twice = 0;
    for (how, word) in [(How::Planned, "planned"), (How::Killed, "killed")] {
        for durable in [0, 1, 2] {
            let group = tokio::task::spawn_blocking(RedisSentinels::start);
            let (_group, switch) = switch(group.await.expect("a group"), durable, how).await;
            let tell = |name: &str, value: f64, unit: &str, target| {
                let name = format!("sentinel_failover_{word}_durable_{durable}_{name}");
                figure(&name, value, unit, target);
            };
            let unit = format!("of {} keys", switch.accepted);
            let target = match durable {
                2 => Target::Exactly(0.0),
                _ => Target::Open,
            };
            tell("effects_twice", switch.twice as f64, &unit, target);
            let in_use = switch.in_use.as_secs_f64() * 1e3;
            let unit = "ms after the promotion";
            tell("former_master_in_use", in_use, unit, Target::Open);
            let pause = switch.pause.as_secs_f64() * 1e3;
            tell("longest_pause", pause, "ms", Target::Open);
            if durable == 2 {
                twice += switch.twice;
            }
        }
    }
    let unit = "keys, durable(2) of 2";
    figure(
        "sentinel_failover_effects_twice",
        twice as f64,
        unit,
        Target::Exactly(0.0),
    );
    let group = tokio::task::spawn_blocking(RedisSentinels::start);
    let overrun = switches(group.await.expect("a group"), 5, Duration::from_secs(6)).await;
    let unit = "calls above the limit, five switches";
    let above = overrun.admitted_above as f64;
    figure("sentinel_failovers_limit_above", above, unit, Target::Open);
    let unit = format!("calls at once of {PLACES}, five switches");
    figure(
        "sentinel_failovers_bulkhead_peak",
        overrun.peak as f64,
        &unit,
        Target::Open,
    );
    let above = overrun.above.as_secs_f64() * 1e3;
    figure(
        "sentinel_failovers_bulkhead_above",
        above,
        "ms",
        Target::Open,
    );
}

async fn tortured(subject: Subject) {
    let plan = Plan {
        subject,
        workers: 8,
        keys: 2_000,
        operations: 100_000,
        calm: Duration::from_millis(400),
        seed: 4,
        limit: Duration::from_secs(1_200),
    };
    let program = env::current_exe().expect("this program");
    let report = run(&plan, &program).await;
    let (books, faults) = (&report.books, &report.faults);
    let tell = |name: &str, value: usize, unit: &str, target| {
        figure(
            &format!("once_{subject}_{name}"),
            value as f64,
            unit,
            target,
        );
    };
    tell(
        "operations",
        books.told,
        "calls told an outcome",
        Target::AtLeast(plan.operations as f64),
    );
    tell(
        "keys",
        books.keys,
        "keys",
        Target::AtLeast(plan.keys as f64),
    );
    tell(
        "double_effects",
        books.double,
        "effects",
        Target::Exactly(0.0),
    );
    tell(
        "lost_effects",
        books.lost,
        "keys told of",
        Target::Exactly(0.0),
    );
    tell(
        "contradictions",
        books.contradictory,
        "keys",
        Target::Exactly(0.0),
    );
    tell("stuck_keys", books.stuck, "keys", Target::Exactly(0.0));
    tell("kills", faults.kills, "kill -9", Target::Open);
    tell("stops", faults.stops, "kill -STOP", Target::Open);
    tell("cuts", faults.cuts, "lines", Target::Open);
    tell("delays", faults.delays, "lines", Target::Open);
    tell(
        "script_flushes",
        faults.flushes,
        "SCRIPT FLUSH",
        Target::Open,
    );
    tell("hung_up", faults.hung_up, "calls", Target::Open);
    tell(
        "fenced",
        faults.fenced,
        "late attempts refused by the fence",
        Target::Open,
    );
    tell(
        "doubted",
        faults.doubted,
        "attempts after one that may have done the work",
        Target::Open,
    );
    tell(
        "found_done",
        faults.found,
        "of those, the work was done",
        Target::Open,
    );
    let seconds = report.took.as_secs_f64();
    figure(&format!("once_{subject}_took"), seconds, "s", Target::Open);
}
