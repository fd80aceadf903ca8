//! Idempotency records: round trips, what the store adds to its scripts, and a replay beside a GET.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use ::redis::{Value, aio::MultiplexedConnection};
use resilience_core::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Completion, Grant, Holder, Takeover, WriteOutcome},
};
use resilience_redis::RedisIdempotency;

use crate::{
    bare::{connection, evalsha, load, per_second},
    fleet::connect,
    redis::RedisServer,
    report::{Target, figure, quantile},
};

macro_rules! script {
    ($($file:literal),+) => {
        concat!($(include_str!(concat!("../../../resilience-redis/src/idempotency/", $file)), "\n"),+)
    };
}

const CLAIM: &str = script!(
    "read_full.lua",
    "time.lua",
    "common.lua",
    "claim_new.lua",
    "clamp.lua",
    "claim.lua"
);
const COMPLETE: &str = script!(
    "read_head.lua",
    "complete_fast.lua",
    "common.lua",
    "holder.lua",
    "complete.lua"
);
const DAY: u64 = 86_400_000;
/// An answer of some size, as a payment service gives.
const OUTCOME: [u8; 1024] = [b'o'; 1024];

pub(crate) async fn run() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.idempotency();
    round_trips(&server, &store).await;
    throughput(&server, &store).await;
    replay(&server, &store).await;
    memory(&server);
}

fn claim(number: u64) -> Claim {
    Claim {
        owner: format!("instance-7-{number}").into(),
        fingerprint: vec![7; 32].into(),
        lease_ms: 30_000,
        retention_ms: DAY,
        takeover: Takeover::Ended,
    }
}

async fn granted(store: &RedisIdempotency, key: &str, claim: &Claim) -> Grant {
    match store.claim("orders", key, claim).await {
        Ok(Claimed::New(grant)) => grant,
        other => panic!("{other:?}"),
    }
}

async fn first_call(store: &RedisIdempotency, number: u64) {
    let (key, claim) = (format!("key-{number}"), claim(number));
    let holder = Holder::new(&claim, &granted(store, &key, &claim).await);
    let done = Completion {
        outcome: OUTCOME.to_vec().into(),
        ttl_ms: DAY,
    };
    let kept = store.complete("orders", &key, &holder, &done).await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
}

async fn asks_again(store: &RedisIdempotency, key: &str, again: &Claim) -> Claimed {
    let claimed = store.claim("orders", key, again).await;
    claimed.expect("an answer")
}

/// What clients send, as the server counts it.
async fn round_trips(server: &RedisServer, store: &RedisIdempotency) {
    const CALLS: u64 = 100;
    // The server knows the scripts from here on.
    first_call(store, 0).await;
    let sent = || scripts(server);
    let per_call = |from: u64, to: u64| (to - from) as f64 / CALLS as f64;
    let start = sent();
    for number in 1..=CALLS {
        first_call(store, number).await;
    }
    let called = sent();
    let again = claim(u64::MAX);
    for number in 1..=CALLS {
        let replayed = asks_again(store, &format!("key-{number}"), &again).await;
        assert!(matches!(replayed, Claimed::Done { .. }), "{replayed:?}");
    }
    let replayed = sent();
    granted(store, "key-busy", &claim(0)).await;
    let held = sent();
    for _ in 0..CALLS {
        let busy = store.claim("orders", "key-busy", &claim(1)).await;
        assert!(matches!(busy, Ok(Claimed::Busy { .. })), "{busy:?}");
    }
    let refused = sent();
    for (name, from, to, exactly) in [
        ("record_round_trips_first_call", start, called, 2.0),
        ("record_round_trips_replay", called, replayed, 1.0),
        ("record_round_trips_conflict", held, refused, 1.0),
    ] {
        let trips = per_call(from, to);
        figure(name, trips, "commands/call", Target::Exactly(exactly));
    }
}

/// Scripts that clients called.
fn scripts(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats");
    let calls = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        let calls = line.and_then(|line| line.split(',').next()?.parse::<u64>().ok());
        calls.unwrap_or(0)
    };
    calls("cmdstat_evalsha:calls=") + calls("cmdstat_eval:calls=")
}

/// First calls through the store, beside the same two scripts with the same arguments sent bare: as many at once, in
/// turns.
async fn throughput(server: &RedisServer, store: &RedisIdempotency) {
    const TURNS: usize = 9;
    const TASKS: usize = 64;
    let mut conn = connection(server).await;
    let digests: Arc<[String; 2]> = Arc::new([
        load(&mut conn, CLAIM).await,
        load(&mut conn, COMPLETE).await,
    ]);
    let next = Arc::new(AtomicU64::new(1_000_000));
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (conn, digests, numbers) = (conn.clone(), Arc::clone(&digests), Arc::clone(&next));
        bare.push(
            per_second(TASKS, move || {
                let number = numbers.fetch_add(1, Relaxed);
                bare_call(conn.clone(), Arc::clone(&digests), number)
            })
            .await,
        );
        let (store, numbers) = (store.clone(), Arc::clone(&next));
        whole.push(
            per_second(TASKS, move || {
                let (store, number) = (store.clone(), numbers.fetch_add(1, Relaxed));
                async move { first_call(&store, number).await }
            })
            .await,
        );
        // Memory that is full of records is slower for the one that runs second.
        assert_eq!(server.command("FLUSHALL"), "OK");
    }
    let (bare, whole) = (quantile(&mut bare, 0.5), quantile(&mut whole, 0.5));
    figure(
        "record_bare_scripts_per_second",
        bare,
        "calls/s",
        Target::Open,
    );
    figure(
        "record_first_calls_per_second",
        whole,
        "calls/s",
        Target::Open,
    );
    let least = Target::AtLeast(0.85);
    figure(
        "record_first_calls_of_bare_scripts",
        whole / bare,
        "share",
        least,
    );
}

async fn bare_call(mut conn: MultiplexedConnection, digests: Arc<[String; 2]>, number: u64) {
    let key = format!("{{resilience:idempotency:bare:key-{number}}}:record");
    let (owner, fingerprint) = (format!("instance-7-{number}"), [7; 32]);
    let packed = |numbers: [u64; 2]| numbers.map(|number| (number as f64).to_le_bytes()).concat();
    let (size, day) = (fingerprint.len() as u8, DAY.to_string());
    let sizes = [size, owner.len() as u8];
    let who = [&fingerprint[..], owner.as_bytes()].concat();
    let times = [packed([0, 1]), packed([30_000, DAY])].concat();
    let asked = [&times, &sizes[..], &[0], &who].concat();
    let claim = evalsha(&digests[0], &key, &[&asked]);
    let claimed: Value = claim.query_async(&mut conn).await.expect("an answer");
    let Value::Int(fence) = claimed else {
        panic!("not granted: {claimed:?}");
    };
    let moments = [packed([fence as u64, fence as u64]), packed([0, 0])].concat();
    let begin = [249, 2, 0, 0, 1, 0, 0, 0];
    let end = [&packed([DAY, 0])[..8], &sizes, &[0]].concat();
    let record = [&begin[..], &moments, &end, &who, &OUTCOME].concat();
    let complete: [&[u8]; 2] = [&record, day.as_bytes()];
    let complete = evalsha(&digests[1], &key, &complete);
    let kept: String = complete.query_async(&mut conn).await.expect("an answer");
    assert_eq!(kept, "kept");
}

/// The time of a replay beside that of a GET of as many bytes, one at a time: from outside of the runtime's threads, which
/// wake each other then, and from a task on one of them, which is also where the connection is driven.
async fn replay(server: &RedisServer, store: &RedisIdempotency) {
    first_call(store, 1).await;
    let mut conn = connection(server).await;
    let mut set = ::redis::cmd("SET");
    let _: Value = set
        .arg("plain")
        .arg(&OUTCOME)
        .query_async(&mut conn)
        .await
        .expect("OK");
    for (from, is_task) in [("outside", false), ("a_task", true)] {
        let (mut replays, mut gets) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            gets.extend(settled(is_task, many_gets(conn.clone())).await);
            replays.extend(settled(is_task, many_replays(store.clone())).await);
        }
        let (replay, get) = (quantile(&mut replays, 0.5), quantile(&mut gets, 0.5));
        figure(
            &format!("record_get_from_{from}_us"),
            get,
            "us",
            Target::Open,
        );
        figure(
            &format!("record_replay_from_{from}_us"),
            replay,
            "us",
            Target::Open,
        );
        figure(
            &format!("record_replay_of_a_get_from_{from}"),
            replay / get,
            "times",
            Target::AtMost(1.3),
        );
    }
}

const CALLS: u32 = 500;

/// Microseconds a call. After a change of connections it takes the kernel a thousand calls to settle on which thread runs
/// where; those are not counted.
async fn settled<F: Future<Output = ()> + Send>(
    is_task: bool,
    calls: impl Fn() -> F + Send + 'static,
) -> Vec<f64> {
    let all = async move {
        let mut took = Vec::new();
        for batch in 0..8 {
            let start = Instant::now();
            calls().await;
            if batch >= 4 {
                took.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
            }
        }
        took
    };
    if is_task {
        tokio::spawn(all).await.expect("no panic")
    } else {
        all.await
    }
}

fn many_gets(conn: MultiplexedConnection) -> impl Fn() -> BoxFuture + Send + 'static {
    let mut get = ::redis::cmd("GET");
    get.arg("plain");
    let get = Arc::new(get);
    move || {
        let (mut conn, get) = (conn.clone(), Arc::clone(&get));
        Box::pin(async move {
            for _ in 0..CALLS {
                let got: Vec<u8> = get.query_async(&mut conn).await.expect("an answer");
                assert_eq!(got.len(), OUTCOME.len());
            }
        })
    }
}

fn many_replays(store: RedisIdempotency) -> impl Fn() -> BoxFuture + Send + 'static {
    // Made once, as the GET is.
    let again = Arc::new(claim(u64::MAX));
    move || {
        let (store, again) = (store.clone(), Arc::clone(&again));
        Box::pin(async move {
            for _ in 0..CALLS {
                let replayed = asks_again(&store, "key-1", &again).await;
                assert!(
                    matches!(replayed, Claimed::Done { outcome, .. } if outcome.len() == OUTCOME.len())
                );
            }
        })
    }
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a record of that outcome takes.
fn memory(server: &RedisServer) {
    let answer = server.command("MEMORY USAGE {resilience:idempotency:orders:key-1}:record");
    let bytes: f64 = answer.trim().parse().expect("a record");
    let unit = "bytes, of which 1024 are the outcome";
    figure("record_memory", bytes, unit, Target::Open);
}
