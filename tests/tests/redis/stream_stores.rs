//! Every broker of streams, held to one suite, and what only Redis' has.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use resilience_core::{
    Consumer, conformance,
    stream::{
        Action, Batch, Begin, Begun, Claim, Delivery, Effect, Envelope, Held, InProcessStreams,
        Join, JoinedGroup, Message, Outgoing, Position, ProducerSequence, Publish, Published,
        RawMessage, Read, Retention, Settled, Settlement, Start, StreamBroker, broker::StoreError,
    },
};
use resilience_redis::{Redis, RedisStreams};
use resilience_tests::{
    redis::{Flavour, RedisServer},
    redis_clock::Clock,
    redis_cluster::RedisCluster,
    redis_scene::SOON,
    redis_sentinel::RedisSentinels,
    until::eventually,
};

const STREAM: &str = "orders";
const GROUP: &str = "billing";
const HOUR: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_in_this_process_conforms() {
    let broker = InProcessStreams::new();
    let shared: Arc<dyn StreamBroker> = Arc::new(broker.clone());
    conformance::stream::all(&shared, &|| broker.flush()).await;
}

async fn connect(url: &str) -> Redis {
    let redis = Redis::builder(url).budget(SOON / 6).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis
}

async fn conforms(url: &str, flush: &(dyn Fn() + Sync)) {
    let broker: Arc<dyn StreamBroker> = Arc::new(connect(url).await.streams());
    conformance::stream::all(&broker, flush).await;
}

fn flush(server: &RedisServer) {
    assert_eq!(server.command("FLUSHALL"), "OK");
}

/// Redis, and Redis 6.2 and Valkey where the machine has them.
#[tokio::test(flavor = "multi_thread")]
async fn every_server_that_is_installed_conforms() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        conforms(&server.url(), &|| flush(&server)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start();
    let flush = || {
        for node in 0..6 {
            // Replicas refuse, and are emptied by their masters.
            let _ = cluster.node(node).command("FLUSHALL");
        }
    };
    conforms(&cluster.url(), &flush).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_found_through_sentinels_conforms() {
    let group = RedisSentinels::start();
    conforms(&group.url(), &|| flush(group.server(group.master()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_a_user_of_few_rights_it_conforms() {
    let server = RedisServer::start();
    // What the README tells operators to grant.
    let grant = "ACL SETUSER app on >right ~{resilience:* &{resilience:* +@connection +@scripting +@pubsub \
                 +@read +@write +@fast +time";
    assert_eq!(server.command(grant), "OK");
    let url = format!("redis://app:right@{}", server.addr());
    conforms(&url, &|| flush(&server)).await;
}

fn join(consumer: &str) -> Join {
    Join {
        consumer: consumer.into(),
        lease_ms: HOUR,
        start: Start::Oldest,
        resume: None,
        keep_ms: HOUR,
    }
}

fn events(events: &[&str]) -> Publish {
    let outgoing = |event: &&str| Outgoing {
        message: RawMessage {
            envelope: Envelope {
                id: (*event).into(),
                ..Envelope::default()
            },
            body: Bytes::copy_from_slice(event.as_bytes()),
        },
        delay_ms: 0,
    };
    Publish {
        messages: events.iter().map(outgoing).collect(),
        sequence: None,
    }
}

async fn publish(broker: &RedisStreams, names: &[&str]) {
    let published = broker.publish(STREAM, &events(names)).await;
    assert_eq!(published.expect("an answer").len(), names.len());
}

async fn read_for(
    broker: &RedisStreams,
    consumer: &str,
    block_ms: u64,
) -> Result<Batch, StoreError> {
    let read = Read {
        streams: &[STREAM],
        consumer,
        max: 10,
        block_ms,
    };
    broker.read(GROUP, read).await
}

async fn read(broker: &RedisStreams, consumer: &str) -> Vec<Delivery> {
    let batch = read_for(broker, consumer, 0).await.expect("an answer");
    assert!(batch.missing.is_empty());
    batch.deliveries
}

async fn claim(broker: &RedisStreams, consumer: &str) -> Vec<Delivery> {
    let claim = Claim { consumer, max: 10 };
    let claimed = broker.claim(STREAM, GROUP, claim).await;
    claimed.expect("an answer").deliveries
}

async fn settle(
    broker: &RedisStreams,
    consumer: &str,
    position: Position,
    action: Action,
) -> Settled {
    let settlement = [Settlement { position, action }];
    let settled = broker.settle(STREAM, GROUP, consumer, &settlement).await;
    settled.expect("an answer")[0]
}

fn retry(after_ms: u64) -> Action {
    Action::Retry {
        after_ms,
        reason: "no".into(),
    }
}

fn dead() -> Action {
    Action::Dead {
        reason: "never".into(),
    }
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    let message = |it: &Delivery| it.message.clone().expect("a message");
    let id = |it: &Delivery| message(it).envelope.id.to_string();
    deliveries.iter().map(id).collect()
}

fn ask(server: &RedisServer, words: &[&str]) -> String {
    server.try_words(words).expect("an answer")
}

async fn begin(broker: &RedisStreams, consumer: &str, position: Position) -> u64 {
    let begin = [Begin {
        position,
        key: "key".into(),
        keep_ms: HOUR,
    }];
    let begun = broker.begin(STREAM, GROUP, consumer, &begin).await;
    match begun.as_deref() {
        Ok([Begun::Run { fence, .. }]) => *fence,
        other => panic!("not begun: {other:?}"),
    }
}

fn effect(fence: u64) -> Action {
    Action::Ack(Some(Effect {
        key: "key".into(),
        fence,
        outcome: Bytes::from_static(&[b'o'; 1000]),
        ttl_ms: HOUR,
    }))
}

/// What was delivered can be ended, and what is new is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_takes_every_settlement_and_no_new_message() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let broker = connect(&server.url()).await.streams();
        for consumer in ["a", "b"] {
            broker
                .join(STREAM, GROUP, &join(consumer))
                .await
                .expect("joined");
        }
        publish(&broker, &["1", "2", "3", "4", "5"]).await;
        let held = read(&broker, "a").await;
        let at = |number: usize| held[number].position;
        assert_eq!(server.command("CONFIG SET maxmemory 1"), "OK");

        let refused = broker.publish(STREAM, &events(&["new"])).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("OOM")));
        let other = broker.join(STREAM, "other", &join("a")).await;
        assert!(other.is_err());
        let again = broker
            .join(STREAM, GROUP, &join("a"))
            .await
            .expect("joined");
        assert_eq!(again.group, JoinedGroup::Existing);
        let extended = broker.extend(STREAM, GROUP, "a", &[at(0)]).await;
        assert_eq!(extended, Ok(vec![Held::Held]));
        let fence = begin(&broker, "a", at(0)).await;
        for (number, action) in [effect(fence), Action::Ack(None), retry(0), dead()]
            .into_iter()
            .enumerate()
        {
            let settled = settle(&broker, "a", at(number), action).await;
            assert_eq!(settled, Settled::Done, "{number}");
        }
        let claimed = claim(&broker, "b").await;
        assert_eq!(ids(&claimed), ["3"]);
        let state = broker.state(STREAM).await.expect("an answer");
        assert_eq!(state.map(|it| it.length), Some(5));
        let one = Retention {
            max_age_ms: None,
            max_length: Some(1),
            settled: None,
            keep_ms: HOUR,
        };
        let trimmed = broker.trim(STREAM, &one).await.expect("an answer");
        assert_eq!((trimmed.removed, trimmed.length), (4, 1));
    }
}

/// A publish of many messages without numbers is not one script.
#[tokio::test(flavor = "multi_thread")]
async fn many_messages_are_stored_and_refused_as_a_few_are() {
    let names: Vec<String> = (0..100).map(|it| format!("{it:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let broker = connect(&server.url()).await.streams();
        // The stream does not exist, and then it does.
        publish(&broker, &names).await;
        let joined = broker.join(STREAM, GROUP, &join("a")).await;
        assert_ne!(joined.expect("joined").incarnation, 0);
        let published = broker.publish(STREAM, &events(&names)).await;
        let at = |it: &Published| match it {
            Published::Stored(position) => *position,
            other => panic!("not stored: {other:?}"),
        };
        let positions: Vec<_> = published.expect("an answer").iter().map(at).collect();
        let stored = broker.peek(STREAM, positions[0], 1000).await;
        let id = |(position, message): &(Position, RawMessage)| {
            (*position, message.envelope.id.to_string())
        };
        let stored: Vec<_> = stored.expect("an answer").iter().map(id).collect();
        let names_of = names.iter().map(|it| (*it).to_owned());
        assert_eq!(
            stored,
            positions.into_iter().zip(names_of).collect::<Vec<_>>()
        );

        let key = broker.key(STREAM);
        assert_eq!(ask(&server, &["PEXPIRE", &key, "100000"]), "1");
        publish(&broker, &names).await;
        let left: u64 = ask(&server, &["PTTL", &key]).parse().expect("a number");
        assert!(left > HOUR / 2, "{left}");

        assert_eq!(server.command("CONFIG SET maxmemory 1"), "OK");
        let refused = broker.publish(STREAM, &events(&names)).await.unwrap_err();
        assert!(
            refused.to_string().contains("OOM") && !refused.ambiguous,
            "{refused}"
        );
        assert_eq!(server.command("CONFIG SET maxmemory 0"), "OK");
        let state = broker.state(STREAM).await.expect("an answer");
        assert_eq!(state.map(|it| it.length), Some(300));
        assert_eq!(ask(&server, &["DEL", &key]), "1");
        ask(&server, &["SET", &key, "text"]);
        let refused = broker.publish(STREAM, &events(&names)).await.unwrap_err();
        assert!(
            refused.to_string().contains("WRONGTYPE") && !refused.ambiguous,
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_an_error_and_nothing_is_written() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let broker = connect(&server.url()).await.streams();
        let key = broker.key(STREAM);
        ask(&server, &["SET", &key, "text"]);
        let is_told = |error: StoreError| {
            assert!(error.to_string().contains("WRONGTYPE"), "{error}");
            assert!(!error.ambiguous);
        };
        is_told(broker.publish(STREAM, &events(&["1"])).await.unwrap_err());
        is_told(broker.join(STREAM, GROUP, &join("a")).await.unwrap_err());
        for block_ms in [0, 50] {
            is_told(read_for(&broker, "a", block_ms).await.unwrap_err());
        }
        is_told(broker.state(STREAM).await.unwrap_err());
        let settlement = [Settlement {
            position: Position::new(1, 1),
            action: Action::Ack(None),
        }];
        let settled = broker.settle(STREAM, GROUP, "a", &settlement).await;
        is_told(settled.unwrap_err());
        assert_eq!(server.command("KEYS *"), key);
        assert_eq!(ask(&server, &["GET", &key]), "text");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_has_an_end() {
    let server = RedisServer::start();
    let broker = connect(&server.url()).await.streams();
    let ttl = |key: &str| -> i64 { ask(&server, &["PTTL", key]).parse().expect("a number") };
    // Before any consumer has told how long it is to be kept.
    let mut delayed = events(&["later", "now"]);
    delayed.messages[0].delay_ms = HOUR;
    delayed.sequence = Some(ProducerSequence {
        producer: "p".into(),
        first: 1,
        keep_ms: HOUR,
    });
    broker.publish(STREAM, &delayed).await.expect("published");
    let check = |many| {
        let keys = server.command("KEYS *");
        let keys: Vec<_> = keys.lines().collect();
        assert_eq!(keys.len(), many, "{keys:?}");
        for key in keys {
            assert!(ttl(key) > 0, "{key}");
        }
    };
    check(4);
    broker
        .join(STREAM, GROUP, &join("a"))
        .await
        .expect("joined");
    check(5);
    publish(&broker, &["2", "3", "4"]).await;
    let held = read(&broker, "a").await;
    let fence = begin(&broker, "a", held[0].position).await;
    for (of, action) in held.iter().zip([effect(fence), retry(HOUR), dead()]) {
        let settled = settle(&broker, "a", of.position, action).await;
        assert_eq!(settled, Settled::Done);
    }
    // Records, due, order, dead letters and their order, an effect.
    check(11);
    broker
        .announce(STREAM)
        .expect("a list")
        .await
        .expect("entered");
    check(12);
    assert_eq!(
        broker.names().await.as_deref(),
        Ok(&[STREAM.to_owned()][..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_script_cache_costs_a_round_trip_and_no_answer() {
    let server = RedisServer::start();
    let broker = connect(&server.url()).await.streams();
    broker
        .join(STREAM, GROUP, &join("a"))
        .await
        .expect("joined");
    for _ in 0..3 {
        publish(&broker, &["1"]).await;
        let held = read(&broker, "a").await;
        let settled = settle(&broker, "a", held[0].position, Action::Ack(None)).await;
        assert_eq!(settled, Settled::Done);
        let _ = server.command("SCRIPT FLUSH");
    }
}

/// Commands do not wait behind a read, and a read that was dropped leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_waits_delays_nothing_and_may_be_dropped() {
    let server = RedisServer::start();
    let broker = connect(&server.url()).await.streams();
    broker
        .join(STREAM, GROUP, &join("a"))
        .await
        .expect("joined");
    let blocked = || async {
        let list = server.command("CLIENT LIST TYPE normal");
        list.lines().any(|line| line.contains("cmd=xreadgroup"))
    };
    for _ in 0..3 {
        let reader = broker.clone();
        let reading = tokio::spawn(async move { read_for(&reader, "a", 30_000).await });
        eventually("the read waits", SOON, blocked).await;
        let started = tokio::time::Instant::now();
        // Each would wait for a second behind the read.
        for _ in 0..10 {
            assert!(broker.state(STREAM).await.is_ok());
        }
        assert!(started.elapsed() < Duration::from_secs(6));
        reading.abort();
        assert!(reading.await.is_err());
    }
    eventually("what was dropped is closed", SOON, || async {
        !blocked().await
    })
    .await;
    let reader = broker.clone();
    let reading = tokio::spawn(async move { read_for(&reader, "a", 30_000).await });
    eventually("the read waits", SOON, blocked).await;
    publish(&broker, &["1"]).await;
    let batch = reading.await.expect("no panic").expect("an answer");
    assert_eq!(ids(&batch.deliveries), ["1"]);
}

/// With a bound far below the time that the reader is willing to wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_waits_notices_that_its_stream_or_connection_is_gone() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let broker = connect(&server.url()).await.streams();
        for loss in ["DEL", "KILL"] {
            broker
                .join(STREAM, GROUP, &join("a"))
                .await
                .expect("joined");
            let reader = broker.clone();
            let reading = tokio::spawn(async move { read_for(&reader, "a", 60_000).await });
            eventually("the read waits", SOON, || async {
                let list = server.command("CLIENT LIST TYPE normal");
                list.lines().any(|line| line.contains("cmd=xreadgroup"))
            })
            .await;
            if loss == "DEL" {
                assert_eq!(ask(&server, &["DEL", &broker.key(STREAM)]), "1");
            } else {
                let _ = server.command("CLIENT KILL TYPE normal");
            }
            let read = tokio::time::timeout(SOON, reading).await;
            let read = read.expect("it is noticed").expect("no panic");
            match read {
                Ok(batch) => assert_eq!(batch.missing.len(), 1, "{loss}: {batch:?}"),
                Err(error) => assert!(error.ambiguous && loss == "KILL", "{loss}: {error}"),
            }
            eventually("the connection is back", SOON, || async {
                broker.state(STREAM).await.is_ok()
            })
            .await;
        }
        // Readers connect again.
        publish(&broker, &["1"]).await;
        eventually("it is read", SOON, || async {
            let batch = read_for(&broker, "a", 100).await;
            batch.is_ok_and(|batch| ids(&batch.deliveries) == ["1"])
        })
        .await;
    }
}

/// Of a message that was delivered once, and of one that was delivered again.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_makes_no_lease_and_no_wait_longer() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let broker = connect(&server.url()).await.streams();
    clock.set_ahead(Duration::from_millis(HOUR));
    let brief = Join {
        lease_ms: 50,
        ..join("a")
    };
    broker.join(STREAM, GROUP, &brief).await.expect("joined");
    broker
        .join(STREAM, GROUP, &join("b"))
        .await
        .expect("joined");
    publish(&broker, &["first", "again", "waits"]).await;
    let held = read(&broker, "a").await;
    for of in &held[1..] {
        let settled = settle(&broker, "a", of.position, retry(50)).await;
        assert_eq!(settled, Settled::Done);
    }
    clock.set_ahead(Duration::ZERO);
    let mut claimed = Vec::new();
    let claiming = async {
        while claimed.len() < 3 {
            claimed.extend(claim(&broker, "b").await);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let in_time = tokio::time::timeout(SOON, claiming).await;
    assert!(in_time.is_ok(), "{claimed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_program_adds_is_delivered_as_far_as_it_can_be_read() {
    let server = RedisServer::start();
    let broker = connect(&server.url()).await.streams();
    let key = broker.key(STREAM);
    let plain = ask(&server, &["XADD", &key, "*", "field", "value"]);
    ask(
        &server,
        &[
            "XADD",
            &key,
            "*",
            "id",
            "7",
            "data",
            "body",
            "schemaversion",
            "x",
        ],
    );
    let joined = broker
        .join(STREAM, GROUP, &join("a"))
        .await
        .expect("joined");
    assert_ne!(joined.incarnation, 0);
    let held = read(&broker, "a").await;
    assert_eq!(ids(&held), [plain.as_str(), "7"]);
    let first = held[0].message.as_ref().expect("a message");
    assert_eq!(
        *first.envelope.attributes,
        [("field".into(), "value".into())]
    );
    let second = held[1].message.as_ref().expect("a message");
    assert_eq!(
        (&second.body[..], second.envelope.schema),
        (&b"body"[..], 0)
    );
}

/// Redis 7 drops a message from the list of what is held when it finds that it was removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_removed_while_it_is_held_stays_its_holders() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let broker = connect(&server.url()).await.streams();
        broker
            .join(STREAM, GROUP, &join("a"))
            .await
            .expect("joined");
        publish(&broker, &["1"]).await;
        let position = read(&broker, "a").await[0].position;
        let removed = ask(
            &server,
            &["XDEL", &broker.key(STREAM), &position.to_string()],
        );
        assert_eq!(removed, "1");
        for _ in 0..2 {
            let extended = broker.extend(STREAM, GROUP, "a", &[position]).await;
            assert_eq!(extended, Ok(vec![Held::Held]));
        }
        assert_eq!(
            settle(&broker, "a", position, retry(0)).await,
            Settled::Done
        );
        let again = claim(&broker, "a").await;
        assert_eq!((again[0].deliveries, &again[0].message), (2, &None));
    }
}

/// The bookmark outlives the group, and the marks of incarnations are no groups.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_an_operator_destroys_goes_on_at_its_bookmark() {
    let server = RedisServer::start();
    let broker = connect(&server.url()).await.streams();
    for group in [GROUP, "~7"] {
        broker
            .join(STREAM, group, &join("a"))
            .await
            .expect("joined");
    }
    publish(&broker, &["1", "2", "3"]).await;
    let held = read(&broker, "a").await;
    for of in [&held[0], &held[2]] {
        let settled = settle(&broker, "a", of.position, Action::Ack(None)).await;
        assert_eq!(settled, Settled::Done);
    }
    claim(&broker, "a").await;
    let destroyed = ask(&server, &["XGROUP", "DESTROY", &broker.key(STREAM), GROUP]);
    assert_eq!(destroyed, "1");
    let fresh = Join {
        start: Start::Next,
        ..join("b")
    };
    let joined = broker.join(STREAM, GROUP, &fresh).await.expect("joined");
    let JoinedGroup::Restored(after) = joined.group else {
        panic!("{joined:?}");
    };
    assert!(after >= held[0].position && after < held[1].position);
    assert_eq!(ids(&read(&broker, "b").await), ["2", "3"]);
    let state = broker.state(STREAM).await.expect("an answer");
    let groups = state.expect("a stream").groups;
    let groups: Vec<_> = groups.iter().map(|it| &*it.group).collect();
    assert_eq!(groups, [GROUP, "~7"]);
}

/// Lags, as they are shown.
async fn lags(broker: &RedisStreams) -> Vec<u64> {
    let state = broker.state(STREAM).await.expect("an answer");
    let groups = state.expect("a stream").groups;
    groups.iter().map(|it| it.lag).collect()
}

/// Messages behind the cursor of each group, counted.
async fn counted(broker: &RedisStreams) -> Vec<u64> {
    let state = broker.state(STREAM).await.expect("an answer");
    let mut counts = Vec::new();
    for group in state.expect("a stream").groups {
        let left = broker.peek(STREAM, group.cursor.next(), 1_000).await;
        counts.push(left.expect("an answer").len() as u64);
    }
    counts
}

/// Whatever removes messages, at either side of the cursor. Redis 6.2 does not tell of those that were deleted, or that were trimmed
/// between two trims of ours.
#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_right_when_others_trim_and_delete() {
    for flavour in Flavour::installed() {
        let seed = fastrand::u64(..);
        println!("{flavour:?}, seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let server = RedisServer::start_flavour(flavour, &[]);
        let tells = server.command("INFO server");
        let tells = !tells.contains("redis_version:6.");
        let broker = connect(&server.url()).await.streams();
        let key = broker.key(STREAM);
        broker
            .join(STREAM, GROUP, &join("a"))
            .await
            .expect("joined");
        let (mut trimmed, mut deleted) = (0, 0);
        for _ in 0..300 {
            match rng.u8(0..8) {
                0..3 => publish(&broker, &["x"; 7][..rng.usize(1..8)]).await,
                3..5 => drop(read(&broker, "a").await),
                5 => {
                    let most = rng.usize(0..20).to_string();
                    let answer = ask(&server, &["XTRIM", &key, "MAXLEN", &most]);
                    trimmed += usize::from(answer != "0");
                }
                6 if tells => {
                    let all = broker.peek(STREAM, Position::START, 1_000).await;
                    let all = all.expect("an answer");
                    if let Some((position, _)) = rng.choice(&all) {
                        ask(&server, &["XDEL", &key, &position.to_string()]);
                        deleted += 1;
                    }
                }
                7 if tells => {
                    let retention = Retention {
                        max_age_ms: None,
                        max_length: Some(rng.u64(1..20)),
                        settled: None,
                        keep_ms: HOUR,
                    };
                    broker.trim(STREAM, &retention).await.expect("trimmed");
                }
                _ => {}
            }
            // Not after every step: several may lie between two looks.
            if rng.bool() {
                assert_eq!(lags(&broker).await, counted(&broker).await);
            }
        }
        assert!(trimmed > 0 && (deleted > 0 || !tells));
    }
}

/// Nothing is published by a producer of this toolkit.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_only_consumed_is_listed() {
    let server = RedisServer::start();
    let broker = connect(&server.url()).await.streams();
    let consumer = Consumer::<u32>::builder(STREAM, broker.clone())
        .group(GROUP)
        .build();
    let consumer = Arc::new(consumer.expect("good settings"));
    let serving = Arc::clone(&consumer);
    let running = tokio::spawn(async move {
        let handler = |_: Message<u32>| async { Ok::<_, String>(()) };
        serving.run(handler).await
    });
    eventually("it is listed", SOON, || async {
        broker.names().await.as_deref() == Ok(&[STREAM.to_owned()][..])
    })
    .await;
    consumer.shutdown(SOON).await.expect("it ends");
    running.await.expect("no panic").expect("it served");
}
