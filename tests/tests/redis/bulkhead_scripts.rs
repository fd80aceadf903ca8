//! The scripts of a fleet's bulkhead against the record: whatever is done to both, in whatever order, both answer the
//! same, call up the same, and show the same.

use std::sync::Arc;

use resilience_core::bulkhead::fleet::{
    AcquireRequest, Admission, BulkheadRecord, BulkheadView, Heartbeat, Holding, Release, Step,
};
use resilience_tests::{redis::RedisServer, redis_connection::RedisConnection};

/// In place of shown.lua, floor.lua and call_up.lua: the time is told by the caller, and calls are left in a list. Keys live by
/// the server's own clock, which passes far more slowly here.
const TOLD: &str = "local shown, floor = tonumber(table.remove(ARGV)), 0\n\
    local function call_up(leases) for _, id in ipairs(leases) do redis.call('RPUSH', '{t}:called', id) end end\n";

macro_rules! told {
    ($file:literal) => {
        (
            TOLD,
            concat!(
                include_str!("../../../resilience-redis/src/record_time.lua"),
                include_str!("../../../resilience-redis/src/bulkhead/common.lua"),
                "\n",
                include_str!(concat!("../../../resilience-redis/src/bulkhead/", $file))
            ),
        )
    };
}

struct Scripts {
    _server: RedisServer,
    redis: RedisConnection,
    digests: [String; 4],
}

impl Scripts {
    fn load() -> Self {
        let server = RedisServer::start();
        let redis = server.open().expect("it listens");
        let sources = [
            told!("acquire.lua"),
            told!("renew.lua"),
            told!("release.lua"),
            told!("view.lua"),
        ];
        let digests = sources.map(|(clock, script)| {
            let source = format!("{clock}{script}");
            redis.ask(&["SCRIPT", "LOAD", &source]).expect("it loads")
        });
        Self {
            _server: server,
            redis,
            digests,
        }
    }

    /// The answer, and who was called up.
    fn run(&self, script: usize, args: &[String], now: u64) -> Step<Vec<String>> {
        let keys = ["state", "leases", "held", "queue", "tickets", "live"]
            .map(|part| format!("{{t}}:{part}"));
        let now = now.to_string();
        let mut words = vec!["EVALSHA", &self.digests[script], "6"];
        words.extend(keys.iter().map(String::as_str));
        words.push("channel");
        words.extend(args.iter().map(String::as_str));
        words.push(&now);
        let ask = |words: &[&str]| self.redis.ask(words).expect("an answer");
        let mut answer = ask(&words);
        if script == RENEW {
            // What the clock shows comes first.
            let (shown, rest) = answer.split_once('\n').expect("more than one item");
            assert_eq!(shown, now);
            answer = rest.to_owned();
        }
        let is_error = answer.starts_with('-') && !answer.starts_with("-1");
        assert!(!is_error, "{words:?}: {answer}");
        let called = ask(&["LRANGE", "{t}:called", "0", "-1"]);
        if !called.is_empty() {
            ask(&["DEL", "{t}:called"]);
        }
        Step {
            answer: answer.lines().map(str::to_owned).collect(),
            up: called.lines().map(Arc::from).collect(),
        }
    }
}

const SECOND: u64 = 1_000_000;
/// The number of a script.
const RENEW: usize = 1;

/// What a run is made of: few ids, so that they meet.
struct Dice {
    rng: fastrand::Rng,
    /// Every fence that was ever given out, with its lease.
    granted: Vec<(Arc<str>, u64)>,
}

impl Dice {
    fn id(&mut self) -> Arc<str> {
        format!("lease {}", self.rng.u8(0..10)).into()
    }

    fn releases(&mut self) -> Vec<Release> {
        let count = [0, 0, 1, 1, 3][self.rng.usize(0..5)];
        (0..count)
            .map(|_| match self.past() {
                Some((lease, fence)) if self.rng.bool() => Release {
                    lease,
                    fence: Some(fence + u64::from(self.rng.u8(0..8) == 0)),
                },
                _ => Release {
                    lease: self.id(),
                    fence: None,
                },
            })
            .collect()
    }

    fn past(&mut self) -> Option<(Arc<str>, u64)> {
        let recent = self.granted.len().saturating_sub(12);
        self.rng.choice(&self.granted[recent..]).cloned()
    }

    fn request(&mut self) -> AcquireRequest {
        AcquireRequest {
            lease: self.id(),
            cost: self.rng.u64(0..5),
            limit: [6, 6, 6, 3, 0, 60][self.rng.usize(0..6)],
            lease_ms: self.rng.u64(20_000..60_000),
            ticket_ms: [0, 20_000, 40_000][self.rng.usize(0..3)],
            releases: self.releases(),
        }
    }

    fn beat(&mut self) -> Heartbeat {
        let count = self.rng.usize(0..4);
        let holdings = (0..count).filter_map(|_| {
            let (lease, fence) = self.past()?;
            let cost = self.rng.u64(0..4);
            let fence = fence - u64::from(self.rng.u8(0..8) == 0);
            Some(Holding { lease, cost, fence })
        });
        let holdings = holdings.collect();
        Heartbeat {
            instance: format!("instance {}", self.rng.u8(0..3)).into(),
            live_ms: self.rng.u64(20_000..80_000),
            lease_ms: self.rng.u64(20_000..60_000),
            holdings,
        }
    }

    fn pause(&mut self) -> i64 {
        let most = SECOND as i64;
        match self.rng.u8(0..10) {
            0..4 => self.rng.i64(0..=1),
            4..7 => self.rng.i64(0..most),
            7..9 => self.rng.i64(0..50 * most),
            _ => -self.rng.i64(0..20 * most),
        }
    }
}

fn pairs(releases: &[Release]) -> impl Iterator<Item = String> {
    releases.iter().flat_map(|what| {
        let fence = what.fence.map(|fence| fence.to_string());
        [what.lease.to_string(), fence.unwrap_or_default()]
    })
}

fn flags(flags: &[bool]) -> Vec<String> {
    let word = |flag: &bool| u8::from(*flag).to_string();
    flags.iter().map(word).collect()
}

fn viewed(view: &BulkheadView) -> Vec<String> {
    let fields = [
        view.in_flight,
        view.leases,
        view.waiting,
        view.live,
        view.fence,
    ];
    fields.map(|field| field.to_string()).to_vec()
}

fn strings<const N: usize>(numbers: [u64; N]) -> [String; N] {
    numbers.map(|number| number.to_string())
}

const RUNS: usize = 60;
const STEPS: usize = 60;

#[test]
fn the_scripts_of_a_bulkhead_do_what_the_record_does() {
    let scripts = Scripts::load();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = Dice {
        rng: fastrand::Rng::with_seed(seed),
        granted: Vec::new(),
    };
    let (mut grants, mut calls, mut renewals) = (0, 0, [0; 2]);
    for _ in 0..RUNS {
        let _ = scripts.redis.ask(&["FLUSHALL"]).expect("an answer");
        let mut record = BulkheadRecord::default();
        let mut now = dice.rng.u64(1_600_000_000 * SECOND..2_000_000_000 * SECOND);
        for _ in 0..STEPS {
            now = now.saturating_add_signed(dice.pause());
            let (expected, seen) = match dice.rng.u8(0..20) {
                0..10 => {
                    let request = dice.request();
                    let mut args = vec![request.lease.to_string()];
                    args.extend(strings([
                        request.cost,
                        request.limit,
                        request.lease_ms,
                        request.ticket_ms,
                    ]));
                    args.extend(pairs(&request.releases));
                    let Step { answer, up } = record.acquire(&request, now);
                    let answer = match answer {
                        Admission::Granted { fence } => {
                            grants += 1;
                            dice.granted.push((Arc::clone(&request.lease), fence));
                            ["1".to_owned(), fence.to_string(), "0".to_owned()]
                        }
                        Admission::Full { again_ms } => {
                            ["0".to_owned(), "0".to_owned(), again_ms.to_string()]
                        }
                        _ => ["-1", "0", "0"].map(str::to_owned),
                    };
                    let answer = answer.to_vec();
                    (Step { answer, up }, scripts.run(0, &args, now))
                }
                10..14 => {
                    let beat = dice.beat();
                    let mut args = vec![beat.instance.to_string()];
                    args.extend(strings([beat.live_ms, beat.lease_ms]));
                    for held in &beat.holdings {
                        args.push(held.lease.to_string());
                        args.extend(strings([held.cost, held.fence]));
                    }
                    let Step { answer, up } = record.renew(&beat, now);
                    answer
                        .iter()
                        .for_each(|kept| renewals[usize::from(*kept)] += 1);
                    let answer = [viewed(&record.view(now)), flags(&answer)].concat();
                    (Step { answer, up }, scripts.run(RENEW, &args, now))
                }
                14..19 => {
                    let releases = dice.releases();
                    let args: Vec<String> = pairs(&releases).collect();
                    let Step { answer, up } = record.release(&releases, now);
                    let answer = flags(&answer);
                    (Step { answer, up }, scripts.run(2, &args, now))
                }
                _ => {
                    let _ = scripts.redis.ask(&["FLUSHALL"]).expect("an answer");
                    record = BulkheadRecord::default();
                    continue;
                }
            };
            calls += usize::from(!expected.up.is_empty());
            assert_eq!(seen, expected);
            let view = scripts.run(3, &[], now).answer;
            assert_eq!(view, viewed(&record.view(now)));
        }
    }
    let steps = RUNS * STEPS;
    println!("{steps} steps: {grants} grants, {calls} calls, {renewals:?} leases lost and kept");
    assert!(grants > steps / 20 && calls > steps / 200);
    assert!(renewals.iter().all(|count| *count > steps / 100));
}
