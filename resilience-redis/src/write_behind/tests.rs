//! The scripts against the record: whatever is done to both, in whatever order and at whatever time, both answer and show the
//! same.
//!
//! The scripts run as they are, with another `redis` around them: the caller gives it the time.

use std::{collections::HashMap, time::Duration};

use redis::Value;
use resilience_core::write_behind::record::{Bounds, RawChange, ShardRecord, TakenBatch};
use resilience_tests::redis::{Flavour, RedisServer};

use super::*;
use crate::Redis;

const TOLD: &str = "
local real, told = redis, tonumber(ARGV[#ARGV])
ARGV[#ARGV] = nil
local redis = { error_reply = real.error_reply }
function redis.call(name, ...)
  if name == 'TIME' then return { tostring(math.floor(told / 1000)), tostring(told % 1000 * 1000) } end
  return real.call(name, ...)
end
";

const SHARD: Shard<'static> = Shard {
    name: "t",
    index: 0,
    of: 1,
};
const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
const HOUR: u64 = 3_600_000;

/// A batch that was taken: fence, keys and versions.
type FencedEntries = (u64, Vec<(Arc<str>, u64)>);

/// The same shard on both sides.
struct Both {
    server: RedisServer,
    store: RedisWriteBehind,
    told: HashMap<&'static str, Script>,
    /// In milliseconds.
    now: u64,
    record: Option<ShardRecord>,
    number: u64,
    /// The last write, to be repeated.
    last: Option<Write>,
    batches: Vec<FencedEntries>,
}

impl Both {
    async fn start(flavour: Flavour) -> Self {
        let server = RedisServer::start_flavour(flavour, &[]);
        let redis = Redis::builder(&server.url()).budget(Duration::from_secs(5));
        let redis = redis.connect().expect("good settings");
        let ready = redis.ready(Duration::from_secs(30)).await;
        ready.expect("connects");
        let scripts: [(&str, &Script); 7] = [
            ("write", &WRITE),
            ("take", &TAKE),
            ("renew", &RENEW),
            ("settle", &SETTLE),
            ("state", &STATE),
            ("dead", &DEAD),
            ("act_on_dead", &ACT_ON_DEAD),
        ];
        let told = scripts.map(|(name, script)| (name, script.behind(TOLD)));
        Self {
            server,
            store: redis.write_behind(),
            told: told.into(),
            now: 1_700_000_000_000,
            record: None,
            number: 0,
            last: None,
            batches: Vec::new(),
        }
    }

    async fn run<T>(
        &self,
        name: &str,
        mut words: Words,
        writer: Option<&str>,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> T {
        let tag = self.store.tag(SHARD).expect("a good name");
        let mut keys = RedisWriteBehind::keys(&tag);
        keys.extend(writer.map(|it| format!("{tag}:writer:{it}")));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        words.text(&self.now);
        let connection = &self.store.context.connection;
        let answer = self.told[name].run(connection, &keys, &words.refs()).await;
        read(answer.expect("an answer")).expect("what it returns")
    }

    async fn random_step(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        match rng.u8(0..20) {
            0..7 => self.write(rng).await,
            7..12 => self.take(rng).await,
            12..17 => self.settle(rng).await,
            17 => self.renew(rng).await,
            18 => self.end_dead(rng).await,
            _ => self.pass(rng),
        }
    }

    fn pass(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        self.now += rng.u64(0..400);
        "passed"
    }

    fn set_back(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        self.now -= rng.u64(1..2 * HOUR);
        "set back"
    }

    fn flush(&mut self) -> &'static str {
        assert_eq!(self.server.command("FLUSHALL"), "OK");
        (self.record, self.last) = (None, None);
        self.batches.clear();
        "flushed"
    }

    fn random_write(&mut self, rng: &mut fastrand::Rng) -> Write {
        self.number += 1;
        let mut keys = KEYS;
        rng.shuffle(&mut keys);
        let change = |key: &str| RawChange {
            key: key.into(),
            value: (rng.u8(0..5) > 0).then(|| rng.u64(..).to_string().into()),
        };
        let many = if self.number.is_multiple_of(3) { 2 } else { 1 };
        Write {
            changes: keys[..many].iter().copied().map(change).collect(),
            writer: "w".into(),
            number: self.number,
            remember_ms: 1_000 * HOUR,
            floor: if rng.u8(0..6) == 0 {
                self.now * 1000 + rng.u64(0..1_000_000)
            } else {
                0
            },
            incarnation: rng.u64(1..1 << 40),
            bounds: Bounds {
                max_entries: rng.u64(2..6),
                max_age_ms: if rng.u8(0..3) == 0 { 300 } else { HOUR },
                max_first: if rng.bool() { 0 } else { rng.u64(3..6) },
            },
            keep_ms: HOUR * 1_000,
        }
    }

    async fn write(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let repeated = self.last.clone().filter(|_| rng.u8(0..8) == 0);
        let mut write = repeated.unwrap_or_else(|| self.random_write(rng));
        if rng.u8(0..20) == 0 && write.number > 1 {
            write.number -= 1;
        }
        let of = if rng.u8(0..10) == 0 { 2 } else { 1 };
        let shard = Shard { of, ..SHARD };
        let got = self
            .run(
                "write",
                write_words(shard, &write),
                Some("w"),
                wire::written,
            )
            .await;
        let now = self.now;
        let mut record = self
            .record
            .clone()
            .unwrap_or_else(|| ShardRecord::new(write.incarnation, of));
        let mut expected = record.write(&write, of, now);
        if self.record.is_none() {
            expected.before.incarnation = 0;
        }
        assert_eq!(got, expected);
        let stored = matches!(got.outcome, WriteOutcome::Stored { .. });
        if stored || self.record.is_some() {
            self.record = Some(record);
        }
        self.number = self.number.max(write.number);
        self.last = Some(write);
        match got.outcome {
            WriteOutcome::Stored { is_full: true, .. } => "stored first",
            WriteOutcome::Stored { .. } => "stored",
            WriteOutcome::Repeated { .. } => "repeated",
            WriteOutcome::Late => "late",
            WriteOutcome::Full { .. } => "full",
            WriteOutcome::Resharded { .. } => "resharded",
            _ => "unknown",
        }
    }

    async fn take(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let take = Take {
            holder: "h".into(),
            floor: 0,
            lease_ms: rng.u64(1..500),
            max: rng.usize(1..5),
            age_ms: rng.u64(0..300),
            keep_ms: HOUR * 1_000,
        };
        let got = self.run("take", take_words(&take), None, wire::taken).await;
        let now = self.now;
        let expected = self.record.as_mut().map(|it| it.take(&take, now));
        assert_eq!(got, expected.unwrap_or_else(Taken::nothing));
        match got.batch {
            TakenBatch::Batch { fence, entries, .. } => {
                let entries = entries.into_iter().map(|it| (it.key, it.version));
                self.batches.push((fence, entries.collect()));
                "taken"
            }
            TakenBatch::Busy { .. } => "busy",
            TakenBatch::NotDue {
                is_paused: true, ..
            } => "paused",
            TakenBatch::NotDue { .. } => "not due",
            _ => "idle",
        }
    }

    async fn settle(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        // The last one may be the holder's, others are zombies'.
        let from = self.batches.len().saturating_sub(2);
        let Some((fence, entries)) = self.batches[from..].last().cloned() else {
            return "nothing to settle";
        };
        let (fence, entries) = if rng.u8(0..5) == 0 {
            self.batches[from].clone()
        } else {
            (fence, entries)
        };
        let mut results = Vec::new();
        for (key, version) in entries {
            let result = match rng.u8(0..6) {
                0 => continue,
                1 => EntryResult::Retry {
                    after_ms: rng.u64(0..500),
                },
                2 => EntryResult::Dead {
                    reason: format!("no: {}", rng.u8(..)),
                },
                _ => EntryResult::Sunk,
            };
            results.push((key, version, result));
        }
        let settle = Settle {
            fence,
            results,
            pause_ms: (rng.u8(0..6) == 0).then(|| rng.u64(0..300)),
        };
        let words = settle_words(&settle).expect("they are known");
        let got = self.run("settle", words, None, |it| wire::flag(&it)).await;
        let now = self.now;
        let expected = self
            .record
            .as_mut()
            .is_some_and(|it| it.settle(&settle, now));
        assert_eq!(got, expected);
        if got { "settled" } else { "lost" }
    }

    async fn renew(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let Some((fence, _)) = self.batches.last().cloned() else {
            return "nothing to renew";
        };
        let lease_ms = rng.u64(1..500);
        let mut words = Words::default();
        words.text(&fence).text(&lease_ms);
        let got = self.run("renew", words, None, |it| wire::flag(&it)).await;
        let now = self.now;
        let expected = self
            .record
            .as_mut()
            .is_some_and(|it| it.renew(fence, lease_ms, now));
        assert_eq!(got, expected);
        if got { "renewed" } else { "not renewed" }
    }

    async fn end_dead(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let keys: Vec<Arc<str>> = (0..3).map(|_| KEYS[rng.usize(0..5)].into()).collect();
        let action = if rng.bool() {
            DeadAction::Redrive
        } else {
            DeadAction::Discard
        };
        let words = dead_words(&keys, action).expect("it is known");
        let got = self
            .run("act_on_dead", words, None, |it| wire::count(&it))
            .await;
        let now = self.now;
        let record = self.record.as_mut();
        assert_eq!(
            got,
            record.map_or(0, |it| it.act_on_dead(&keys, action, now))
        );
        if got > 0 { "ended dead" } else { "none dead" }
    }

    /// Both show the same.
    async fn compare(&self) {
        let state = self.run("state", Words::default(), None, wire::state).await;
        let record = self.record.as_ref();
        assert_eq!(
            state,
            record.map_or_else(ShardState::default, |it| it.state(self.now))
        );
        let mut words = Words::default();
        words.text("").text(&100);
        let dead = self.run("dead", words, None, wire::dead).await;
        assert_eq!(
            dead,
            record.map_or_else(Vec::new, |it| it.dead(None, 100, self.now))
        );
        for key in KEYS {
            let read = self.store.read(SHARD, key).await.expect("an answer");
            assert_eq!(read, record.and_then(|it| it.read(key)), "{key}");
        }
    }
}

#[tokio::test]
async fn scripts_do_what_the_record_does() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut both = Both::start(Flavour::Redis).await;
    let mut seen: HashMap<&str, u32> = HashMap::new();
    for step in 1..=2_000 {
        let what = match step % 400 {
            0 => both.flush(),
            100 | 200 | 300 => both.set_back(&mut rng),
            _ => both.random_step(&mut rng).await,
        };
        *seen.entry(what).or_default() += 1;
        both.compare().await;
        both.now += rng.u64(0..60);
    }
    for what in [
        "stored",
        "stored first",
        "repeated",
        "full",
        "resharded",
        "taken",
        "busy",
        "paused",
        "not due",
        "settled",
        "lost",
        "renewed",
        "not renewed",
        "ended dead",
        "set back",
        "flushed",
    ] {
        assert!(seen.contains_key(what), "never {what}: {seen:?}");
    }
}
