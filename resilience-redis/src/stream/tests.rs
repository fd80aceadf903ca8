//! The scripts against the records: whatever is done to both, in whatever order and at whatever time, both answer and show the
//! same.
//!
//! The scripts run as they are, with another `redis` around them: its time is told by the caller, and so is for how long a
//! message has been in the PEL.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use redis::Value;
use resilience_core::stream::{
    Action, Begin, Begun, Effect, Envelope, Held, Outgoing, Position, Publish, RawMessage, Settled,
    Settlement, Start, StreamBroker,
    record::{EffectRecord, Next, Record},
};
use resilience_tests::redis::{Flavour, RedisServer};

use super::{
    RedisStreams,
    steps::{BEGIN, CLAIM, EXTEND, JOIN, PENDING, READ, REDRIVE, SETTLE},
    wire,
    words::{StreamKeys, Words, all_begins, all_settlements, of_group, range, start},
};
use crate::{Redis, script::Script};

const TOLD: &str = "
local real, told = redis, tonumber(ARGV[#ARGV])
ARGV[#ARGV] = nil
local redis = { error_reply = real.error_reply }
local since = '{t}:since'
local function pending(call, ...)
  local words = { ... }
  local answer, least, most
  if #words == 2 then return call('XPENDING', ...) end
  if words[3] == 'IDLE' then least = table.remove(words, 4) table.remove(words, 3) end
  most, words[5] = tonumber(words[5]), 1000
  answer = call('XPENDING', unpack(words))
  if answer.err then return answer end
  local found = {}
  for _, entry in ipairs(answer) do
    entry[3] = math.max(math.floor(told / 1000) - real.call('HGET', since, entry[1]), 0)
    if entry[3] >= tonumber(least or 0) and #found < most then found[#found + 1] = entry end
  end
  return found
end
local function run(call, name, ...)
  if name == 'TIME' then return { tostring(math.floor(told / 1000000)), tostring(told % 1000000) } end
  if name == 'XPENDING' then return pending(call, ...) end
  if name == 'XCLAIM' then
    for i = 5, select('#', ...) do real.call('HSET', since, (select(i, ...)), math.floor(told / 1000)) end
  end
  local answer = call(name, ...)
  if name == 'XREADGROUP' and answer and answer[1] then
    for _, entry in ipairs(answer[1][2]) do real.call('HSET', since, entry[1], math.floor(told / 1000)) end
  end
  return answer
end
function redis.call(...) return run(real.call, ...) end
function redis.pcall(...) return run(real.pcall, ...) end
";

const STREAM: &str = "t";
const GROUP: &str = "g";
const CONSUMERS: [&str; 3] = ["a", "b", "c"];
const LEASES: [u64; 3] = [500, 2_000, 2_000];
const EFFECTS: [&str; 4] = ["k", "l", "m", "n"];
const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3_600_000;

/// The same group on both sides.
struct Both {
    _server: RedisServer,
    broker: RedisStreams,
    keys: StreamKeys,
    told: HashMap<&'static str, Script>,
    /// In microseconds, in whole milliseconds.
    now: u64,
    /// What the model knows: the messages that are not settled, the dead ones, the effects.
    records: BTreeMap<Position, Record>,
    dead: BTreeMap<Position, Record>,
    effects: [EffectRecord; 4],
    /// What was begun for a message last: the effect, and its fence.
    begun: BTreeMap<Position, (usize, u64)>,
}

impl Both {
    async fn start(flavour: Flavour) -> Self {
        let server = RedisServer::start_flavour(flavour, &[]);
        let redis = Redis::builder(&server.url()).budget(Duration::from_secs(5));
        let redis = redis.connect().expect("good settings");
        redis
            .ready(Duration::from_secs(30))
            .await
            .expect("connects");
        let broker = redis.streams();
        let scripts: [(&str, &Script); 7] = [
            ("join", &JOIN),
            ("read", &READ),
            ("claim", &CLAIM),
            ("extend", &EXTEND),
            ("begin", &BEGIN),
            ("settle", &SETTLE),
            ("redrive", &REDRIVE),
        ];
        let told = scripts.map(|(name, script)| (name, script.behind(TOLD)));
        let keys = broker.of_group(STREAM, GROUP).expect("good names");
        let mut both = Self {
            _server: server,
            broker,
            keys,
            told: told.into(),
            now: 1_700_000_000 * SECOND,
            records: BTreeMap::new(),
            dead: BTreeMap::new(),
            effects: Default::default(),
            begun: BTreeMap::new(),
        };
        both.join().await;
        both
    }

    async fn run(&self, name: &str, keys: &StreamKeys, words: &mut Words) -> Value {
        words.text(&self.now);
        let answer = self.broker.step(&self.told[name], keys, words, Some).await;
        answer.expect("an answer")
    }

    async fn join(&mut self) {
        for (consumer, lease_ms) in CONSUMERS.iter().zip(LEASES) {
            let mut words = of_group(GROUP, consumer);
            words.text(&7).text(&lease_ms).text(&HOUR);
            start(Start::Oldest, &mut words).expect("it is known");
            words.text(&0).text(&Position::START).text(&GROUP);
            let answer = self.run("join", &self.keys, &mut words).await;
            assert_eq!(wire::joined(answer).expect("an answer").incarnation, 7);
        }
    }

    async fn publish(&self) {
        let envelope = Envelope {
            id: "event".into(),
            ..Envelope::default()
        };
        let message = RawMessage {
            envelope,
            body: bytes::Bytes::from_static(b"body"),
        };
        let outgoing = Outgoing {
            message,
            delay_ms: 0,
        };
        let publish = Publish {
            messages: vec![outgoing; 2],
            sequence: None,
        };
        let published = self.broker.publish(STREAM, &publish).await;
        published.expect("an answer");
    }

    /// Messages of a random few, some of which are not held by any consumer.
    fn some(&self, rng: &mut fastrand::Rng) -> Vec<Position> {
        let known = self.records.keys().chain(self.dead.keys()).copied();
        let mut known: Vec<_> = known.collect();
        known.push(Position::new(1, 1));
        rng.shuffle(&mut known);
        known.truncate(rng.usize(1..9));
        known
    }

    async fn random_step(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let who = rng.usize(0..CONSUMERS.len());
        match rng.u8(0..20) {
            0..3 if self.records.len() < 40 => self.read(who, rng.usize(1..6)).await,
            3..7 => self.claim(who, rng.usize(0..5)).await,
            7..9 => self.extend(who, rng).await,
            9..12 => self.begin(who, rng).await,
            12..18 => self.settle(who, rng).await,
            _ => self.end_dead(rng).await,
        }
    }

    async fn read(&mut self, who: usize, max: usize) -> &'static str {
        self.publish().await;
        let mut keys = self.broker.of_stream(STREAM).expect("a good name");
        keys.all.truncate(1);
        let mut words = of_group(GROUP, CONSUMERS[who]);
        words.text(&max);
        let answer = self.run("read", &keys, &mut words).await;
        let entries = wire::list(answer).expect("a list").remove(0);
        let entries = wire::entries(entries).expect("entries");
        for (position, _) in &entries {
            let consumer = CONSUMERS[who].into();
            let record = Record::deliver(&consumer, LEASES[who], self.now);
            assert!(self.records.insert(*position, record).is_none());
        }
        "read"
    }

    async fn claim(&mut self, who: usize, max: usize) -> &'static str {
        let mut words = of_group(GROUP, CONSUMERS[who]);
        words.text(&max);
        let answer = self.run("claim", &self.keys, &mut words).await;
        let claimed = wire::claimed(STREAM, answer).expect("an answer");
        let now = self.now;
        let due = |(at, it): (&Position, &Record)| (it.due(now), *at);
        let mut due: Vec<_> = self.records.iter().map(due).collect();
        due.sort_unstable();
        let first = due.iter().take(max).filter(|(due, _)| *due <= now);
        let mut expected = Vec::new();
        for (_, position) in first {
            let record = self.records.get_mut(position).expect("it is known");
            assert!(record.claim(&CONSUMERS[who].into(), LEASES[who], now));
            expected.push((*position, record.deliveries()));
        }
        let got = claimed.deliveries.iter();
        let got: Vec<_> = got.map(|it| (it.position, it.deliveries)).collect();
        assert_eq!(got, expected);
        assert!(claimed.deliveries.iter().all(|it| it.message.is_some()));
        let next = self.records.values().map(|it| it.due(now)).min();
        let next = next.map(|due| due.saturating_sub(now) / 1000);
        assert_eq!(claimed.next_ms, next);
        if expected.is_empty() {
            "nothing due"
        } else {
            "claimed"
        }
    }

    async fn extend(&mut self, who: usize, rng: &mut fastrand::Rng) -> &'static str {
        let positions = self.some(rng);
        let mut words = of_group(GROUP, CONSUMERS[who]);
        range(positions.iter().copied(), &mut words);
        for position in &positions {
            words.text(&position);
        }
        let answer = self.run("extend", &self.keys, &mut words).await;
        let expected = positions.iter().map(|at| self.extend_one(who, *at));
        let expected: Vec<_> = expected.collect();
        assert_eq!(wire::held(answer), Some(expected));
        "extended"
    }

    fn extend_one(&mut self, who: usize, position: Position) -> Held {
        let record = self.records.get_mut(&position);
        record.map_or(Held::Gone, |it| {
            it.extend(CONSUMERS[who], LEASES[who], self.now)
        })
    }

    /// Messages that a consumer holds, each with an effect of its own.
    fn held(&self, who: usize, rng: &mut fastrand::Rng) -> Vec<(usize, Position)> {
        let held = self
            .records
            .iter()
            .filter(|(_, record)| record.holder().is_some_and(|it| **it == *CONSUMERS[who]));
        let mut positions: Vec<_> = held.map(|(position, _)| *position).collect();
        rng.shuffle(&mut positions);
        positions.truncate(rng.usize(1..=EFFECTS.len()));
        positions.into_iter().enumerate().collect()
    }

    /// Those whose effects it has begun.
    fn with_effects(&self, who: usize, rng: &mut fastrand::Rng) -> Vec<Position> {
        let held = self
            .held(who, rng)
            .into_iter()
            .map(|(_, position)| position);
        held.filter(|it| self.begun.contains_key(it)).collect()
    }

    async fn begin(&mut self, who: usize, rng: &mut fastrand::Rng) -> &'static str {
        let (mut words, mut begins) = (of_group(GROUP, CONSUMERS[who]), Vec::new());
        let mut keys = self.broker.of_group(STREAM, GROUP).expect("good names");
        let mut chosen: Vec<_> = self
            .some(rng)
            .into_iter()
            .map(|at| (rng.usize(0..EFFECTS.len()), at))
            .collect();
        // What is begun nearly always has a way of its own.
        let held = self.held(who, rng);
        if !held.is_empty() && rng.u8(0..4) == 0 {
            self.forget_effects().await;
            chosen = held;
        }
        for (key, position) in chosen {
            let begin = Begin {
                position,
                key: EFFECTS[key].into(),
                keep_ms: HOUR - rng.u64(0..2),
            };
            begins.push((key, begin));
        }
        let all: Vec<_> = begins.iter().map(|(_, begin)| begin.clone()).collect();
        all_begins(&all, &mut words, &mut keys);
        let answer = self.run("begin", &keys, &mut words).await;
        // The leases of all are extended before the first effect begins.
        let held: Vec<_> = begins
            .iter()
            .map(|(_, it)| self.extend_one(who, it.position))
            .collect();
        let mut expected = Vec::new();
        for ((key, begin), held) in begins.iter().zip(held) {
            expected.push(match held {
                Held::Held => {
                    let records = &self.records;
                    let is_held = |at| records.get(&at).is_some_and(|it| it.holder().is_some());
                    self.effects[*key].begin(begin, is_held, self.now)
                }
                lost => Begun::Lost(lost),
            });
        }
        let at_once = matches!(answer, Value::Int(_));
        let got = wire::begun(answer, expected.len()).expect("an answer");
        assert_eq!(got, expected);
        for ((key, begin), begun) in begins.iter().zip(&got) {
            if let Begun::Run { fence, .. } = begun {
                self.begun.insert(begin.position, (*key, *fence));
            }
        }
        if at_once {
            return "run at once";
        }
        // The rarest of them.
        let is = |what: fn(&Begun) -> bool| got.iter().any(what);
        if is(|it| *it == Begun::Busy) {
            "busy"
        } else if is(|it| matches!(it, Begun::Run { .. })) {
            "run"
        } else if is(|it| matches!(it, Begun::Done { .. })) {
            "done before"
        } else {
            "lost"
        }
    }

    async fn settle(&mut self, who: usize, rng: &mut fastrand::Rng) -> &'static str {
        let mut words = of_group(GROUP, CONSUMERS[who]);
        let mut keys = self.broker.of_group(STREAM, GROUP).expect("good names");
        // What is settled nearly always has a way of its own.
        let (plain, completes) = (rng.u8(0..4) == 0, rng.bool());
        let begun = self.with_effects(who, rng);
        let chosen = if completes && !plain && !begun.is_empty() {
            begun
        } else {
            self.some(rng)
        };
        let settlements: Vec<_> = chosen
            .into_iter()
            .map(|position| Settlement {
                position,
                action: match self.begun.get(&position) {
                    _ if plain => Action::Ack(None),
                    Some((key, fence)) if completes => effect(rng, *key, *fence),
                    _ => random_action(rng, self.now),
                },
            })
            .collect();
        all_settlements(&settlements, &mut words, &mut keys).expect("they are known");
        let expected: Vec<_> = settlements
            .iter()
            .map(|it| self.settle_one(who, it.position, &it.action))
            .collect();
        let answer = self.run("settle", &keys, &mut words).await;
        let at_once = answer == Value::Int(0);
        let got = wire::settled(answer, expected.len()).expect("an answer");
        assert_eq!(got, expected);
        if at_once && !plain {
            return "completed at once";
        }
        match got[0] {
            Settled::Done => "settled",
            Settled::Taken => "taken",
            Settled::Gone => "gone",
        }
    }

    fn settle_one(&mut self, who: usize, position: Position, action: &Action) -> Settled {
        let Some(record) = self.records.get_mut(&position) else {
            return Settled::Gone;
        };
        if let Action::Ack(Some(effect)) = action
            && record.held_by(CONSUMERS[who]) == Held::Held
        {
            let at = EFFECTS.iter().position(|it| **it == *effect.key);
            let kept = &mut self.effects[at.expect("it is known")];
            if !kept.complete(position, effect, self.now) {
                return Settled::Taken;
            }
        }
        match record.settle(CONSUMERS[who], action, self.now) {
            Err(refused) => return refused,
            Ok(Next::Waits) => {}
            Ok(Next::Settled(_)) => drop(self.records.remove(&position)),
            Ok(Next::Dead { .. }) => {
                let record = self.records.remove(&position).expect("it is known");
                self.dead.insert(position, record);
            }
        }
        Settled::Done
    }

    /// Redrives dead letters, or drops them.
    async fn end_dead(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let (positions, redrives) = (self.some(rng), rng.bool());
        let mut words = of_group(GROUP, "");
        words.text(&u8::from(redrives));
        let mut expected = Vec::new();
        for position in positions {
            words.text(&position);
            let was_dead = self.dead.remove(&position).is_some();
            if was_dead && redrives {
                self.records.insert(position, Record::redrive(self.now));
            }
            expected.push(was_dead);
        }
        let answer = self.run("redrive", &self.keys, &mut words).await;
        assert_eq!(wire::flags(answer), Some(expected));
        if redrives { "redriven" } else { "dropped" }
    }

    /// What an operator sees is what the records say.
    async fn compare(&self) {
        let mut words = of_group(GROUP, "");
        words.text(&Position::START).text(&1000);
        let answer = self.broker.step(&PENDING, &self.keys, &words, Some).await;
        let pending = wire::pending(answer.expect("an answer")).expect("an answer");
        let shown = pending
            .into_iter()
            .map(|it| (it.position, it.consumer, it.deliveries));
        let expected = self
            .records
            .iter()
            .map(|(at, it)| (*at, it.holder().cloned(), it.deliveries()));
        assert_eq!(shown.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        let letters = self
            .broker
            .dead_letters(STREAM, GROUP, Position::START, 1000);
        let letters = letters.await.expect("an answer");
        let failures = |it: &[resilience_core::stream::Failure]| -> Vec<_> {
            it.iter()
                .map(|it| (it.delivery, it.consumer.clone(), it.reason.clone()))
                .collect()
        };
        let shown = letters
            .iter()
            .map(|it| (it.position, it.deliveries, failures(&it.failures)));
        let expected = self
            .dead
            .iter()
            .map(|(at, it)| (*at, it.deliveries(), failures(&it.failures(self.now))));
        assert_eq!(shown.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        let state = self.broker.state(STREAM).await.expect("an answer");
        let state = state.map_or_else(Default::default, |it| it.groups[0].clone());
        let held = self.records.values().filter(|it| it.holder().is_some());
        let held = held.count();
        let counts = (held, self.records.len() - held, self.dead.len());
        let of_state = (state.held, state.waiting, state.dead);
        assert_eq!(
            of_state,
            (counts.0 as u64, counts.1 as u64, counts.2 as u64)
        );
    }
}

fn effect(rng: &mut fastrand::Rng, key: usize, fence: u64) -> Action {
    Action::Ack(Some(Effect {
        key: EFFECTS[key].into(),
        fence,
        // Its last byte may be that of a record that is running.
        outcome: vec![rng.u8(192..196); rng.usize(0..3)].into(),
        ttl_ms: HOUR,
    }))
}

fn random_action(rng: &mut fastrand::Rng, now: u64) -> Action {
    let after_ms = [0, 1, 300, 2_500][rng.usize(0..4)];
    match rng.u8(0..8) {
        0..2 => Action::Ack(None),
        2..4 => {
            // Of now, if one began: a guess that is often right, too high or too low.
            let fence = now - rng.u64(0..3) * 1_000;
            let key = rng.usize(0..EFFECTS.len());
            effect(rng, key, fence)
        }
        4..6 => Action::Retry {
            after_ms,
            reason: format!("reason {}", rng.u8(..)).into(),
        },
        6 => Action::GiveBack { after_ms },
        _ => Action::Dead {
            reason: "never".into(),
        },
    }
}

/// A thousand steps a run, from a new seed each time.
#[tokio::test(flavor = "multi_thread")]
async fn every_script_answers_as_the_records_do() {
    for flavour in Flavour::installed() {
        let seed = fastrand::u64(..);
        println!("{flavour:?}, seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut both = Both::start(flavour).await;
        let mut seen = BTreeMap::<_, u32>::new();
        for round in 0..1_000 {
            both.now +=
                [0, 1_000, rng.u64(0..700) * 1_000, rng.u64(0..3_000) * 1_000][rng.usize(0..4)];
            *seen.entry(both.random_step(&mut rng).await).or_default() += 1;
            if round % 7 == 0 {
                both.compare().await;
            }
            if round % 25 == 24 {
                // A group without any effect that is done.
                both.forget_effects().await;
            }
        }
        println!("{seen:?}");
        // Every answer was seen.
        assert_eq!(seen.len(), 15, "{seen:?}");
    }
}

impl Both {
    async fn forget_effects(&mut self) {
        let mut keys = self.broker.of_group(STREAM, GROUP).expect("good names");
        keys.all.clear();
        for effect in EFFECTS {
            keys.add_effect(effect);
        }
        let forget = Script::new("return redis.call('DEL', unpack(KEYS))");
        let words = Words::default();
        let forgotten = self.broker.step(&forget, &keys, &words, Some).await;
        forgotten.expect("an answer");
        self.effects = Default::default();
        self.begun.clear();
    }
}
