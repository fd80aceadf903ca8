//! The scripts against the record: whatever is done to both, in whatever order and at whatever time, both answer and show
//! the same.
//!
//! The scripts run as they are, with another `redis` around them: its time is told by the caller, and its keys expire by
//! that. So both sides see the same clock, to the microsecond.

use std::time::Duration;

use resilience_core::cache::record::Record;
use resilience_tests::redis::{Flavour, RedisServer};

use super::{wire::Content, *};
use crate::Redis;

const TOLD: &str = "
local real, told = redis, tonumber(ARGV[#ARGV])
ARGV[#ARGV] = nil
local redis = { error_reply = real.error_reply }
local over = KEYS[1] .. ':over'
local till = real.call('GET', over)
if till and tonumber(till) * 1000 < told then real.call('DEL', KEYS[1], over) end
local function expire(ms) real.call('SET', over, string.format('%.0f', math.floor(told / 1000) + ms)) end
local function run(call, name, ...)
  if name == 'TIME' then return { tostring(math.floor(told / 1000000)), tostring(told % 1000000) } end
  if name == 'PTTL' then return real.call('GET', over) - math.floor(told / 1000) end
  if name == 'PEXPIRE' then expire((select(2, ...))) return 1 end
  if name == 'DEL' then return real.call('DEL', KEYS[1], over) end
  if name == 'SET' then
    expire((select(4, ...)))
    return call(name, (...), (select(2, ...)))
  end
  return call(name, ...)
end
function redis.call(...) return run(real.call, ...) end
function redis.pcall(...) return run(real.pcall, ...) end
";

const KEY: &str = "{t}";
const SECOND: u64 = 1_000_000;

/// The same key on both sides.
struct Both {
    server: RedisServer,
    store: RedisCache,
    look: Script,
    told: [Script; 8],
    record: Record,
    /// In microseconds.
    now: u64,
}

#[derive(Clone, Copy)]
enum Step {
    Lease,
    Fill,
    Extend,
    Release,
    Put,
    Invalidate,
    BeginWrite,
    EndWrite,
}

impl Both {
    async fn start(flavour: Flavour) -> Self {
        let server = RedisServer::start_flavour(flavour, &[]);
        let (budget, soon) = (Duration::from_secs(5), Duration::from_secs(30));
        let redis = Redis::builder(&server.url()).budget(budget).connect();
        let redis = redis.expect("good settings");
        redis.ready(soon).await.expect("connects");
        let scripts = [
            &LEASE,
            &FILL,
            &EXTEND,
            &RELEASE,
            &PUT,
            &INVALIDATE,
            &BEGIN_WRITE,
            &END_WRITE,
        ];
        Self {
            server,
            store: redis.cache(),
            look: Script::new("return redis.call('EXISTS', KEYS[1])").behind(TOLD),
            told: scripts.map(|script| script.behind(TOLD)),
            record: Record::default(),
            now: 0,
        }
    }

    async fn run(&self, script: &Script, args: &[&[u8]]) -> Value {
        let now = self.now.to_string();
        let args: Vec<&[u8]> = args.iter().copied().chain([now.as_bytes()]).collect();
        let answer = script.run(&self.store.connection(), &[KEY], &args).await;
        answer.expect("an answer")
    }

    async fn step(&self, step: Step, args: &[&[u8]]) -> Value {
        self.run(&self.told[step as usize], args).await
    }

    /// Passes time, and removes from the record what the server has removed. That has nothing then.
    async fn pass(&mut self, rng: &mut fastrand::Rng) {
        self.now = match rng.u8(0..24) {
            0..5 => self.now,
            5..10 => self.now + rng.u64(0..5_000),
            10..19 => self.now + rng.u64(0..SECOND),
            19..21 => self.now + rng.u64(0..20 * SECOND),
            21 => self.now - rng.u64(0..SECOND),
            22 => self.now - rng.u64(0..30 * SECOND),
            _ => self.now + 1,
        };
        if self.run(&self.look, &[]).await == Value::Int(0) {
            let left = self.record.left(self.ms());
            assert_eq!(left, None, "{:?} at {}", self.record, self.now);
            self.record = Record::default();
        }
    }

    const fn ms(&self) -> u64 {
        self.now / 1000
    }

    /// The value is what GET says, with a clock that is known.
    async fn compare(&self) {
        let hash = keys::hash(KEY);
        let mut get = redis::cmd("GET");
        get.arg(KEY);
        let is_its = |answer: &Value| wire::is_of(answer, hash);
        let read = self.store.connection().read(KEY, &get, is_its).await;
        let content = match read {
            Ok(answer) => wire::content(answer, hash, self.ms()).expect("an answer"),
            // Of a wrong type.
            Err(_) => Content::Foreign,
        };
        let got = match content {
            Content::Entry(entry) => Some(entry),
            Content::Nothing | Content::Foreign => None,
        };
        assert_eq!(got, self.record.get(self.ms()), "{:?}", self.record);
    }

    async fn random_step(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let (hash, now, token) = (keys::hash(KEY), self.ms(), token(rng));
        let span = [0, 1, 300, 1_000, 2_500, 9_000][rng.usize(0..6)];
        match rng.u8(0..24) {
            0..8 => {
                let asked = Lease {
                    token,
                    lease_ms: span.max(1),
                    renew: rng.bool().then(|| self::token(rng)),
                };
                let answer = self.step(Step::Lease, &[&wire::lease(hash, &asked)]).await;
                let (leased, micros) = wire::leased(answer, hash).expect("an answer");
                assert_eq!(micros, self.now);
                assert_eq!(leased, self.record.lease(now, &asked));
                match leased {
                    Leased::Granted { stale: None } => "granted",
                    Leased::Granted { stale: Some(_) } => "granted with a stale value",
                    Leased::Fresh(_) => "fresh",
                    Leased::Held { .. } => "held",
                    Leased::Refused { .. } => "refused",
                }
            }
            8..10 => {
                let lease = wire::head(hash, 0, Some(token), span.max(1));
                let answer = self.step(Step::Extend, &[&lease]).await;
                let stored = self.record.extend(now, token, span.max(1));
                assert_eq!(wire::stored(&answer), Some(stored));
                name(stored, "extended", "not extended")
            }
            10..14 => {
                let fill = fill(rng);
                let value = wire::value(hash, token, &fill);
                let answer = self.step(Step::Fill, &[&value]).await;
                let stored = self.record.fill(now, token, &fill);
                assert_eq!(wire::stored(&answer), Some(stored));
                name(stored, "filled", "not filled")
            }
            14 => {
                let lease = wire::head(hash, 0, Some(token), 0);
                let answer = self.step(Step::Release, &[&lease]).await;
                assert!(wire::done(&answer).is_some());
                self.record.release(token);
                "released"
            }
            15..17 => {
                let fill = fill(rng);
                let value = wire::value(hash, token, &fill);
                let answer = self.step(Step::Put, &[&value]).await;
                let stored = self.record.put(now, token, &fill);
                assert_eq!(wire::stored(&answer), Some(stored));
                name(stored, "put", "not put")
            }
            17 => {
                let tombstone = wire::head(hash, 0, None, span);
                let answer = self.step(Step::Invalidate, &[&tombstone]).await;
                assert!(wire::done(&answer).is_some());
                self.record.invalidate(now, span);
                "invalidated"
            }
            18 | 19 => {
                let write = wire::head(hash, 0, Some(token), span);
                let answer = self.step(Step::BeginWrite, &[&write]).await;
                assert!(wire::done(&answer).is_some());
                self.record.begin_write(now, token, span);
                "write begun"
            }
            20..23 => {
                let fill = rng.bool().then(|| fill(rng));
                let tombstone = wire::head(hash, 0, Some(token), span);
                let value = fill.as_ref().map(|fill| wire::value(hash, token, fill));
                let mut args: Vec<&[u8]> = vec![&tombstone];
                args.extend(value.as_deref());
                let answer = self.step(Step::EndWrite, &args).await;
                let stored = self.record.end_write(now, token, fill.as_ref(), span);
                assert_eq!(wire::stored(&answer), Some(stored));
                name(stored, "written", "not written")
            }
            _ => self.lose(rng),
        }
    }

    /// Deletes the key, or replaces it by something else, which counts as nothing.
    fn lose(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let over = format!("{KEY}:over");
        let far = (self.ms() + 3_600_000).to_string();
        let ask = |words: &[&str]| self.server.try_words(words).expect("an answer");
        ask(&["DEL", KEY, &over]);
        let long = "x".repeat(100);
        match rng.u8(0..4) {
            0 => {}
            1 => drop(ask(&["SET", KEY, "text"])),
            2 => drop(ask(&["SET", KEY, &long])),
            _ => drop(ask(&["RPUSH", KEY, "item"])),
        }
        ask(&["SET", &over, &far]);
        self.record = Record::default();
        "lost"
    }
}

const fn name(stored: Stored, yes: &'static str, no: &'static str) -> &'static str {
    match stored {
        Stored::Stored => yes,
        Stored::Refused => no,
    }
}

/// Few, so that they meet.
fn token(rng: &mut fastrand::Rng) -> Token {
    Token::new([1, 2, u64::MAX][rng.usize(0..3)]).expect("not zero")
}

fn fill(rng: &mut fastrand::Rng) -> Fill {
    let keep_ms = rng.u64(1..10_000);
    Fill {
        body: rng.bool().then(|| format!("body {}", rng.u8(..)).into()),
        fresh_ms: [0, keep_ms / 2, keep_ms][rng.usize(0..3)],
        keep_ms,
        load_ms: rng.u64(0..1_000),
        tags: [].into(),
    }
}

/// Thousands of steps a run, from a new seed each time, by a handful of tokens.
#[tokio::test(flavor = "multi_thread")]
async fn every_script_answers_as_the_record_does() {
    for flavour in Flavour::installed() {
        let seed = fastrand::u64(..);
        println!("{flavour:?}, seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut both = Both::start(flavour).await;
        let mut seen = std::collections::BTreeMap::<_, u32>::new();
        both.now = rng.u64(1_600_000_000 * SECOND..2_000_000_000 * SECOND);
        for _ in 0..2_000 {
            both.pass(&mut rng).await;
            *seen.entry(both.random_step(&mut rng).await).or_default() += 1;
            both.compare().await;
        }
        println!("{seen:?}");
        // Every answer was seen.
        assert_eq!(seen.len(), 17, "{seen:?}");
    }
}
