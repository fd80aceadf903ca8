//! The scripts of shared rate limits, held to the machine: the same calls to both, and every answer compared.
//!
//! The scripts run as they are, with another `redis` around them: its time is told by the caller, and its keys do not
//! expire. So both sides see the same clock.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use resilience_core::{
    fleet::RecordClock,
    limit::{
        Quota,
        token_bucket::{After, Bucket, Claim, LimitOutcome, TOLERATED_STEP, decide},
    },
};

use crate::redis::RedisServer;

const TOLD: &str = "
local real, told = redis, tonumber(ARGV[#ARGV])
local redis = { error_reply = real.error_reply }
function redis.call(name, key, value)
  if name == 'TIME' then return { math.floor(told / 1000000), told % 1000000 } end
  if name == 'SET' then return real.call(name, key, value) end
  return real.call(name, key)
end
redis.pcall = redis.call
";
/// A decision about shared limits, as the store sends it.
pub const DECIDE: &str = concat!(
    include_str!("../../resilience-redis/src/limit/token_bucket.lua"),
    "\n",
    include_str!("../../resilience-redis/src/record_time.lua"),
    include_str!("../../resilience-redis/src/limit/bucket.lua"),
    "\n",
    include_str!("../../resilience-redis/src/limit/decide.lua")
);

/// What came of a comparison.
#[derive(Debug, Default)]
pub struct Compared {
    /// Calls whose answers were compared.
    pub calls: usize,
    /// Those that were refused.
    pub refused: usize,
    /// Those that changed a plan.
    pub plans: usize,
    /// Those before which the clock went back.
    pub steps: usize,
    /// The first answer that differs, if one does; the comparison ends with it.
    pub wrong: Option<String>,
}

/// Makes a number of random calls, on one to three limits of a subject with up to three, to the scripts on `server` and to the
/// machine. Idle times of months, steps back, changes of plan, primes, costs from beyond every bound.
///
/// # Panics
/// When the server gives no answer.
#[must_use]
pub fn compare(server: &RedisServer, calls: usize, seed: u64) -> Compared {
    let mut script = Told::load(server);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut compared = Compared::default();
    while compared.calls < calls && compared.wrong.is_none() {
        script.flush();
        let mut held = Held::new(&mut rng);
        for _ in 0..20 {
            // Sent as one pipeline: a round trip for each call would take most of the time.
            let batch: Vec<_> = (0..20)
                .map(|_| held.call(&mut rng, &mut compared))
                .collect();
            compared.calls += batch.len();
            compared.wrong = script.first_difference(&batch);
            if compared.wrong.is_some() {
                break;
            }
        }
    }
    compared
}

/// The limits of one subject, as the machine sees them.
struct Held {
    quotas: Vec<Quota>,
    buckets: Vec<Option<Bucket>>,
    /// The record's, as it was noted last.
    clock: RecordClock,
    now: i64,
}

/// The age, in microseconds, of a bucket that a denial writes.
const OLD: u64 = 1_000_000;

/// What is sent to a script, and what it ought to answer.
struct Call {
    args: [Vec<u8>; 4],
    answer: Vec<f64>,
}

impl Held {
    fn new(rng: &mut fastrand::Rng) -> Self {
        let quotas: Vec<Quota> = (0..rng.usize(1..4)).map(|_| quota(rng)).collect();
        Self {
            buckets: vec![None; quotas.len()],
            quotas,
            clock: RecordClock::default(),
            now: rng.i64(1_600_000_000_000_000..2_000_000_000_000_000),
        }
    }

    fn call(&mut self, rng: &mut fastrand::Rng, compared: &mut Compared) -> Call {
        if rng.u8(0..20) == 0 {
            let which = rng.usize(0..self.quotas.len());
            self.quotas[which] = quota(rng);
            compared.plans += 1;
        }
        let pause = pause(rng, &self.quotas[0]);
        compared.steps += usize::from(pause < 0);
        self.now += pause;
        let mut asked: Vec<usize> = (0..self.quotas.len()).collect();
        rng.shuffle(&mut asked);
        if rng.u8(0..4) == 0 {
            asked.truncate(rng.usize(1..=asked.len()));
        }
        let asked: Vec<(usize, i64)> = asked
            .into_iter()
            .map(|which| (which, cost(rng, &self.quotas[which])))
            .collect();
        let args = self.args(&asked);
        let (answer, outcome) = self.decide(&asked);
        compared.refused += usize::from(!outcome.is_admitted());
        Call { args, answer }
    }

    /// The expected answer of the script to these demands.
    fn decide(&mut self, asked: &[(usize, i64)]) -> (Vec<f64>, LimitOutcome) {
        let claims: Vec<Claim<'_>> = asked
            .iter()
            .map(|(which, cost)| Claim {
                bucket: self.buckets[*which],
                quota: &self.quotas[*which],
                cost: *cost,
            })
            .collect();
        let clock = self.clock.read(self.now.unsigned_abs());
        let now = clock.now();
        let mut afters: Vec<After> = Vec::new();
        let outcome = decide(&claims, now, |after| afters.push(after));
        let denied = matches!(outcome, LimitOutcome::Wait { .. });
        let mut writes = clock.lead() != self.clock.lead();
        for ((which, _), after) in asked.iter().zip(&mut afters) {
            let bucket = self.buckets[*which];
            after.changed |= denied && bucket.is_some_and(|kept| now - kept.at >= OLD);
            writes |= after.changed;
        }
        if writes {
            self.clock = RecordClock::new(self.clock.now(), clock.lead());
        }
        let (code, binding, micros) = match outcome {
            LimitOutcome::Admitted { binding } => (1.0, binding, 0),
            LimitOutcome::Wait { binding, micros } => (0.0, binding, micros),
            LimitOutcome::Impossible { binding } => (-1.0, binding, 0),
        };
        let mut answer = vec![code, binding as f64 + 1.0, micros as f64];
        for ((which, _), after) in asked.iter().zip(&afters) {
            answer.extend([after.remaining as f64, after.full_in as f64]);
            if after.changed {
                self.buckets[*which] = after.bucket;
            }
        }
        self.note(writes, now);
        (answer, outcome)
    }

    /// The time of the record is that of the bucket written last, or of the write itself while it is ahead of the clock.
    fn note(&mut self, writes: bool, now: u64) {
        let written = self.buckets.iter().flatten().map(|bucket| bucket.at).max();
        self.clock = match written {
            // A key without buckets is no key.
            None => RecordClock::default(),
            Some(_) if writes && self.clock.lead() > 0 => RecordClock::new(now, self.clock.lead()),
            Some(at) if self.clock.lead() == 0 => RecordClock::new(at, 0),
            Some(_) => self.clock,
        };
    }

    fn args(&self, asked: &[(usize, i64)]) -> [Vec<u8>; 4] {
        let mut packed = Vec::new();
        for (which, cost) in asked {
            let quota = &self.quotas[*which];
            // No limit has the mark 0.
            packed.extend((*which as u32 + 1).to_le_bytes());
            let numbers =
                [quota.capacity(), quota.rate(), quota.unit()].map(|number| number as f64);
            let numbers = numbers.into_iter().chain([*cost as f64]);
            packed.extend(numbers.flat_map(f64::to_le_bytes));
        }
        let now = self.now.to_string().into_bytes();
        [b"1".to_vec(), b"t".to_vec(), packed, now]
    }
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
    let token = i64::try_from(quota.unit() / quota.rate()).expect("below 2^53") + 1;
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
    let most = i64::try_from(quota.capacity()).expect("below 2^53");
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
        let stream = TcpStream::connect(server.addr()).expect("the server runs");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout can be set");
        let mut told = Self {
            stream: BufReader::new(stream),
            digest: String::new(),
        };
        told.digest = told.load_script(&[TOLD, DECIDE].concat());
        told
    }

    fn load_script(&mut self, source: &str) -> String {
        self.send(&command(&[&b"SCRIPT"[..], b"LOAD", source.as_bytes()]));
        String::from_utf8(self.answer()).expect("a digest")
    }

    fn flush(&mut self) {
        self.send(&command(&["FLUSHALL"]));
        assert_eq!(self.line(), "+OK");
    }

    /// Sends every call, and tells of the first answer that is not what it ought to be.
    fn first_difference(&mut self, batch: &[Call]) -> Option<String> {
        let mut all = Vec::new();
        for call in batch {
            let mut words = vec![b"EVALSHA".to_vec(), self.digest.clone().into_bytes()];
            words.extend_from_slice(&call.args);
            all.extend(command(&words));
        }
        self.send(&all);
        let answers: Vec<Vec<u8>> = batch.iter().map(|_| self.answer()).collect();
        let difference = |(call, answer): (&Call, &Vec<u8>)| {
            let (head, rest) = answer.split_at(3);
            let code = f64::from(head[0].cast_signed());
            let binding = f64::from(u16::from_le_bytes([head[1], head[2]]));
            let doubles = rest.chunks_exact(8).map(|double| {
                let double = double.try_into().expect("eight bytes");
                f64::from_le_bytes(double)
            });
            let numbers: Vec<f64> = [code, binding].into_iter().chain(doubles).collect();
            let (expected, args) = (&call.answer, &call.args);
            (numbers != *expected).then(|| format!("{numbers:?} is not {expected:?}: {args:?}"))
        };
        batch.iter().zip(&answers).find_map(difference)
    }

    fn send(&mut self, commands: &[u8]) {
        let stream = self.stream.get_mut();
        stream.write_all(commands).expect("it listens");
    }

    /// A bulk string; anything else is an error that the script ought not to give.
    fn answer(&mut self) -> Vec<u8> {
        let head = self.line();
        let length = head
            .strip_prefix('$')
            .and_then(|length| length.parse().ok());
        let length: usize = length.unwrap_or_else(|| panic!("no bulk string: {head}"));
        let mut answer = vec![0; length + 2];
        self.stream.read_exact(&mut answer).expect("an answer");
        answer.truncate(length);
        answer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }
}

fn command(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut all = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        all.extend(format!("${}\r\n", word.len()).into_bytes());
        all.extend_from_slice(word);
        all.extend(b"\r\n");
    }
    all
}
