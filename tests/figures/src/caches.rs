//! Caches of a fleet on a real Redis.

use std::env;

use crate::{
    cache_scene::{
        FailedOver, Raced, Resurrected, RoundTrips, Stampede, fail_over, in_process, over_redis,
        race, round_trips, stampede, times_to_be_told,
    },
    report::{Target, figure, quantile},
};

/// What a call costs, and how soon a change is seen: for a machine that does nothing else.
pub(crate) async fn run() {
    let RoundTrips {
        hit,
        miss,
        miss_waited,
        many,
    } = round_trips(1_000).await;
    let trips = |name: &str, value: f64, unit: &str, right: f64| {
        let name = format!("cache_round_trips_{name}");
        figure(&name, value, unit, Target::Exactly(right));
    };
    trips("hit", hit, "commands per call", 1.0);
    trips("miss", miss, "commands per call, the fill included", 3.0);
    let unit = "commands per call whose answer it waits for";
    trips("miss_waited", miss_waited, unit, 2.0);
    trips("many", many, "commands per 100 keys that hit", 1.0);
    told().await;
}

async fn told() {
    const INSTANCES: usize = 20;
    const TIMES: usize = 1_000;
    let times = times_to_be_told(INSTANCES, TIMES).await;
    let mut ms: Vec<f64> = times.iter().map(|it| it.as_secs_f64() * 1e3).collect();
    let half = quantile(&mut ms, 0.5);
    let unit = format!("ms until none of {INSTANCES} instances serves the value");
    figure("cache_invalidation_p50_ms", half, &unit, Target::Open);
    let most = quantile(&mut ms, 0.99);
    let bound = Target::AtMost(10.0);
    figure("cache_invalidation_p99_ms", most, &unit, bound);
}

/// Races, and processes that are killed.
pub(crate) async fn torture() {
    stampedes().await;
    let raced = race(5_000).await;
    let Raced {
        stale,
        reads,
        held,
        cuts,
    } = raced;
    let unit = format!(
        "keys; {reads} reads, {held} of them answered by the process, connections cut {cuts} times"
    );
    let none = Target::Exactly(0.0);
    figure("cache_stale_keys_of_5000", stale as f64, &unit, none);
    failovers().await;
    let in_process = in_process(100_000).await;
    let over_redis = over_redis(20_000).await;
    let resurrected = in_process.resurrected + over_redis.resurrected;
    let said = |what: &str, it: Resurrected| {
        format!(
            "{} races {what}, {} loads overtaken",
            it.races, it.overtaken
        )
    };
    let unit = format!(
        "races; {}; {}",
        said("in the process", in_process),
        said("over Redis", over_redis)
    );
    figure("cache_resurrected_values", resurrected as f64, &unit, none);
}

async fn failovers() {
    const TIMES: usize = 5;
    let mut all = FailedOver::default();
    for _ in 0..TIMES {
        let one = fail_over(200).await;
        all.stale += one.stale;
        all.changes += one.changes;
        all.lost += one.lost;
        all.held += one.held;
    }
    let unit = format!(
        "keys of 200; {TIMES} failovers by Sentinel, {} changes, of which the former masters took {} with them, {} \
         reads answered by the process",
        all.changes, all.lost, all.held
    );
    let name = "cache_stale_keys_after_failovers";
    figure(name, all.stale as f64, &unit, Target::Exactly(0.0));
}

async fn stampedes() {
    let program = env::current_exe().expect("this program");
    let plan = Stampede {
        processes: 8,
        callers: 200,
        expiries: 10,
        killed: false,
    };
    let unit = format!(
        "loads; {} processes, {} callers each, the key expires {} times",
        plan.processes, plan.callers, plan.expiries
    );
    let loads = stampede(&program, plan).await;
    let each = Target::Exactly(10.0);
    figure("cache_loads_of_a_stampede", loads as f64, &unit, each);
    let killed = Stampede {
        killed: true,
        ..plan
    };
    let loads = stampede(&program, killed).await;
    let name = "cache_loads_of_a_stampede_killed";
    figure(name, loads as f64, &unit, Target::AtMost(20.0));
}
