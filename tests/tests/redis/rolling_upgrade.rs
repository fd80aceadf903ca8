//! Instances of this version and of the commit before it on one Redis, as during a rolling upgrade.
//!
//! `before/` has the scripts of that commit, which wrote records and messages without a format. What the old instances sent is
//! put together here.

use std::time::Duration;

use bytes::Bytes;
use resilience_core::{
    breaker::fleet::{BreakerStore, Change, FleetState, LeaseAnswer, Report},
    bulkhead::fleet::{AcquireRequest, Admission, BulkheadStore, Heartbeat, Holding, Release},
    idempotency::{
        IdempotencyStore,
        record::{Claim, Claimed, Completion, Holder, Takeover, WriteOutcome},
    },
    limit::{
        Quota,
        regions::{RegionStore, Swap},
        store::{Demand, LimitStore},
    },
};
use resilience_tests::{
    redis::RedisServer,
    redis_clock::Clock,
    redis_scene::{SOON, connect},
    until::eventually,
};

const LONG_MS: u64 = 60_000;

macro_rules! before {
    ($($file:literal),+) => { concat!($(
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redis/before/", $file)),
        "\n",
    )+) };
}

mod console;

/// Runs a script of the commit before. An item of its answer a line.
fn run(server: &RedisServer, script: &str, keys: &[String], args: &[&str]) -> Vec<String> {
    let count = keys.len().to_string();
    let mut words = vec!["EVAL", script, &count];
    words.extend(keys.iter().map(String::as_str));
    words.extend(args);
    let answer = server.try_words(&words).expect("an answer");
    assert!(!answer.starts_with("-ERR"), "{answer}");
    answer.lines().map(str::to_owned).collect()
}

fn keys<const N: usize>(tag: &str, parts: [&str; N]) -> Vec<String> {
    parts.iter().map(|part| format!("{tag}:{part}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn breakers_of_both_versions_share_one_record() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.breakers();
    let keys = keys(
        "{resilience:breaker:n}",
        ["state", "window", "live", "failing", "sequence", "leases"],
    );
    let channel = "{resilience:breaker:n}:verdict";
    let old =
        |script: &str, args: &[&str]| run(&server, script, &keys, &[&[channel], args].concat());
    let report = Report {
        instance: "new".into(),
        voter: "new".into(),
        sequence: 1,
        epoch: 0,
        counts: Default::default(),
        failing: true,
        bucket_ms: 1_000,
        live_ms: LONG_MS,
        state: None,
    };
    store.report("n", &report).await.expect("ok");
    // instance, sequence, epoch, success, failure, slow, failing, bucket_ms, live_ms, voter
    let seen = old(
        before!("breaker/common.lua", "breaker/report.lua"),
        &["old", "1", "0", "3", "4", "0", "1", "1000", "60000", "old"],
    );
    assert_eq!(seen[10..12], ["2", "2"], "live and failing: {seen:?}");
    let seen = store
        .report(
            "n",
            &Report {
                sequence: 2,
                ..report
            },
        )
        .await
        .expect("ok");
    assert_eq!((seen.live, seen.failing, seen.window.total()), (2, 2, 7));

    let opened = Change {
        expected: 0,
        to: FleetState::Open,
        lasting_ms: LONG_MS,
        trips: 1,
        by: "new".into(),
        cause: String::new(),
    };
    let (_, view) = store.change("n", &opened).await.expect("ok");
    let seen = old(before!("breaker/common.lua", "breaker/view.lua"), &[]);
    assert_eq!(seen[1..3], [view.epoch.to_string(), "open".to_owned()]);
    // expected, state, stage, lasting_ms, trips, by, cause
    let epoch = view.epoch.to_string();
    let args = [&*epoch, "half_open", "0", "0", "1", "old", "probes"];
    let seen = old(before!("breaker/common.lua", "breaker/change.lua"), &args);
    assert_eq!(seen[0], "1");
    let (answer, _) = store
        .lease("n", &"new".into(), 2, LONG_MS)
        .await
        .expect("ok");
    let LeaseAnswer::Granted { epoch } = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(epoch.to_string(), seen[1]);
    let lease = before!("breaker/common.lua", "breaker/lease.lua");
    assert_eq!(old(lease, &["old", "2", "60000"])[0], "1");
    assert_eq!(old(lease, &["third", "2", "60000"])[0], "0");
    let settle = before!("breaker/common.lua", "breaker/settle.lua");
    assert_eq!(old(settle, &["new", &epoch.to_string(), "success"])[0], "1");
    let (done, view) = store
        .settle("n", "old", epoch, Some(true))
        .await
        .expect("ok");
    assert!(done && view.probes.success == 2);
    // A message of the old instance. A subscription takes a moment, so it is sent again.
    let mut pushes = store.subscribe("n");
    eventually("the new instance is told", SOON, || async {
        let epoch = store.view("n").await.expect("ok").epoch.to_string();
        let args = [&*epoch, "closed", "0", "0", "0", "the old", "well"];
        let changed = old(before!("breaker/common.lua", "breaker/change.lua"), &args);
        assert_eq!(changed[0], "1");
        let mut pushes = store.subscribe("n");
        let told = pushes.wait_for(|view| view.by == "the old");
        tokio::time::timeout(Duration::from_millis(100), told)
            .await
            .is_ok()
    })
    .await;
    let told = pushes.wait_for(|view| view.state == FleetState::Closed);
    tokio::time::timeout(SOON, told).await.expect("the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulkheads_of_both_versions_share_one_record() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.bulkheads();
    let keys = keys(
        "{resilience:bulkhead:n}",
        ["state", "leases", "held", "queue", "tickets", "live"],
    );
    let old = |script: &str, args: &[&str]| run(&server, script, &keys, &[&["up"], args].concat());
    let acquire = before!(
        "bulkhead/clock.lua",
        "bulkhead/common.lua",
        "bulkhead/acquire.lua"
    );
    let renew = before!(
        "bulkhead/clock.lua",
        "bulkhead/common.lua",
        "bulkhead/renew.lua"
    );
    let release = before!(
        "bulkhead/clock.lua",
        "bulkhead/common.lua",
        "bulkhead/release.lua"
    );
    let place = |lease: &str| AcquireRequest {
        lease: lease.into(),
        cost: 1,
        limit: 2,
        lease_ms: LONG_MS,
        ticket_ms: 0,
        releases: Vec::new(),
    };
    let Ok(Admission::Granted { fence: first }) = store.acquire("n", &place("new")).await else {
        panic!("there is room");
    };
    // lease, cost, limit, lease_ms, ticket_ms
    let taken = old(acquire, &["old", "1", "2", "60000", "0"]);
    let second: u64 = taken[1].parse().expect("a fence");
    assert!(taken[0] == "1" && second > first, "{taken:?}");
    assert_eq!(old(acquire, &["third", "1", "2", "60000", "0"])[0], "0");
    let full = store.acquire("n", &place("third")).await;
    assert!(matches!(full, Ok(Admission::Full { .. })));
    // Each renews what the other holds.
    let fence = first.to_string();
    let seen = old(renew, &["old", "60000", "60000", "new", "1", &fence]);
    assert_eq!(seen.last().map(String::as_str), Some("1"), "{seen:?}");
    let beat = Heartbeat {
        instance: "new".into(),
        live_ms: LONG_MS,
        lease_ms: LONG_MS,
        holdings: vec![Holding {
            lease: "old".into(),
            cost: 1,
            fence: second,
        }],
    };
    let (held, view) = store.renew("n", &beat).await.expect("ok");
    assert_eq!((held, view.live, view.in_flight), (vec![true], 2, 2));
    assert_eq!(old(release, &["new", &fence]), ["1"]);
    let releases = [Release {
        lease: "old".into(),
        fence: Some(second),
    }];
    assert_eq!(store.release("n", &releases).await, Ok(vec![true]));
    assert_eq!(store.view("n").await.expect("ok").in_flight, 0);
}

/// Numbers come as text, behind the form to pack them in, and then what follows them as it is.
const PACK: &str = "
local form, numbers, behind = string.match(ARGV[1], '^(%S+) (%S+) (.*)$')
local all = {}
for number in string.gmatch(numbers, '[^,]+') do all[#all + 1] = tonumber(number) end
ARGV[1] = struct.pack(form, unpack(all)) .. behind
";

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_both_versions_share_one_bucket_also_after_the_clock_was_set_back() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let store = connect(&server.url()).await.limits();
    let quota = Quota::per(10, Duration::from_secs(36_000)).expect("a quota");
    let key = [store.key("n", "s")];
    let script = format!(
        "local function decide(KEYS, ARGV)\n{}end\n{PACK}
        local answer = decide(KEYS, ARGV)
        local outcome, _, _, left = struct.unpack('<bI2dd', answer)
        return {{ outcome, left }}",
        before!(
            "limit/token_bucket.lua",
            "limit/bucket.lua",
            "limit/decide.lua"
        )
    );
    // The mark of `l`, capacity, rate, unit, cost.
    let (rate, unit) = (quota.rate(), quota.unit());
    let mark = (0x811c_9dc5_u32 ^ u32::from(b'l')).wrapping_mul(0x0100_0193);
    let ask = format!("<I4dddd {mark},10,{rate},{unit},1 ");
    let old = || run(&server, &script, &key, &[&ask]);
    let new = || async {
        let demands = [Demand {
            limit: "l",
            quota,
            cost: 1,
        }];
        store.decide("n", "s", &demands).await.expect("ok").limits[0].remaining
    };
    assert_eq!(new().await, 9);
    assert_eq!(old(), ["1", "8"]);
    assert_eq!(new().await, 7);
    clock.set_back(Duration::from_secs(60));
    assert_eq!(new().await, 6);
    assert_eq!(server.command(&format!("STRLEN {}", key[0])), "56");
    assert_eq!(old(), ["1", "5"]);
    assert_eq!(new().await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_both_versions_are_claimed_once_and_replayed_by_both() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.idempotency();
    let claim = |owner: &str| Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms: LONG_MS,
        retention_ms: LONG_MS,
        takeover: Takeover::Ended,
    };
    let record = |key: &str| vec![format!("{{resilience:idempotency:n:{key}}}:record")];
    let script = format!(
        "local function claim(KEYS, ARGV)\n{}end\n{PACK}
        local answer = claim(KEYS, ARGV)
        if type(answer) == 'number' then return {{ 'new', answer }} end
        if string.byte(answer) ~= 249 then return {{ 'how', string.byte(answer) }} end
        return {{ 'done', string.sub(answer, 52 + string.byte(answer, 49) + string.byte(answer, 50)) }}",
        before!(
            "idempotency/read_full.lua",
            "idempotency/time.lua",
            "idempotency/common.lua",
            "idempotency/claim.lua"
        )
    );
    let old_claim = |key: &str, owner: &str| {
        let sizes = format!("4,{}", owner.len());
        let asked = format!("<ddddBBB 0,1,{LONG_MS},{LONG_MS},{sizes},0 work{owner}");
        run(&server, &script, &record(key), &[&asked])
    };
    // The new one works, the old one is told.
    let Ok(Claimed::New(grant)) = store.claim("n", "a", &claim("new")).await else {
        panic!("it is new");
    };
    let holder = Holder::new(&claim("new"), &grant);
    assert_eq!(old_claim("a", "old"), ["how", "2"]);
    assert_eq!(
        store.extend("n", "a", &holder, LONG_MS).await,
        Ok(WriteOutcome::Kept)
    );
    let completion = Completion {
        outcome: Bytes::from_static(b"of the new"),
        ttl_ms: LONG_MS,
    };
    let kept = store.complete("n", "a", &holder, &completion).await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
    assert_eq!(old_claim("a", "old"), ["done", "of the new"]);
    // The old one works, the new one is told.
    let claimed = old_claim("b", "old");
    assert_eq!(claimed[0], "new");
    let busy = store.claim("n", "b", &claim("new")).await;
    assert!(matches!(busy, Ok(Claimed::Busy { remaining_ms }) if remaining_ms <= LONG_MS));
    let complete = format!(
        "{PACK}{}",
        before!(
            "idempotency/read_head.lua",
            "idempotency/complete_fast.lua",
            "idempotency/common.lua",
            "idempotency/holder.lua",
            "idempotency/complete.lua"
        )
    );
    let (fence, since) = (&claimed[1], &claimed[1]);
    let head = format!("249,2,0,0,1,{fence},{since},0,0,{LONG_MS},4,3,0");
    let head = format!("<BBBBI4dddddBBB {head} workoldof the old");
    let kept = run(&server, &complete, &record("b"), &[&head, "60000"]);
    assert_eq!(kept, ["kept"]);
    let done = store.claim("n", "b", &claim("new")).await;
    assert!(matches!(done, Ok(Claimed::Done { outcome, .. }) if outcome == "of the old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_and_regions_of_both_versions_share_one_record() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let (limits, regions) = (redis.limits(), redis.regions());
    let minute = Duration::from_secs(60);
    let live = ["{resilience:limit:n}:live".to_owned()];
    let beat = before!("heartbeat.lua");
    assert_eq!(limits.heartbeat("n", "new", minute).await, Ok(1));
    assert_eq!(run(&server, beat, &live, &["old", "60000"]), ["2"]);
    assert_eq!(limits.heartbeat("n", "new", minute).await, Ok(2));

    let keys = keys("{resilience:region:n}", ["ledger", "demand"]);
    let old = |script: &str, args: &[&str]| run(&server, script, &keys, args);
    let view = regions.report("n", "new", 3, LONG_MS).await.expect("ok");
    let swap = Swap::new(0, view.now + 10_000_000, view.ledger);
    assert_eq!(regions.swap("n", &swap, LONG_MS).await, Ok(true));
    let view = regions.read("n").await.expect("ok");
    let seen = old(before!("regions/read.lua"), &["old", "4", "60000"]);
    assert_eq!(seen[1], view.version.to_string());
    assert_eq!(seen[3], "7");
    let (version, until) = (&seen[1], (view.now + 10_000_000).to_string());
    let swapped = old(
        before!("regions/swap.lua"),
        &[version, &until, &seen[2], "60000"],
    );
    assert_eq!(swapped, ["1"]);
    let later = regions.read("n").await.expect("ok");
    assert!(later.version > view.version && later.demand == 7);
}
