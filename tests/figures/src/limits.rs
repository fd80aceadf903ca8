//! Shared rate limits: exactness, the server's CPU and memory beside a GCRA's, and what the store adds to its script.

use ::redis::{Cmd, Pipeline, Value, aio::MultiplexedConnection};
use resilience_core::limit::{
    Quota,
    store::{Demand, LimitStore},
    token_bucket,
};

use crate::{
    bare::{connection, evalsha, load, per_second},
    fleet::{connect, ms},
    limit_script::{self, DECIDE},
    redis::RedisServer,
    report::{Target, figure, quantile},
};

#[path = "../../../resilience-core/src/limit/tests/oracle.rs"]
mod oracle;

const GCRA: &str = include_str!("gcra.lua");

pub(crate) async fn run() {
    exactness();
    let server = RedisServer::start();
    cpu(&server).await;
    memory(&server).await;
    throughput(&server).await;
}

/// A million calls to the machine and to exact fractions, and a million to the scripts and to the machine.
fn exactness() {
    const CALLS: usize = 1_000_000;
    let compared = oracle::compare(CALLS, fastrand::u64(..));
    let mix = [compared.refused, compared.plans, compared.steps];
    told("limit_machine_wrong_of_1000000_calls", compared.wrong, mix);
    let compared = limit_script::compare(&RedisServer::start(), CALLS, fastrand::u64(..));
    let mix = [compared.refused, compared.plans, compared.steps];
    told("limit_scripts_wrong_of_1000000_calls", compared.wrong, mix);
}

fn told(name: &str, wrong: Option<String>, [refused, plans, steps]: [usize; 3]) {
    let unit = format!("calls; {refused} refused, {plans} changes of plan, {steps} steps back");
    figure(
        name,
        f64::from(u8::from(wrong.is_some())),
        &unit,
        Target::Exactly(0.0),
    );
    if let Some(wrong) = wrong {
        eprintln!("{wrong}");
    }
}

/// A script with what it is asked, as a command.
struct Asked {
    command: Cmd,
    took: Vec<f64>,
}

impl Asked {
    async fn new(
        conn: &mut MultiplexedConnection,
        script: &str,
        key: &str,
        args: &[&[u8]],
    ) -> Self {
        let digest = load(conn, script).await;
        Self {
            command: evalsha(&digest, key, args),
            took: Vec::new(),
        }
    }

    /// Microseconds of the server per call, by its own count, over one batch.
    async fn round(&mut self, conn: &mut MultiplexedConnection) {
        const BATCH: usize = 500;
        let mut batch = Pipeline::with_capacity(BATCH);
        for _ in 0..BATCH {
            batch.add_command(self.command.clone()).ignore();
        }
        let before = script_micros(conn).await;
        let _: () = batch.query_async(conn).await.expect("answers");
        self.took
            .push((script_micros(conn).await - before) / BATCH as f64);
    }

    fn median(&mut self) -> f64 {
        quantile(&mut self.took, 0.5)
    }
}

/// What a decision costs the server, beside a GCRA on the same connection and in the same minute. The middle of many
/// batches, taken in turn.
async fn cpu(server: &RedisServer) {
    let mut conn = connection(server).await;
    let ours = |capacity, rate, unit| asked([capacity, rate, unit, 1.0]);
    let (passes, refuses) = (ours(1e6, 1.0, 1e3), ours(10.0, 1.0, 1e9));
    let gcra_passes: [&[u8]; 4] = [b"1000000", b"1000", b"1", b"1"];
    let gcra_refuses: [&[u8]; 4] = [b"10", b"1", b"1000", b"1"];
    let key = |name: &str| format!("{{resilience:limit:api:{name}}}");
    let mut all = [
        Asked::new(&mut conn, DECIDE, &key("tenant-1"), &[&passes]).await,
        Asked::new(&mut conn, DECIDE, &key("tenant-2"), &[&refuses]).await,
        Asked::new(&mut conn, GCRA, &key("tenant-3"), &gcra_passes).await,
        Asked::new(&mut conn, GCRA, &key("tenant-4"), &gcra_refuses).await,
    ];
    for round in 0..101 {
        for asked in &mut all {
            asked.round(&mut conn).await;
            if round == 0 {
                asked.took.clear();
            }
        }
    }
    let [admitted, denied, gcra_admitted, gcra_denied] = all.map(|mut asked| asked.median());
    let unit = "us of the server per call";
    figure(
        "limit_gcra_script_admitted",
        gcra_admitted,
        unit,
        Target::Open,
    );
    figure("limit_gcra_script_denied", gcra_denied, unit, Target::Open);
    let most = Target::AtMost(gcra_admitted);
    figure("limit_script_admitted", admitted, unit, most);
    let most = Target::AtMost(gcra_admitted / 2.0);
    figure("limit_script_denied", denied, unit, most);
}

/// What a bucket takes, by the server's own count, under keys as they are.
async fn memory(server: &RedisServer) {
    let store = connect(&server.url()).await.limits();
    for (name, subject) in [
        ("api", "tenant-7"),
        ("api", "203.0.113.17"),
        ("api", "2001:db8:85a3:8d3:1319:8a2e:370:7348"),
        ("api", "5f0c9a52-6c1e-4f43-9a53-0d6c3a1f9c11"),
        (
            "checkout-of-the-shop",
            "5f0c9a52-6c1e-4f43-9a53-0d6c3a1f9c11",
        ),
    ] {
        let quota = Quota::per(1_000_000, ms(86_400_000)).expect("a good quota");
        let demands = [Demand {
            limit: "per-day",
            quota,
            cost: 1_000,
        }];
        let decision = store.decide(name, subject, &demands).await;
        assert!(decision.expect("an answer").outcome.is_admitted());
        let answer = server.command(&format!("MEMORY USAGE {}", store.key(name, subject)));
        let bytes: f64 = answer.trim().parse().expect("a key");
        let unit = format!("bytes, for {subject} in {name}");
        figure("limit_memory", bytes, &unit, Target::AtMost(120.0));
    }
}

/// What the script takes, of the limit that one is measured with.
fn asked(numbers: [f64; 4]) -> Vec<u8> {
    let mark = 7_u32.to_le_bytes();
    [&mark[..], &numbers.map(f64::to_le_bytes).concat()].concat()
}

/// Decisions of the store beside its script alone, sent by the client crate on a connection with the same settings: as
/// many at once, in turns.
async fn throughput(server: &RedisServer) {
    const TURNS: usize = 9;
    const TASKS: usize = 64;
    let store = connect(&server.url()).await.limits();
    let mut conn = connection(server).await;
    let digest = load(&mut conn, DECIDE).await;
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (conn, digest) = (conn.clone(), digest.clone());
        bare.push(
            per_second(TASKS, move || {
                let (mut conn, digest) = (conn.clone(), digest.clone());
                async move {
                    let asked = asked([1e6, 1.0, 1e3, 1.0]);
                    let key = "{resilience:limit:api:bare}";
                    let answer: Value = evalsha(&digest, key, &[&asked])
                        .query_async(&mut conn)
                        .await
                        .expect("an answer");
                    assert!(matches!(answer, Value::BulkString(_)), "{answer:?}");
                }
            })
            .await,
        );
        let store = store.clone();
        whole.push(
            per_second(TASKS, move || {
                let store = store.clone();
                async move {
                    let quota =
                        Quota::per(1_000, ms(1_000)).and_then(|quota| quota.burst(1_000_000));
                    let (limit, quota) = ("per-second", quota.expect("a good quota"));
                    let demands = [Demand {
                        limit,
                        quota,
                        cost: 1,
                    }];
                    let decision = store.decide("api", "store", &demands).await;
                    decision.expect("an answer");
                }
            })
            .await,
        );
    }
    let (bare, whole) = (quantile(&mut bare, 0.5), quantile(&mut whole, 0.5));
    figure(
        "limit_bare_script_per_second",
        bare,
        "scripts/s",
        Target::Open,
    );
    figure(
        "limit_exact_mode_per_second",
        whole,
        "decisions/s",
        Target::Open,
    );
    let least = Target::AtLeast(0.85);
    figure(
        "limit_exact_mode_of_bare_script",
        whole / bare,
        "share",
        least,
    );
}

/// Microseconds that the server has spent on scripts.
async fn script_micros(conn: &mut MultiplexedConnection) -> f64 {
    let mut info = ::redis::cmd("INFO");
    let text: String = info
        .arg("commandstats")
        .query_async(conn)
        .await
        .expect("an answer");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_evalsha:"));
    let micros = line.and_then(|line| line.split(',').find_map(|item| item.strip_prefix("usec=")));
    micros.map_or(0.0, |micros| micros.parse().expect("a number"))
}
