//! The scripts against the record: whatever is done to both, in whatever order and at whatever time, both answer and show
//! the same.
//!
//! The scripts run as they are, with another `redis` around them: its time is told by the caller, and its keys expire by
//! that. So both sides see the same clock, to the microsecond. Packed numbers are packed and unpacked around them.

use bytes::Bytes;
use resilience_core::idempotency::record::{
    Claim, Claimed, Completion, Grant, Holder, Loss, Phase, Previous, Record, RecordView,
    StoreResolution, Takeover, WriteOutcome,
};
use resilience_tests::{redis::RedisServer, redis_connection::RedisConnection};

const TOLD: &str = "
local real, told = redis, tonumber(ARGV[#ARGV])
ARGV[#ARGV] = nil
local redis = { error_reply = real.error_reply }
local over = KEYS[1] .. ':over'
local till = real.call('GET', over)
if till and tonumber(till) <= told then real.call('DEL', KEYS[1], over) end
local function expire(ms) real.call('SET', over, string.format('%.0f', told + ms * 1000)) end
function redis.call(name, ...)
  if name == 'TIME' then return { math.floor(told / 1000000), told % 1000000 } end
  if name == 'PTTL' then return math.ceil((real.call('GET', over) - told) / 1000) end
  if name == 'PEXPIRE' then expire((select(2, ...))) return 1 end
  if name == 'SET' then
    expire((select(4, ...)))
    return real.call(name, (...), (select(2, ...)))
  end
  return real.call(name, ...)
end
redis.pcall = redis.call
";

/// Numbers come as text with commas between them, behind the form to pack them in; then what follows them unpacked.
const PACK: &str = "
local form, numbers, behind = string.match(ARGV[1] or '', '^(%S+) ([%d,]+) (.*)$')
if form then
  local all = {}
  for number in string.gmatch(numbers, '[^,]+') do all[#all + 1] = tonumber(number) end
  ARGV[1] = struct.pack(form, unpack(all)) .. behind
end
";

/// A claim's answer in numbers, with what is quoted behind them. What is to be made of a fence alone, and of the record of
/// work that is done, the store finds out: here as there.
const UNPACK: &str = "
local answer = run()
local head, quoted = answer, nil
if type(answer) == 'number' then return { 0, answer, 1, 0 } end
if type(answer) == 'table' then head, quoted = answer[1], answer[2] end
if string.byte(head) ~= 249 then
  local how, first, second, third = struct.unpack('<Bddd', head)
  return { how, first, second, third, quoted }
end
local _, _, _, _, _, fence, since, _, _, _, about, owner = struct.unpack('<BBBBI4dddddBBB', head)
local asked = string.sub(ARGV[1], 36, 35 + string.byte(ARGV[1], 33))
if string.sub(head, 52, 51 + about) ~= asked then return { 4, 0, 0, 0 } end
return { 3, math.floor(math.max(told - since, 0) / 1000), fence, 0, string.sub(head, 52 + about + owner) }
";

macro_rules! script {
    ($($file:literal),+) => {
        concat!(
            "local function run()\n",
            $(include_str!(concat!("../../../resilience-redis/src/idempotency/", $file)), "\n",)+
            "end\n"
        )
    };
}

macro_rules! step {
    ($file:literal) => {
        script!(
            "read_head.lua",
            "time.lua",
            "common.lua",
            "holder.lua",
            $file,
            "save.lua"
        )
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
const SET_BACK: &str = script!("read_head.lua", "time.lua", "common.lua", "set_back.lua");
const EXTEND: &str = step!("extend.lua");
const CHECKPOINT: &str = step!("checkpoint.lua");
const COMPLETE: &str = script!(
    "read_head.lua",
    "complete_fast.lua",
    "common.lua",
    "holder.lua",
    "complete.lua"
);
const RELEASE: &str = step!("release.lua");
const RESOLVE: &str = script!(
    "read_head.lua",
    "time.lua",
    "common.lua",
    "clamp.lua",
    "resolve.lua",
    "save.lua"
);
const GET: &str = script!("read_head.lua", "time.lua", "common.lua", "get.lua");

const KEY: &str = "{t}:record";
const OLDER: &str = "{t}:older";
const SECOND: u64 = 1_000_000;

/// The same key on both sides.
struct Both {
    redis: RedisConnection,
    record: Record,
    /// A state that may come back, as with a replica that lagged.
    older: Record,
    now: u64,
}

impl Both {
    fn run(&self, script: &str, args: &[String]) -> String {
        let end = if script == CLAIM {
            UNPACK
        } else {
            "return run()"
        };
        let source = format!("{TOLD}{PACK}{script}{end}");
        let now = self.now.to_string();
        let mut words = vec!["EVAL", &source, "1", KEY];
        words.extend(args.iter().map(String::as_str));
        words.push(&now);
        self.redis.ask(&words).expect("an answer")
    }

    fn holder(&self, script: &str, holder: &Holder, number: u64, bytes: &Bytes) -> String {
        let (fence, attempt) = (holder.fence, holder.attempt);
        let (previous, retention) = (previous(holder.previous), holder.retention_ms);
        let (about, owner) = (text(&holder.fingerprint), &holder.owner);
        let sizes = format!("{},{}", about.len(), owner.len());
        let (phase, since, ttl) = match script {
            COMPLETE => (2, self.now, number),
            _ => (1, 0, 0),
        };
        let head = format!(
            "249,{phase},{previous},0,{attempt},{fence},{since},0,{ttl},{retention},{sizes},0"
        );
        let args = [
            format!("<BBBBI4dddddBBB {head} {about}{owner}{}", text(bytes)),
            number.to_string(),
        ];
        self.run(script, &args)
    }

    fn claim(&mut self, claim: &Claim) -> Option<Grant> {
        let takeover = match claim.takeover {
            Takeover::Never => 0,
            Takeover::Any => 2,
            _ => 1,
        };
        let manner = takeover + 4 * (self.now % 2);
        let (about, retention) = (text(&claim.fingerprint), claim.retention_ms);
        let (lease, owner) = (claim.lease_ms, &claim.owner);
        let sizes = format!("{},{}", about.len(), owner.len());
        let asked = format!("<ddddBBB 0,{manner},{lease},{retention},{sizes},0 {about}{owner}");
        let told = self.run(CLAIM, &[asked]);
        if told.starts_with("3\n") {
            // The store does it when the outcome seems to be from the future.
            let _ = self.run(SET_BACK, &[]);
        }
        let claimed = self.record.claim(claim, self.now);
        assert_eq!(told, claim_words(&claimed), "{claim:?} at {}", self.now);
        match claimed {
            Claimed::New(grant) | Claimed::Mine(grant) => Some(grant),
            _ => None,
        }
    }

    fn step(&mut self, rng: &mut fastrand::Rng, holder: &Holder) -> WriteOutcome {
        let now = self.now;
        let (lease, ttl) = (lease(rng), retention(rng));
        let mark = Bytes::from(format!("mark {}", rng.u8(..)));
        let none = Bytes::new();
        let (told, kept) = match rng.u8(0..8) {
            0 | 1 => (
                self.holder(EXTEND, holder, lease, &none),
                self.record.extend(holder, lease, now),
            ),
            2 | 3 => (
                self.holder(CHECKPOINT, holder, lease, &mark),
                self.record.checkpoint(holder, &mark, lease, now),
            ),
            4 => {
                let completion = Completion {
                    outcome: mark.clone(),
                    ttl_ms: ttl,
                };
                (
                    self.holder(COMPLETE, holder, ttl, &mark),
                    self.record.complete(holder, &completion, now),
                )
            }
            5 | 6 => {
                let mut holder = holder.clone();
                if rng.u8(0..4) == 0 {
                    // It has found out what became of the attempt before.
                    holder.previous = Previous::Released;
                }
                (
                    self.holder(RELEASE, &holder, 1, &none),
                    self.record.release(&holder, now),
                )
            }
            _ => (
                self.holder(RELEASE, holder, 4, &none),
                self.record.unknown(holder, now),
            ),
        };
        assert_eq!(told, kept_word(kept), "{holder:?} at {now}");
        kept
    }

    fn resolve(&mut self, rng: &mut fastrand::Rng, fence: u64) {
        let (ttl, outcome) = (retention(rng), Bytes::from_static(b"found out"));
        let (done, resolution) = if rng.bool() {
            let (outcome, ttl_ms) = (outcome.clone(), ttl);
            (1, StoreResolution::Done(Completion { outcome, ttl_ms }))
        } else {
            (0, StoreResolution::Release)
        };
        let args = [
            format!("<dd {fence},{done} "),
            ttl.to_string(),
            text(&outcome),
        ];
        let told = self.run(RESOLVE, &args);
        let kept = self.record.resolve(fence, &resolution, self.now);
        assert_eq!(told, kept_word(kept), "{fence}, {resolution:?}");
    }

    /// What is lost comes back in an older state, or not at all.
    fn lose(&mut self, rng: &mut fastrand::Rng) {
        match rng.u8(0..3) {
            0 => {
                self.delete();
                self.record = Record::default();
            }
            1 => {
                self.copy([KEY, OLDER]);
                self.older = self.record.clone();
            }
            _ => {
                self.copy([OLDER, KEY]);
                self.record = self.older.clone();
            }
        }
        // A look removes what is over from the server, but not from the record, where it would come back with a clock that
        // steps back.
        if self.record.is_gone(self.now) {
            self.delete();
            self.record = Record::default();
        }
    }

    fn delete(&self) {
        let words = ["DEL", KEY, &over(KEY)];
        let _ = self.redis.ask(&words).expect("an answer");
    }

    /// With the moment at which it is over.
    fn copy(&self, names: [&str; 2]) {
        for [from, to] in [names.map(str::to_owned), names.map(over)] {
            let words = ["COPY", &from, &to, "REPLACE"];
            if self.redis.ask(&words).expect("an answer") == "0" {
                let _ = self.redis.ask(&["DEL", &to]).expect("an answer");
            }
        }
    }

    fn compare(&self) {
        let told = self.run(GET, &[]);
        let view = self.record.view(self.now);
        assert_eq!(told, view.map(view_words).unwrap_or_default());
    }

    fn pass(&mut self, rng: &mut fastrand::Rng) {
        self.now = match rng.u8(0..20) {
            0..5 => self.now,
            5..11 => self.now + rng.u64(0..50_000),
            11..16 => self.now + rng.u64(0..20 * SECOND),
            16..18 => self.now + rng.u64(0..400 * SECOND),
            18 => self.now - rng.u64(0..30 * SECOND),
            _ => self.now + rng.u64(0..5),
        };
    }
}

/// 20,000 steps a run, from a new seed each time, by a handful of owners of whom most are zombies most of the time.
#[test]
fn every_script_answers_as_the_record_does() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let server = RedisServer::start();
    let mut both = Both {
        redis: server.open().expect("it listens"),
        record: Record::default(),
        older: Record::default(),
        now: 0,
    };
    let (mut granted, mut kept, mut restored, mut lost) = (0, 0, 0, 0);
    for _ in 0..200 {
        assert_eq!(both.redis.ask(&["FLUSHALL"]).expect("an answer"), "OK");
        (both.record, both.older) = (Record::default(), Record::default());
        both.now = rng.u64(1_600_000_000 * SECOND..2_000_000_000 * SECOND);
        let mut holders: Vec<Holder> = Vec::new();
        for _ in 0..100 {
            both.pass(&mut rng);
            match rng.u8(0..20) {
                0..7 => {
                    let claim = claim(&mut rng);
                    if let Some(grant) = both.claim(&claim) {
                        granted += 1;
                        holders.push(Holder::new(&claim, &grant));
                    }
                }
                7..17 => {
                    if let Some(holder) = pick(&mut rng, &holders) {
                        match both.step(&mut rng, &holder) {
                            WriteOutcome::Kept => kept += 1,
                            WriteOutcome::Restored => restored += 1,
                            _ => lost += 1,
                        }
                    }
                }
                17..19 => {
                    if let Some(holder) = pick(&mut rng, &holders) {
                        both.resolve(&mut rng, holder.fence);
                    }
                }
                _ => both.lose(&mut rng),
            }
            both.compare();
        }
    }
    assert!(
        granted > 1_000 && kept > 1_000 && restored > 100 && lost > 1_000,
        "{granted} granted, {kept} kept, {restored} restored, {lost} lost"
    );
}

fn over(key: &str) -> String {
    format!("{key}:over")
}

/// The last holder, one of those before, or one that never was.
fn pick(rng: &mut fastrand::Rng, holders: &[Holder]) -> Option<Holder> {
    let last = holders.last()?;
    Some(match rng.u8(0..10) {
        0..6 => last.clone(),
        6..9 => holders[rng.usize(0..holders.len())].clone(),
        _ => Holder {
            owner: "nobody".into(),
            ..last.clone()
        },
    })
}

fn claim(rng: &mut fastrand::Rng) -> Claim {
    let lease_ms = lease(rng);
    Claim {
        owner: format!("owner {}", rng.u8(0..4)).into(),
        fingerprint: Bytes::from(["work", "work", "work", "other", ""][rng.usize(0..5)]),
        lease_ms,
        retention_ms: retention(rng).max(lease_ms),
        takeover: [Takeover::Never, Takeover::Ended, Takeover::Any][rng.usize(0..3)],
    }
}

fn lease(rng: &mut fastrand::Rng) -> u64 {
    [1, 20, 5_000, 30_000, 1_000_000_000_000][rng.usize(0..5)]
}

fn retention(rng: &mut fastrand::Rng) -> u64 {
    [1, 1_000, 60_000, 86_400_000, 1_000_000_000_000][rng.usize(0..5)]
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

const fn previous(previous: Previous) -> u64 {
    match previous {
        Previous::Released => 1,
        Previous::Ended => 2,
        Previous::Unknown => 3,
        _ => 0,
    }
}

fn kept_word(kept: WriteOutcome) -> &'static str {
    match kept {
        WriteOutcome::Kept => "kept",
        WriteOutcome::Restored => "restored",
        WriteOutcome::Lost(Loss::Taken) => "taken",
        WriteOutcome::Lost(Loss::Over) => "over",
        WriteOutcome::Lost(Loss::Gone) => "gone",
        other => panic!("no word for {other:?}"),
    }
}

/// As [`RedisServer::try_words`] shows a list: an item a line.
fn lines(numbers: &[u64], quoted: Option<&Bytes>) -> String {
    let numbers = numbers.iter().map(ToString::to_string);
    numbers
        .chain(quoted.map(text))
        .collect::<Vec<_>>()
        .join("\n")
}

fn claim_words(claimed: &Claimed) -> String {
    let granted = |how, grant: &Grant| {
        let numbers = [
            how,
            grant.fence,
            grant.attempt.into(),
            previous(grant.previous),
        ];
        lines(&numbers, grant.checkpoint.as_ref())
    };
    match claimed {
        Claimed::New(grant) => granted(0, grant),
        Claimed::Mine(grant) => granted(1, grant),
        Claimed::Busy { remaining_ms } => lines(&[2, *remaining_ms, 0, 0], None),
        Claimed::Done {
            outcome,
            age_ms,
            fence,
        } => lines(&[3, *age_ms, *fence, 0], Some(outcome)),
        Claimed::Mismatch => lines(&[4, 0, 0, 0], None),
        Claimed::Unknown {
            fence,
            attempt,
            age_ms,
        } => lines(&[5, *fence, (*attempt).into(), *age_ms], None),
        other => panic!("no words for {other:?}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map`")]
fn view_words(view: RecordView) -> String {
    let phase = match view.phase {
        Phase::Running => 1,
        Phase::Done => 2,
        Phase::Unknown => 3,
        _ => 0,
    };
    let numbers = [
        phase,
        view.fence,
        view.attempt.into(),
        view.age_ms,
        view.remaining_ms,
        view.expires_ms,
        view.outcome_bytes,
        view.checkpoint_bytes,
    ];
    lines(&numbers, None)
}
