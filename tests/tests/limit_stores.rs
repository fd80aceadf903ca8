//! Every store of shared rate limits, held to one suite; and the script held to the machine.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use resilience_core::limit::{
    Quota,
    machine::{After, Bucket, Claim, Outcome, TOLERATED_STEP, decide},
    store::{Demand, InProcessLimits, LimitStore},
};
use resilience_redis::Redis;
use resilience_tests::{
    limit_conformance,
    redis::{Flavour, RedisServer},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    let store: Arc<dyn LimitStore> = Arc::new(InProcessLimits::new());
    limit_conformance::all(&store).await;
}

/// Redis, and Valkey where the machine has it.
#[tokio::test(flavor = "multi_thread")]
async fn redis_conforms() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let store: Arc<dyn LimitStore> = Arc::new(connect(&server).await.limits());
        limit_conformance::all(&store).await;
    }
}

async fn connect(server: &RedisServer) -> Redis {
    let redis = Redis::builder(&server.url())
        .budget(Duration::from_secs(5))
        .connect()
        .expect("good settings");
    redis.ready(Duration::from_secs(5)).await.expect("connects");
    redis
}

fn second(permits: u64) -> Quota {
    Quota::per(permits, Duration::from_secs(1)).unwrap()
}

/// A counter without an expiry stays for ever; one whose expiry is rounded down vanishes too early.
#[tokio::test(flavor = "multi_thread")]
async fn every_key_lives_until_its_bucket_is_full_and_no_longer() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let quota = Quota::per(1000, Duration::from_secs(3600)).unwrap();
    let demands = [
        Demand {
            limit: "a",
            quota,
            cost: 1,
        },
        Demand {
            limit: "b",
            quota: second(1).burst(50).unwrap(),
            cost: 50,
        },
    ];
    let decision = store.decide("api", "tenant", &demands).await.unwrap();
    for (limit, standing) in ["a", "b"].iter().zip(&decision.limits) {
        let ttl =
            integer(&server.command(&format!("PTTL {{resilience:limit:api:tenant}}:{limit}")));
        let full = i64::try_from(standing.full_in / 1000).unwrap();
        assert!(
            (full - 5_000..=full + 1).contains(&ttl),
            "{ttl} ms, full in {full} ms"
        );
    }
    let put_back = demands.map(|demand| Demand {
        cost: -demand.cost,
        ..demand
    });
    store.decide("api", "tenant", &put_back).await.unwrap();
    assert_eq!(
        integer(&server.command("DBSIZE")),
        0,
        "a full bucket has no key"
    );
}

/// Writing on a refusal doubles its price, replicates it, and lets a flood keep itself out for ever.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_looks_write_nothing() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let quota = Quota::per(2, Duration::from_secs(3600)).unwrap();
    let ask = async |cost| {
        let limit = "l";
        let demands = [Demand { limit, quota, cost }];
        store
            .decide("api", "tenant", &demands)
            .await
            .unwrap()
            .outcome
    };
    assert!(ask(2).await.is_admitted());
    let changes = || {
        integer(
            server
                .command("INFO persistence")
                .split("rdb_changes_since_last_save")
                .nth(1)
                .unwrap(),
        )
    };
    let before = changes();
    for _ in 0..50 {
        assert!(!ask(1).await.is_admitted());
        assert!(!ask(3).await.is_admitted());
        assert!(ask(0).await.is_admitted());
    }
    assert_eq!(changes(), before);
}

/// The script is sent whole again when the server has lost it.
#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_script_cache_costs_a_round_trip_and_no_answer() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let demands = [Demand {
        limit: "l",
        quota: second(10),
        cost: 1,
    }];
    for _ in 0..3 {
        assert!(store.decide("api", "t", &demands).await.is_ok());
        let _ = server.command("SCRIPT FLUSH");
    }
}

/// A foreign key is refused, whatever it holds, and the other limits of the decision are not charged.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_is_an_error_and_nothing_is_written() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let demands = ["mine", "foreign"].map(|limit| Demand {
        limit,
        quota: second(10),
        cost: 1,
    });
    for command in [
        "SET {resilience:limit:api:t}:foreign 5",
        "LPUSH {resilience:limit:api:t}:foreign 5",
    ] {
        let _ = server.command(command);
        assert!(store.decide("api", "t", &demands).await.is_err());
        assert_eq!(integer(&server.command("DBSIZE")), 1);
        let _ = server.command("FLUSHALL");
    }
}

/// An instance that died is forgotten, and with the last one its key.
#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_instances_lives_as_long_as_the_last_of_them() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let hour = Duration::from_secs(3600);
    store.enrol("api", "long", hour).await.unwrap();
    store.enrol("api", "short", hour / 60).await.unwrap();
    let ttl = || integer(&server.command("PTTL {resilience:limit:api}:live"));
    assert!((3_590_000..=3_600_000).contains(&ttl()), "{}", ttl());
    store.enrol("api", "long", Duration::ZERO).await.unwrap();
    assert!((50_000..=60_000).contains(&ttl()), "{}", ttl());
    store.enrol("api", "short", Duration::ZERO).await.unwrap();
    assert_eq!(integer(&server.command("DBSIZE")), 0);
    let forever = store.enrol("api", "long", Duration::MAX).await;
    assert!(forever.is_err(), "no number for a script");
    assert_eq!(integer(&server.command("DBSIZE")), 0);
}

/// The first number in an answer.
fn integer(answer: &str) -> i64 {
    let digits: String = answer
        .chars()
        .skip_while(|c| !c.is_ascii_digit() && *c != '-')
        .take_while(|c| c.is_ascii_digit() || *c == '-')
        .collect();
    digits.parse().unwrap_or_else(|_| panic!("{answer:?}"))
}

/// The script as it is, but with the time told by the caller, and keys that do not expire: then both sides see the
/// same clock.
const TOLD: &str = concat!(
    "local now = tonumber(ARGV[#ARGV])\n",
    "local function keep(key, value) redis.call('SET', key, value) end\n",
    include_str!("../../resilience-redis/src/limit/decide.lua")
);

const CALLS: usize = 40_000;

/// 40,000 calls a run, from a new seed each time: idle times of months, steps back, changes of plan, primes, costs
/// from beyond every bound, up to three limits at once.
#[test]
fn the_script_gives_the_same_answers_as_the_machine() {
    let server = RedisServer::start();
    let mut script = Told::load(&server);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut refused, mut done) = (0, 0);
    while done < CALLS {
        script.flush();
        let mut quotas: Vec<Quota> = (0..rng.usize(1..4)).map(|_| quota(&mut rng)).collect();
        let mut buckets: Vec<Option<Bucket>> = vec![None; quotas.len()];
        let mut now: i64 = rng.i64(1_600_000_000_000_000..2_000_000_000_000_000);
        for _ in 0..20 {
            // Sent as one pipeline: a round trip for each call would take most of the time.
            let mut batch = Vec::new();
            for _ in 0..20 {
                if rng.u8(0..20) == 0 {
                    let which = rng.usize(0..quotas.len());
                    quotas[which] = quota(&mut rng);
                }
                now += pause(&mut rng, &quotas[0]);
                let costs: Vec<i64> = quotas.iter().map(|quota| cost(&mut rng, quota)).collect();
                let (expected, is_refusal) = machine(&mut buckets, &quotas, &costs, now);
                refused += usize::from(is_refusal);
                batch.push((Told::args(&quotas, &costs, now), expected));
            }
            script.check(&batch);
            done += batch.len();
        }
    }
    assert!(
        (CALLS / 20..CALLS).contains(&refused),
        "{refused} of {done} were refused"
    );
}

/// What the script ought to answer.
fn machine(
    buckets: &mut [Option<Bucket>],
    quotas: &[Quota],
    costs: &[i64],
    now: i64,
) -> (Vec<i64>, bool) {
    let claims: Vec<Claim<'_>> = buckets
        .iter()
        .zip(quotas)
        .zip(costs)
        .map(|((bucket, quota), cost)| Claim {
            bucket: *bucket,
            quota,
            cost: *cost,
        })
        .collect();
    let mut afters: Vec<After> = Vec::new();
    let outcome = decide(&claims, now.unsigned_abs(), |after| afters.push(after));
    let (code, binding, micros) = match outcome {
        Outcome::Admitted { binding } => (1, binding, 0),
        Outcome::Wait { binding, micros } => (0, binding, micros),
        Outcome::Impossible { binding } => (-1, binding, 0),
    };
    let mut answer = vec![code, binding as i64 + 1, micros as i64];
    for (bucket, after) in buckets.iter_mut().zip(&afters) {
        answer.extend([after.remaining as i64, after.full_in as i64]);
        if after.changed {
            *bucket = after.bucket;
        }
    }
    (answer, code != 1)
}

fn quota(rng: &mut fastrand::Rng) -> Quota {
    const PRIMES: [u64; 8] = [2, 3, 7, 97, 9_973, 99_991, 999_983, 15_485_863];
    const PERIODS: [u64; 5] = [1, 1_000, 1_000_000, 999_983, 86_400_000_000];
    loop {
        let permits = match rng.u8(0..3) {
            0 => PRIMES[rng.usize(0..PRIMES.len())],
            1 => 10_u64.pow(rng.u32(0..7)),
            _ => rng.u64(1..200_000),
        };
        let period = match rng.u8(0..3) {
            0 => rng.u64(1..10_000_000),
            // Units of nearly 2^53, whose rest times another unit is far beyond a double.
            1 if rng.bool() => rng.u64(1..1 << 52),
            _ => PERIODS[rng.usize(0..PERIODS.len())],
        };
        let burst = match rng.u8(0..3) {
            0 => rng.u64(1..20),
            1 => PRIMES[rng.usize(0..PRIMES.len())],
            _ => rng.u64(1..100_000),
        };
        let made = Quota::per(permits, Duration::from_micros(period));
        if let Ok(quota) = made.and_then(|quota| quota.burst(burst)) {
            return quota;
        }
    }
}

fn pause(rng: &mut fastrand::Rng, quota: &Quota) -> i64 {
    let token = i64::try_from(quota.unit() / quota.rate()).unwrap() + 1;
    match rng.u8(0..24) {
        0..4 => 0,
        4..14 => rng.i64(0..=token.min(1 << 40)),
        14..18 => rng.i64(0..=token.saturating_mul(10).min(1 << 40)),
        18 => rng.i64(0..10_000_000_000),
        19 => -rng.i64(0..=TOLERATED_STEP as i64),
        20 => -rng.i64(0..3_600_000_000),
        _ => rng.i64(0..1_000),
    }
}

fn cost(rng: &mut fastrand::Rng, quota: &Quota) -> i64 {
    let most = i64::try_from(quota.capacity()).unwrap();
    match rng.u8(0..14) {
        0 => 0,
        1 => -rng.i64(1..=most),
        2 => most,
        3 => most + 1,
        4 => [-(1 << 53) + 1, (1 << 53) - 1][rng.usize(0..2)],
        5..7 => rng.i64(1..=most),
        _ => rng.i64(1..=(most / 4).clamp(1, 5)),
    }
}

/// A connection of its own, that speaks RESP2 and sends whole batches.
struct Told {
    stream: BufReader<TcpStream>,
    digest: String,
}

impl Told {
    fn load(server: &RedisServer) -> Self {
        let stream = TcpStream::connect(server.addr()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut told = Self {
            stream: BufReader::new(stream),
            digest: String::new(),
        };
        told.send(&command(&["SCRIPT", "LOAD", TOLD]));
        let loaded = told.lines(2);
        told.digest.clone_from(&loaded[1]);
        told
    }

    fn flush(&mut self) {
        self.send(&command(&["FLUSHALL"]));
        assert_eq!(self.lines(1), ["+OK"]);
    }

    fn args(quotas: &[Quota], costs: &[i64], now: i64) -> Vec<String> {
        let mut args = vec![quotas.len().to_string()];
        args.extend((0..quotas.len()).map(|key| format!("{{t}}:{key}")));
        for (quota, cost) in quotas.iter().zip(costs) {
            args.extend(
                [quota.capacity(), quota.rate(), quota.unit()].map(|number| number.to_string()),
            );
            args.push(cost.to_string());
        }
        args.push(now.to_string());
        args
    }

    /// Sends every call and compares every answer.
    fn check(&mut self, batch: &[(Vec<String>, Vec<i64>)]) {
        let mut all = String::new();
        for (args, _) in batch {
            let mut words = vec!["EVALSHA", &self.digest];
            words.extend(args.iter().map(String::as_str));
            all += &command(&words);
        }
        self.send(&all);
        for (args, expected) in batch {
            let head = self.lines(1);
            assert_eq!(head[0], format!("*{}", expected.len()), "{args:?}");
            let answer: Vec<i64> = self
                .lines(expected.len())
                .iter()
                .map(|line| line.strip_prefix(':').unwrap().parse().unwrap())
                .collect();
            assert_eq!(&answer, expected, "{args:?}");
        }
    }

    fn send(&mut self, words: &str) {
        self.stream.get_mut().write_all(words.as_bytes()).unwrap();
    }

    fn lines(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.line()).collect()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

fn command(words: &[&str]) -> String {
    let mut all = format!("*{}\r\n", words.len());
    for word in words {
        all += &format!("${}\r\n{word}\r\n", word.len());
    }
    all
}
