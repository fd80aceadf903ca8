//! What operators see while instances of both versions run, and the messages of both.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use resilience_core::{
    breaker::{
        State,
        fleet::{FleetOverride, LogAction, OverrideKind},
    },
    fleet::Pushed,
};

use super::*;

const STATE: &str = "{resilience:breaker:n}:state";
const LIVE: &str = "{resilience:breaker:n}:live";
const LOCAL: &str = "{resilience:breaker:n}:local";

fn breaker_keys() -> Vec<String> {
    keys(
        "{resilience:breaker:n}",
        ["state", "window", "live", "failing", "sequence", "leases"],
    )
}

fn old_report(server: &RedisServer, instance: &str, failing: &str, voter: &str) {
    let args = [
        "channel", instance, "1", "0", "1", "0", "0", failing, "10", "60000", voter,
    ];
    let script = before!("breaker/common.lua", "breaker/report.lua");
    run(server, script, &breaker_keys(), &args);
}

fn report(instance: &str, sequence: u64, live_ms: u64) -> Report {
    Report {
        instance: instance.into(),
        voter: instance.into(),
        sequence,
        epoch: 0,
        counts: Default::default(),
        failing: false,
        bucket_ms: 10,
        live_ms,
        state: Some(State::RampingUp),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_the_version_before_are_named_and_do_not_tell_their_state() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.breakers();
    store
        .report("n", &report("new", 1, LONG_MS))
        .await
        .expect("ok");
    old_report(&server, "old-1", "1", "old-1");
    old_report(&server, "old-2-ff", "0", "old-2");
    let members = store.members("n").await.expect("ok");
    assert_eq!((members.live, members.failing), (3, 1));
    let told: Vec<_> = members
        .instances
        .iter()
        .map(|one| {
            (
                &*one.instance,
                one.state,
                one.failing,
                one.reported_ms.is_some(),
            )
        })
        .collect();
    let expected = [
        ("new", Some(State::RampingUp), Some(false), true),
        ("old-1", None, Some(true), false),
        // Another name may be its own.
        ("old-2-ff", None, None, false),
    ];
    assert_eq!(told, expected);
    // Each goes on reporting beside the other.
    old_report(&server, "old-1", "0", "old-1");
    store
        .report("n", &report("new", 2, LONG_MS))
        .await
        .expect("ok");
    let members = store.members("n").await.expect("ok");
    assert_eq!((members.live, members.failing), (3, 0));
    assert!(
        members
            .instances
            .iter()
            .all(|one| one.failing == Some(false))
    );
}

/// They do not know where the states are kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_version_before_leaves_behind_of_silent_instances_is_removed() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.breakers();
    store.report("n", &report("brief", 1, 1)).await.expect("ok");
    eventually("the old instance has forgotten it", SOON, || async {
        old_report(&server, "old", "0", "old");
        server.command(&format!("ZSCORE {LIVE} brief")).is_empty()
    })
    .await;
    assert_eq!(server.command(&format!("HEXISTS {LOCAL} brief")), "1");
    let ttl: i64 = server
        .command(&format!("PTTL {LOCAL}"))
        .parse()
        .expect("a number");
    assert!(ttl > 0, "{ttl}");
    let other = |sequence| report("other", sequence, LONG_MS);
    store.report("n", &other(1)).await.expect("ok");
    let named = store.members("n").await.expect("ok").instances;
    assert_eq!(named.len(), 2, "old and other: {named:?}");
    // There are no more of them than there are old instances, and none once these are gone.
    assert_eq!(server.command(&format!("ZREM {LIVE} old")), "1");
    store.report("n", &other(2)).await.expect("ok");
    assert_eq!(server.command(&format!("HKEYS {LOCAL}")), "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_version_before_are_not_in_the_log_and_do_not_spoil_it() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.breakers();
    let change = |expected, to| Change {
        expected,
        to,
        lasting_ms: 0,
        trips: 1,
        by: "new".into(),
        cause: "why".into(),
    };
    let (_, view) = store
        .change("n", &change(0, FleetState::Open))
        .await
        .expect("ok");
    let epoch = view.epoch.to_string();
    let args = [
        "channel",
        &epoch,
        "half_open",
        "0",
        "0",
        "1",
        "old",
        "probes",
    ];
    let script = before!("breaker/common.lua", "breaker/change.lua");
    let seen = run(&server, script, &breaker_keys(), &args);
    let epoch = seen[1].parse().expect("an epoch");
    assert!(
        store
            .change("n", &change(epoch, FleetState::Closed))
            .await
            .expect("ok")
            .0
    );
    let log = store.log("n", 10).await.expect("ok");
    let states: Vec<_> = log.iter().map(|entry| (entry.from, entry.to)).collect();
    let expected = [
        (FleetState::HalfOpen, FleetState::Closed),
        (FleetState::Closed, FleetState::Open),
    ];
    assert_eq!(states, expected);
    // An entry of a later format is left out.
    let log = "{resilience:breaker:n}:log";
    let later = ["XADD", log, "*", "format", "2", "what", "ever"];
    assert!(server.try_words(&later).expect("added").contains('-'));
    assert_eq!(store.log("n", 10).await.expect("ok").len(), 2);
}

/// The log is for people: nothing that it does may keep a command from taking effect.
#[tokio::test(flavor = "multi_thread")]
async fn commands_take_effect_where_the_log_cannot_be_written() {
    let server = RedisServer::start();
    let grant = "ACL SETUSER app on >right ~{resilience:* &{resilience:* +@all -xadd";
    assert_eq!(server.command(grant), "OK");
    let store = connect(&format!("redis://app:right@{}", server.addr()))
        .await
        .breakers();
    let drill = |kind| FleetOverride {
        kind,
        reason: "drill".into(),
        by: "ann".into(),
        expires_ms: None,
    };
    let set = store
        .set_override("n", Some(drill(OverrideKind::ForceOpen)), "ann")
        .await;
    assert!(set.expect("set").active_override.is_some());
    assert_eq!(store.log("n", 10).await.expect("ok"), []);
    // A key of another type in its place.
    assert_eq!(
        server.command("SET {resilience:breaker:n}:log foreign"),
        "OK"
    );
    let all = connect(&server.url()).await.breakers();
    let reset = all.reset("n", "ann", "why").await.expect("reset");
    assert_eq!(reset.active_override, None);
    assert!(all.log("n", 10).await.is_err());
    assert_eq!(server.command("GET {resilience:breaker:n}:log"), "foreign");
    assert_eq!(server.command("PTTL {resilience:breaker:n}:log"), "-1");
    assert_eq!(server.command("DEL {resilience:breaker:n}:log"), "1");
    all.set_override("n", Some(drill(OverrideKind::Disable)), "bo")
        .await
        .expect("set");
    let log = all.log("n", 10).await.expect("ok");
    assert_eq!(
        (log.len(), log[0].action),
        (1, LogAction::Overridden(OverrideKind::Disable))
    );
    let [log, state] = ["{resilience:breaker:n}:log", STATE].map(|key| {
        let ttl = server.command(&format!("PTTL {key}"));
        ttl.parse::<i64>().expect("a number")
    });
    assert!(log > 6 * 86_400_000 && state > 0, "{log} {state}");
}

/// A subscription as of another program: each message as it was sent.
struct Listener(BufReader<TcpStream>);

impl Listener {
    fn of(server: &RedisServer, channel: &str) -> Self {
        let mut stream = TcpStream::connect(server.addr()).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream
            .write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes())
            .expect("sent");
        let mut listener = Self(BufReader::new(stream));
        // `subscribe`, the channel, and the number of channels.
        assert_eq!(listener.words(2)[0], "subscribe");
        let mut count = String::new();
        listener.0.read_line(&mut count).expect("a line");
        listener
    }

    fn message(&mut self) -> String {
        self.words(3).pop().expect("three words")
    }

    fn words(&mut self, count: usize) -> Vec<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the length of the list");
        let word = |_| {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a length");
            let length: usize = line[1..].trim().parse().expect("a number");
            let mut word = vec![0; length + 2];
            self.0.read_exact(&mut word).expect("a word");
            word.truncate(length);
            String::from_utf8(word).expect("UTF-8")
        };
        (0..count).map(word).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulkheads_of_both_versions_are_woken_by_the_messages_of_both() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.bulkheads();
    let channel = "{resilience:bulkhead:n}:up";
    let acquire = |lease: &str, ticket_ms| AcquireRequest {
        lease: lease.into(),
        cost: 1,
        limit: 1,
        lease_ms: LONG_MS,
        ticket_ms,
        releases: Vec::new(),
    };
    let released = |lease: &str| {
        let fence = None;
        [Release {
            lease: lease.into(),
            fence,
        }]
    };
    let mut wakeups = store.subscribe("n");
    tokio::time::timeout(SOON, wakeups.next())
        .await
        .expect("it is subscribed");
    let mut old = Listener::of(&server, channel);

    store.acquire("n", &acquire("held", 0)).await.expect("ok");
    store
        .acquire("n", &acquire("waits", LONG_MS))
        .await
        .expect("ok");
    store.release("n", &released("held")).await.expect("ok");
    // The version before reads a list of leases.
    let message = old.message();
    let leases: Vec<String> = serde_json::from_str(&message).expect("a list of words");
    assert_eq!(leases, ["waits", "#1"]);
    let woken = tokio::time::timeout(SOON, wakeups.next())
        .await
        .expect("woken");
    assert_eq!(woken, Pushed::Value(["waits".into()].into()));

    store
        .acquire("n", &acquire("waits", LONG_MS))
        .await
        .expect("ok");
    store
        .acquire("n", &acquire("next", LONG_MS))
        .await
        .expect("ok");
    let release = before!(
        "bulkhead/clock.lua",
        "bulkhead/common.lua",
        "bulkhead/release.lua"
    );
    let keys = keys(
        "{resilience:bulkhead:n}",
        ["state", "leases", "held", "queue", "tickets", "live"],
    );
    assert_eq!(run(&server, release, &keys, &[channel, "waits", ""]), ["1"]);
    assert_eq!(old.message(), r#"["next"]"#);
    let woken = tokio::time::timeout(SOON, wakeups.next())
        .await
        .expect("woken");
    assert_eq!(woken, Pushed::Value(["next".into()].into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_wait_for_a_record_hear_the_messages_of_both_versions() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.idempotency();
    let channel = "{resilience:idempotency:n:k}:news";
    let claim = |owner: &str| Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms: LONG_MS,
        retention_ms: LONG_MS,
        takeover: Takeover::Ended,
    };
    let Ok(Claimed::New(grant)) = store.claim("n", "k", &claim("a")).await else {
        panic!("it is new");
    };
    let mut news = store.subscribe("n", "k");
    tokio::time::timeout(SOON, news.next())
        .await
        .expect("it is subscribed");
    let mut other = Listener::of(&server, channel);
    // Says that it is subscribed.
    let busy = store.claim("n", "k", &claim("b")).await;
    assert!(matches!(busy, Ok(Claimed::Busy { .. })));
    let holder = Holder::new(&claim("a"), &grant);
    let released = store.release("n", "k", &holder).await;
    assert_eq!(released, Ok(WriteOutcome::Kept));
    assert_eq!(other.message(), "1:0");
    let told = tokio::time::timeout(SOON, news.next()).await.expect("told");
    assert_eq!(told, Pushed::Value(()));
    // As of the version before, and of a later one.
    for message in ["2", "7:2:and more"] {
        let sent = server.try_words(&["PUBLISH", channel, message]);
        assert_eq!(sent.expect("sent"), "2");
        let told = tokio::time::timeout(SOON, news.next()).await.expect("told");
        assert_eq!(told, Pushed::Value(()));
    }
    let Ok(Claimed::New(grant)) = store.claim("n", "k", &claim("b")).await else {
        panic!("it was released");
    };
    let mut other = Listener::of(&server, channel);
    let busy = store.claim("n", "k", &claim("c")).await;
    assert!(matches!(busy, Ok(Claimed::Busy { .. })));
    let holder = Holder::new(&claim("b"), &grant);
    let completion = Completion {
        outcome: Bytes::from_static(b"7"),
        ttl_ms: LONG_MS,
    };
    let kept = store.complete("n", "k", &holder, &completion).await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
    assert_eq!(other.message(), "1:2");
}

/// Every pattern has its list, under the key that the version before used for breakers.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_every_pattern_are_listed_and_end_a_day_after_their_last_use() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let (breakers, bulkheads) = (redis.breakers(), redis.bulkheads());
    let (limits, idempotency) = (redis.limits(), redis.idempotency());
    assert!(breakers.names().await.expect("ok").is_empty());
    breakers
        .report("n", &report("a", 1, LONG_MS))
        .await
        .expect("ok");
    let beat = Heartbeat {
        instance: "a".into(),
        live_ms: LONG_MS,
        lease_ms: LONG_MS,
        holdings: Vec::new(),
    };
    bulkheads.renew("reports", &beat).await.expect("ok");
    bulkheads.renew("exports", &beat).await.expect("ok");
    let minute = Duration::from_secs(60);
    limits.heartbeat("api", "a", minute).await.expect("ok");
    limits
        .heartbeat("left", "a", Duration::ZERO)
        .await
        .expect("ok");
    let step = idempotency.announce("orders").expect("there is a list");
    step.await.expect("ok");
    eventually("all are listed", SOON, || async {
        breakers.names().await.expect("ok") == ["n"]
            && bulkheads.names().await.expect("ok") == ["exports", "reports"]
            && limits.names().await.expect("ok") == ["api"]
            && idempotency.names().await.expect("ok") == ["orders"]
    })
    .await;
    for pattern in ["breaker", "bulkhead", "limit", "idempotency"] {
        let key = format!("{{resilience:{pattern}}}:names");
        let ttl: i64 = server
            .command(&format!("PTTL {key}"))
            .parse()
            .expect("a number");
        assert!((86_000_000..=86_400_000).contains(&ttl), "{key}: {ttl}");
        // Two days ago.
        let old = server.command(&format!("ZADD {key} 1000 gone"));
        assert_eq!(old, "1");
    }
    assert_eq!(limits.names().await.expect("ok"), ["api"]);
    // Not with each heartbeat.
    let scripts = || {
        server
            .command("INFO commandstats")
            .lines()
            .find(|line| line.starts_with("cmdstat_zadd"))
            .map(str::to_owned)
    };
    let zadd = |line: Option<String>| -> u64 {
        let line = line.expect("a line");
        let calls = line.split(['=', ',']).nth(1).expect("a number");
        calls.parse().expect("a number")
    };
    let before = zadd(scripts());
    for _ in 0..20 {
        limits.heartbeat("api", "a", minute).await.expect("ok");
    }
    assert_eq!(
        zadd(scripts()) - before,
        20,
        "one per heartbeat, for the live instance"
    );
}
