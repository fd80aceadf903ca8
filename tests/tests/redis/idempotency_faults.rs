//! Records in Redis in every kind of trouble: nothing is granted twice under one fence, nothing that was counted is lost,
//! and a caller that cannot know it receives an unknown outcome.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use resilience_core::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Completion, Holder, Loss, Takeover, WriteOutcome},
};
use resilience_redis::{Redis, RedisIdempotency};
use resilience_tests::{
    proxy::{Proxy, Weather},
    redis::{Flavour, RedisServer, replicated},
    redis_cluster::RedisCluster,
    redis_scene::{BUDGET, SOON},
    until::eventually,
};
use tokio::time::Instant;

const NAME: &str = "faults";
const HOUR: u64 = 3_600_000;

async fn store(url: &str, budget: Duration) -> RedisIdempotency {
    let redis = Redis::builder(url).budget(budget).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis.idempotency()
}

fn claim(owner: &str) -> Claim {
    Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms: HOUR,
        retention_ms: HOUR,
        takeover: Takeover::Ended,
    }
}

fn done(outcome: &'static str) -> Completion {
    Completion {
        outcome: Bytes::from_static(outcome.as_bytes()),
        ttl_ms: HOUR,
    }
}

async fn hold(store: &RedisIdempotency, key: &str, owner: &str) -> Holder {
    let claim = claim(owner);
    match store.claim(NAME, key, &claim).await {
        Ok(Claimed::New(grant)) => Holder::new(&claim, &grant),
        other => panic!("{other:?}"),
    }
}

async fn replays(store: &RedisIdempotency, key: &str, outcome: &str) {
    match store.claim(NAME, key, &claim("another")).await {
        Ok(Claimed::Done { outcome: is, .. }) => assert_eq!(is, outcome),
        other => panic!("{other:?}"),
    }
}

fn record(key: &str) -> String {
    format!("{{resilience:idempotency:{NAME}:{key}}}:record")
}

/// Two commands for a first call, one for being told of its outcome or of a conflict.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_call_is_two_round_trips_a_replay_one_and_a_conflict_one() {
    let server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    // The scripts are known from here on.
    let holder = hold(&store, "warm", "a").await;
    let _ = store.complete(NAME, "warm", &holder, &done("7")).await;
    let sent = || {
        let stats = server.command("INFO commandstats");
        let calls = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(name));
            let calls = line.and_then(|line| line.split(',').next()?.parse::<u64>().ok());
            calls.unwrap_or(0)
        };
        calls("cmdstat_evalsha:calls=") + calls("cmdstat_eval:calls=")
    };
    let before = sent();
    let holder = hold(&store, "key", "a").await;
    let busy = store.claim(NAME, "key", &claim("b")).await;
    assert!(matches!(busy, Ok(Claimed::Busy { .. })), "{busy:?}");
    assert_eq!(sent() - before, 2, "a claim, and a conflict");
    let _ = store.complete(NAME, "key", &holder, &done("7")).await;
    assert_eq!(sent() - before, 3);
    replays(&store, "key", "7").await;
    assert_eq!(sent() - before, 4);
}

/// The server has done it; the client does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_answer_is_lost_can_be_repeated() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.addr().parse().expect("an address")).await;
    let mut proxy = proxy.expect("a port");
    let store = store(&format!("redis://{}", proxy.address()), BUDGET).await;
    let late = Weather::Latency(BUDGET + Duration::from_millis(50));
    // A server that does not know the scripts would have done nothing.
    let holder = hold(&store, "warm", "a").await;
    let _ = store.complete(NAME, "warm", &holder, &done("7")).await;

    proxy.set(late).await;
    let lost = store.claim(NAME, "lost", &claim("a")).await;
    assert!(lost.is_err_and(|failure| failure.ambiguous));
    let exists = || async { server.command(&format!("EXISTS {}", record("lost"))) == "1" };
    eventually("it was granted all the same", SOON, exists).await;
    proxy.set(Weather::Fine).await;
    let holder = std::sync::Mutex::new(None);
    eventually("it is found to be ours", SOON, || async {
        let mine = match store.claim(NAME, "lost", &claim("a")).await {
            Ok(Claimed::Mine(grant)) => Some(Holder::new(&claim("a"), &grant)),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        let found = mine.is_some();
        *holder.lock().expect("no holder panics") = mine;
        found
    })
    .await;
    let holder = holder.into_inner().expect("no holder panics");
    let holder = holder.expect("just found");

    proxy.set(late).await;
    let lost = store.complete(NAME, "lost", &holder, &done("7")).await;
    assert!(lost.is_err_and(|failure| failure.ambiguous));
    let ends = format!("GETRANGE {} -1 -1", record("lost"));
    let completed = || async { server.command(&ends) == "7" };
    eventually("it was completed all the same", SOON, completed).await;
    proxy.set(Weather::Fine).await;
    eventually("it is kept", SOON, || async {
        store.complete(NAME, "lost", &holder, &done("8")).await == Ok(WriteOutcome::Kept)
    })
    .await;
    replays(&store, "lost", "7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_is_told_by_the_holder_what_it_forgot() {
    let mut server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    let holder = hold(&store, "killed", "a").await;
    server.kill();
    let failure = store.complete(NAME, "killed", &holder, &done("7")).await;
    assert!(failure.is_err());
    server.restart();
    eventually("the outcome is kept", SOON, || async {
        store
            .complete(NAME, "killed", &holder, &done("7"))
            .await
            .is_ok()
    })
    .await;
    replays(&store, "killed", "7").await;
    let zombie = Holder {
        fence: holder.fence - 1,
        ..holder
    };
    let late = store.complete(NAME, "killed", &zombie, &done("8")).await;
    assert_eq!(late, Ok(WriteOutcome::Lost(Loss::Taken)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_a_budget_and_nothing_is_known() {
    let server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    let holder = hold(&store, "hung", "a").await;
    server.pause();
    let start = Instant::now();
    let failure = store.complete(NAME, "hung", &holder, &done("7")).await;
    assert!(failure.is_err_and(|failure| failure.ambiguous));
    assert!(start.elapsed() < BUDGET * 4, "{:?}", start.elapsed());
    server.unpause();
    eventually("the outcome is kept", SOON, || async {
        store.complete(NAME, "hung", &holder, &done("7")).await == Ok(WriteOutcome::Kept)
    })
    .await;
    replays(&store, "hung", "7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_record_is_an_error_and_is_left_as_it_is() {
    let server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    let holder = hold(&store, "real", "a").await;
    let (real, long, over) = (record("real"), "5".repeat(500), record("over"));
    let ended = hold(&store, "over", "a").await;
    let kept = store.complete(NAME, "over", &ended, &done("7")).await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
    let cut = "redis.call('SET', KEYS[1], redis.call('GETRANGE', KEYS[2], 0, 51))";
    let garbled = "redis.call('COPY', KEYS[2], KEYS[1]) redis.call('SETRANGE', KEYS[1], 1, 'x')";
    for (key, words) in [
        ("empty", &["SET", "{}", ""][..]),
        ("text", &["SET", "{}", "5"]),
        ("long", &["SET", "{}", &long]),
        ("list", &["RPUSH", "{}", "5"]),
        ("hash", &["HSET", "{}", "phase", "1"]),
        ("cut", &["EVAL", cut, "2", "{}", &real]),
        ("cut-over", &["EVAL", cut, "2", "{}", &over]),
        ("garbled", &["EVAL", garbled, "2", "{}", &real]),
    ] {
        let named = record(key);
        let words: Vec<&str> = words
            .iter()
            .map(|&word| if word == "{}" { named.as_str() } else { word })
            .collect();
        let _ = server.try_words(&words).expect("an answer");
        let before = server.command(&format!("DUMP {}", record(key)));
        let claimed = store.claim(NAME, key, &claim("a")).await;
        assert!(claimed.is_err_and(|failure| !failure.ambiguous), "{key}");
        let completed = store.complete(NAME, key, &holder, &done("7")).await;
        assert!(completed.is_err(), "{key}");
        assert!(store.get(NAME, key).await.is_err(), "{key}");
        assert_eq!(server.command(&format!("DUMP {}", record(key))), before);
    }
}

/// However large a checkpoint is, a renewal reads and writes no more than the holder of the record, and neither does
/// its end without an outcome; what was left is still there.
#[tokio::test(flavor = "multi_thread")]
async fn a_sign_of_life_costs_the_same_whatever_the_checkpoint() {
    let server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    let holder = hold(&store, "large", "a").await;
    let checkpoint = Bytes::from(vec![b'c'; 1 << 20]);
    let kept = Ok(WriteOutcome::Kept);
    let left = store.checkpoint(NAME, "large", &holder, &checkpoint, HOUR);
    assert_eq!(left.await, kept);
    assert_eq!(server.command("CONFIG RESETSTAT"), "OK");
    assert_eq!(store.extend(NAME, "large", &holder, HOUR).await, kept);
    assert_eq!(store.release(NAME, "large", &holder).await, kept);
    let stats = server.command("INFO commandstats");
    let whole = |line: &&str| line.starts_with("cmdstat_get:") || line.starts_with("cmdstat_set:");
    assert_eq!(stats.lines().find(whole), None);
    match store.claim(NAME, "large", &claim("b")).await {
        Ok(Claimed::New(grant)) => assert_eq!(grant.checkpoint, Some(checkpoint)),
        other => panic!("{other:?}"),
    }
}

/// What was granted can be ended, or callers would be refused for as long as their leases last, and then do it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_refuses_new_keys_and_ends_what_was_granted() {
    for flavour in Flavour::installed() {
        let server = RedisServer::start_flavour(flavour, &["--maxmemory-policy", "noeviction"]);
        let store = store(&server.url(), BUDGET).await;
        let first = hold(&store, "first", "a").await;
        let second = hold(&store, "second", "a").await;
        let third = hold(&store, "third", "a").await;
        assert_eq!(server.command("CONFIG SET maxmemory 1"), "OK");
        let refused = store.claim(NAME, "new", &claim("a")).await;
        assert!(refused.is_err_and(|failure| !failure.ambiguous));
        assert_eq!(server.command(&format!("EXISTS {}", record("new"))), "0");
        let kept = Ok(WriteOutcome::Kept);
        assert_eq!(store.extend(NAME, "first", &first, HOUR).await, kept);
        let completed = store.complete(NAME, "first", &first, &done("7")).await;
        assert_eq!(completed, kept);
        assert_eq!(store.release(NAME, "second", &second).await, kept);
        assert_eq!(store.unknown(NAME, "third", &third).await, kept);
        replays(&store, "first", "7").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_writes_grants_nothing() {
    let server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    let holder = hold(&store, "before", "a").await;
    assert_eq!(server.command("CONFIG SET min-replicas-to-write 1"), "OK");
    let refused = store.claim(NAME, "during", &claim("a")).await;
    assert!(refused.is_err_and(|failure| !failure.ambiguous));
    assert!(
        store
            .complete(NAME, "before", &holder, &done("7"))
            .await
            .is_err()
    );
    assert_eq!(server.command("CONFIG SET min-replicas-to-write 0"), "OK");
    let completed = store.complete(NAME, "before", &holder, &done("7")).await;
    assert_eq!(completed, Ok(WriteOutcome::Kept));
    hold(&store, "during", "b").await;
}

/// Twenty owners on four keys, whose leases end, while the server forgets its scripts and all it knows.
#[tokio::test(flavor = "multi_thread")]
async fn no_fence_is_granted_twice_while_everything_is_forgotten() {
    let server = RedisServer::start();
    let store = store(&server.url(), Duration::from_secs(5)).await;
    let over = Arc::new(AtomicBool::new(false));
    let owners: Vec<_> = (0..20)
        .map(|owner| {
            let (store, over) = (store.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let (mut granted, mut completed) = (Vec::new(), Vec::new());
                for round in 0.. {
                    if over.load(Relaxed) {
                        break;
                    }
                    let key = format!("key {}", fastrand::u8(0..4));
                    let wanted = Claim {
                        lease_ms: fastrand::u64(1..5),
                        ..claim(&format!("owner {owner}.{round}"))
                    };
                    let claimed = store.claim(NAME, &key, &wanted).await;
                    let Claimed::New(grant) = claimed.expect("an answer") else {
                        continue;
                    };
                    granted.push((key.clone(), grant.fence));
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..6))).await;
                    let holder = Holder::new(&wanted, &grant);
                    let brief = Completion {
                        ttl_ms: 3,
                        ..done("7")
                    };
                    let kept = store.complete(NAME, &key, &holder, &brief).await;
                    if !matches!(kept.expect("an answer"), WriteOutcome::Lost(_)) {
                        completed.push((key, grant.fence));
                    }
                }
                (granted, completed)
            })
        })
        .collect();
    for round in 0..200 {
        let forget = if round % 10 == 0 {
            "FLUSHALL"
        } else {
            "SCRIPT FLUSH"
        };
        assert_eq!(server.command(forget), "OK");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    over.store(true, Relaxed);
    let (mut granted, mut completed) = (Vec::new(), Vec::new());
    for owner in owners {
        let (more_granted, more_completed) = owner.await.expect("no panic");
        granted.extend(more_granted);
        completed.extend(more_completed);
    }
    assert!(
        granted.len() > 100 && completed.len() > 50,
        "{} {}",
        granted.len(),
        completed.len()
    );
    for mut fences in [granted, completed] {
        let all = fences.len();
        let distinct: HashSet<_> = fences.drain(..).collect();
        assert_eq!(
            distinct.len(),
            all,
            "a fence was granted or completed twice"
        );
    }
}

/// One subscription for a record that callers wait for, however many, and none for the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_one_subscription_and_leaves_none_behind() {
    let server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    let channel = "{resilience:idempotency:faults:waited}:news";
    let listeners = || server.command(&format!("PUBSUB NUMSUB {channel}"));
    let published = || server.command("INFO commandstats").contains("publish");
    let unwaited = hold(&store, "unwaited", "a").await;
    let kept = store
        .complete(NAME, "unwaited", &unwaited, &done("7"))
        .await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
    let holder = hold(&store, "waited", "a").await;
    assert!(listeners().ends_with("\n0"), "{}", listeners());
    let mut first = store.subscribe(NAME, "waited");
    let mut second = store.subscribe(NAME, "waited");
    eventually("it is subscribed to", SOON, || async {
        listeners().ends_with("\n1")
    })
    .await;
    // That the subscription stands is news.
    tokio::time::timeout(SOON, first.next())
        .await
        .expect("told");
    // Not to those who came when it stood.
    let _ = tokio::time::timeout(Duration::ZERO, second.next()).await;
    // A listener asks once more and learns it.
    let busy = store.claim(NAME, "waited", &claim("b")).await;
    assert!(matches!(busy, Ok(Claimed::Busy { .. })), "{busy:?}");
    // Renewals are not.
    let _ = store.extend(NAME, "waited", &holder, HOUR).await;
    let quiet = tokio::time::timeout(Duration::from_millis(100), first.next()).await;
    assert!(quiet.is_err());
    assert!(!published(), "to no listener");
    let kept = store.complete(NAME, "waited", &holder, &done("7")).await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
    assert!(published());
    tokio::time::timeout(SOON, first.next())
        .await
        .expect("told");
    tokio::time::timeout(SOON, second.next())
        .await
        .expect("told");
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(listeners().ends_with("\n1"), "the other still waits");
    drop(second);
    eventually("no listener is left", SOON, || async {
        listeners().ends_with("\n0")
    })
    .await;
}

/// The worker and the waiting caller have read the server's clock by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_an_outcome_is_the_time_that_has_passed() {
    let server = RedisServer::start();
    let worker = store(&server.url(), BUDGET).await;
    let caller = store(&server.url(), BUDGET).await;
    let holder = hold(&worker, "aging", "a").await;
    let start = Instant::now();
    let kept = worker.complete(NAME, "aging", &holder, &done("7")).await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
    eventually("it is 300 ms old", SOON, || async {
        let claimed = caller.claim(NAME, "aging", &claim("b")).await;
        let Ok(Claimed::Done { age_ms, .. }) = claimed else {
            panic!("{claimed:?}");
        };
        let passed = start.elapsed().as_millis() as u64;
        // Answers take their time, on both sides.
        assert!(age_ms <= passed + 100, "{age_ms} ms after {passed}");
        age_ms >= 300
    })
    .await;
    assert!(start.elapsed() >= Duration::from_millis(200));
}

async fn durable(url: &str, within: Duration) -> RedisIdempotency {
    let durable = store(url, Duration::from_secs(5)).await.durable(1, within);
    let durable = durable.expect("good settings");
    durable.ready(SOON).await.expect("connects");
    durable
}

/// A replica that hangs lets nothing count; what counted is there when the master is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_counts_with_a_replica_outlives_the_master() {
    let (mut master, replica) = replicated();
    let within = Duration::from_millis(100);
    let durable = durable(&master.url(), within).await;
    let holder = hold(&durable, "counted", "a").await;

    replica.pause();
    let start = Instant::now();
    let uncounted = durable.claim(NAME, "uncounted", &claim("a")).await;
    let failure = uncounted.expect_err("no replica has it");
    assert!(failure.ambiguous, "{failure}");
    assert!(failure.to_string().contains("0 of 1 replicas"), "{failure}");
    assert!(start.elapsed() >= within);
    let uncounted = durable.complete(NAME, "counted", &holder, &done("7")).await;
    assert!(uncounted.is_err_and(|failure| failure.ambiguous));
    // Nor does it when it is repeated: the outcome is there, but on the master alone.
    let uncounted = durable.complete(NAME, "counted", &holder, &done("7")).await;
    assert!(uncounted.is_err_and(|failure| failure.ambiguous));
    // Claims and refusals need no replica.
    let busy = durable.claim(NAME, "uncounted", &claim("b")).await;
    assert!(matches!(busy, Ok(Claimed::Busy { .. })), "{busy:?}");

    replica.unpause();
    eventually("it counts", SOON, || async {
        durable.complete(NAME, "counted", &holder, &done("8")).await == Ok(WriteOutcome::Kept)
    })
    .await;
    let mine = durable.claim(NAME, "uncounted", &claim("a")).await;
    assert!(matches!(mine, Ok(Claimed::Mine(_))), "{mine:?}");

    master.kill();
    assert_eq!(replica.command("REPLICAOF NO ONE"), "OK");
    let after = store(&replica.url(), BUDGET).await;
    replays(&after, "counted", "7").await;
    let busy = after.claim(NAME, "uncounted", &claim("b")).await;
    assert!(matches!(busy, Ok(Claimed::Busy { .. })), "{busy:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_each_shard_has_replicas_to_wait_for_and_slots_may_move() {
    let cluster = RedisCluster::start();
    let durable = durable(&cluster.url(), Duration::from_secs(2)).await;
    let mut holders = Vec::new();
    // Over all shards.
    for number in 0..12 {
        let key = format!("key-{number}");
        holders.push((hold(&durable, &key, "a").await, key));
    }
    let (moved, key) = &holders[0];
    let _ = cluster.move_slot(&record(key));
    eventually("it is found where it went", SOON, || async {
        let completed = durable.complete(NAME, key, moved, &done("7")).await;
        completed == Ok(WriteOutcome::Kept)
    })
    .await;
    for (holder, key) in &holders[1..] {
        let completed = durable.complete(NAME, key, holder, &done("7")).await;
        assert_eq!(completed, Ok(WriteOutcome::Kept));
    }
    for (_, key) in &holders {
        replays(&durable, key, "7").await;
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_by_name() {
    let server = RedisServer::start();
    let store = store(&server.url(), BUDGET).await;
    let second = Duration::from_millis(1);
    for (replicas, within, field) in [
        (0, second, "replicas"),
        (1, Duration::ZERO, "within"),
        (1, Duration::from_micros(999), "within"),
        (1, BUDGET, "within"),
    ] {
        let error = store.clone().durable(replicas, within).unwrap_err();
        assert_eq!(error.field(), field);
    }
}
