//! Streams: each step beside the bare commands or the least script that does the same, and a producer with a consumer.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ::redis::{Pipeline, Value, aio::MultiplexedConnection};
use resilience_core::{
    Consumer, Producer,
    stream::{
        Action, Begin, Begun, Effect, Envelope, Event, Join, Message, Outgoing, Position,
        ProducerSequence, Publish, RawMessage, Read, Settled, Settlement, Start, StreamBroker,
    },
};
use resilience_redis::RedisStreams;

use crate::{
    bare::{connection, load, per_second},
    fleet::{connect, ms},
    redis::RedisServer,
    report::{Target, figure, quantile},
};

const STREAM: &str = "orders";
const GROUP: &str = "billing";
const CONSUMER: &str = "pod-7";
const HOUR: u64 = 3_600_000;
const BATCH: usize = 100;
const BODY: usize = 200;

/// The least script that stores numbered messages once. ARGV: number of the first message, how long the producer is remembered, number of
/// fields and values of each, and those.
const BARE_NUMBERED: &str = "
local known = tonumber(redis.call('GET', KEYS[2]) or 0)
local first, fields = tonumber(ARGV[1]), tonumber(ARGV[3])
local answers, number = {}, first
for at = 4, #ARGV, fields do
  if number > known then answers[#answers + 1] = redis.call('XADD', KEYS[1], '*', unpack(ARGV, at, at + fields - 1)) end
  number = number + 1
end
redis.call('SET', KEYS[2], number - 1, 'PX', ARGV[2])
return answers";

/// The least script that begins effects. KEYS: their records; ARGV: how long they are kept.
const BARE_BEGIN: &str = "
local answers = {}
for i, key in ipairs(KEYS) do
  local record = redis.call('GET', key)
  if not record then redis.call('SET', key, 'running', 'PX', ARGV[1]) end
  answers[i] = record or 0
end
return answers";

/// The least script that records effects and acknowledges their messages, if the consumer holds them. KEYS: the stream, records; ARGV: group,
/// consumer, outcome, how long that is kept, positions.
const BARE_EFFECTS: &str = "
local mine, answers = {}, {}
for _, it in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[5], ARGV[#ARGV], 1000, ARGV[2])) do mine[it[1]] = true end
for i = 5, #ARGV do
  local key = KEYS[i - 3]
  if mine[ARGV[i]] and redis.call('GET', key) == 'running' then
    redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
    answers[i - 4] = 0
  else
    return 1
  end
end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 5))
return answers";

pub(crate) async fn run() {
    let server = RedisServer::start();
    let broker = connect(&server.url()).await.streams();
    publishes(&server, &broker).await;
    numbered_publishes(&server, &broker).await;
    consumes(&server, &broker).await;
    effects(&server, &broker).await;
    end_to_end(&server).await;
    full_load(&server).await;
}

/// A message as producers send it.
fn outgoing(number: usize) -> Outgoing {
    let envelope = Envelope {
        id: format!("{number:032x}").into(),
        source: "/shop".into(),
        event_type: "order.placed".into(),
        key: Some(format!("customer-{}", number % 100).into()),
        content_type: "application/json".into(),
        time_ms: 1_700_000_000_000,
        ..Envelope::default()
    };
    let body = vec![b'v'; BODY].into();
    Outgoing {
        message: RawMessage { envelope, body },
        delay_ms: 0,
    }
}

fn batch() -> Publish {
    Publish {
        messages: (0..BATCH).map(outgoing).collect(),
        sequence: None,
    }
}

/// The stream and the group, without messages.
async fn empty(server: &RedisServer, broker: &RedisStreams) {
    assert_eq!(server.command("FLUSHALL"), "OK");
    let join = Join {
        consumer: CONSUMER.into(),
        lease_ms: HOUR,
        start: Start::Oldest,
        resume: None,
        keep_ms: HOUR,
    };
    broker.join(STREAM, GROUP, &join).await.expect("joined");
}

/// The fields of the messages of a batch as they are in Redis.
async fn fields(server: &RedisServer, broker: &RedisStreams) -> Vec<Vec<Vec<u8>>> {
    empty(server, broker).await;
    broker.publish(STREAM, &batch()).await.expect("stored");
    let mut range = ::redis::cmd("XRANGE");
    range.arg(broker.key(STREAM)).arg("-").arg("+");
    let mut conn = connection(server).await;
    let entries: Vec<(String, Vec<Vec<u8>>)> = range.query_async(&mut conn).await.expect("entries");
    entries.into_iter().map(|(_, fields)| fields).collect()
}

/// Steps in turns with what they are compared to; the median share, and both medians per second.
async fn beside(
    name: &str,
    least: f64,
    each: usize,
    bare: impl AsyncFn() -> f64,
    whole: impl AsyncFn() -> f64,
) {
    const TURNS: usize = 9;
    let (mut bares, mut wholes, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (bare, whole) = (bare().await, whole().await);
        bares.push(bare * each as f64);
        wholes.push(whole * each as f64);
        // Neighbours in time are compared: the machine is not equally busy all the time.
        shares.push(whole / bare);
    }
    let unit = "messages/s";
    let per_second = |what: &str, mut all: Vec<f64>| {
        let name = format!("{name}_{what}_per_second");
        figure(&name, quantile(&mut all, 0.5), unit, Target::Open);
    };
    per_second("bare", bares);
    per_second("whole", wholes);
    let share = quantile(&mut shares, 0.5);
    figure(name, share, "share", Target::AtLeast(least));
}

const TASKS: usize = 4;

async fn publishes(server: &RedisServer, broker: &RedisStreams) {
    let fields = fields(server, broker).await;
    let (fields, conn) = (Arc::new(fields), connection(server).await);
    let bare = async || {
        empty(server, broker).await;
        let (fields, conn) = (Arc::clone(&fields), conn.clone());
        per_second(TASKS, move || add_bare(conn.clone(), Arc::clone(&fields))).await
    };
    let publish = Arc::new(batch());
    let whole = async || {
        empty(server, broker).await;
        let (broker, publish) = (broker.clone(), Arc::clone(&publish));
        per_second(TASKS, move || {
            let (broker, publish) = (broker.clone(), Arc::clone(&publish));
            async move {
                let stored = broker.publish(STREAM, &publish).await.expect("stored");
                assert_eq!(stored.len(), BATCH);
            }
        })
        .await
    };
    beside("stream_publish_of_xadd", 0.85, BATCH, bare, whole).await;
}

/// Fields become commands, and these a pipeline.
async fn add_bare(mut conn: MultiplexedConnection, fields: Arc<Vec<Vec<Vec<u8>>>>) {
    let mut pipeline = Pipeline::with_capacity(BATCH);
    for fields in &*fields {
        pipeline.cmd("XADD").arg("bare").arg("*").arg(fields);
    }
    let positions: Vec<String> = pipeline.query_async(&mut conn).await.expect("stored");
    assert_eq!(positions.len(), BATCH);
}

async fn numbered_publishes(server: &RedisServer, broker: &RedisStreams) {
    let fields = Arc::new(fields(server, broker).await);
    let mut conn = connection(server).await;
    let digest: Arc<str> = load(&mut conn, BARE_NUMBERED).await.into();
    let producers = Arc::new(AtomicU64::new(0));
    let bare = async || {
        empty(server, broker).await;
        let (fields, conn) = (Arc::clone(&fields), conn.clone());
        let (digest, producers) = (Arc::clone(&digest), Arc::clone(&producers));
        per_second(TASKS, move || {
            let (fields, mut conn, digest) =
                (Arc::clone(&fields), conn.clone(), Arc::clone(&digest));
            let producer = format!("producer-{}", producers.fetch_add(1, Relaxed));
            async move {
                let mut add = ::redis::cmd("EVALSHA");
                add.arg(&*digest).arg(2).arg("bare").arg(producer);
                add.arg(1).arg(HOUR).arg(fields[0].len());
                for fields in &*fields {
                    add.arg(fields);
                }
                let positions: Vec<String> = add.query_async(&mut conn).await.expect("stored");
                assert_eq!(positions.len(), BATCH);
            }
        })
        .await
    };
    let messages = batch().messages;
    let whole = async || {
        empty(server, broker).await;
        let (broker, producers) = (broker.clone(), Arc::clone(&producers));
        let messages = messages.clone();
        per_second(TASKS, move || {
            let (broker, messages) = (broker.clone(), messages.clone());
            let producer = format!("producer-{}", producers.fetch_add(1, Relaxed));
            async move {
                let sequence = ProducerSequence {
                    producer: producer.into(),
                    first: 1,
                    keep_ms: HOUR,
                };
                let publish = Publish {
                    messages,
                    sequence: Some(sequence),
                };
                let stored = broker.publish(STREAM, &publish).await.expect("stored");
                assert_eq!(stored.len(), BATCH);
            }
        })
        .await
    };
    let name = "stream_numbered_publish_of_script";
    beside(name, 0.85, BATCH, bare, whole).await;
}

/// Below 2^53.
fn now_ns() -> u64 {
    use std::sync::LazyLock;
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    1 + u64::try_from(BEGAN.elapsed().as_nanos()).expect("it fits")
}

/// Messages that wait for a group.
async fn fill(server: &RedisServer, broker: &RedisStreams, messages: usize) {
    empty(server, broker).await;
    for _ in 0..messages / BATCH {
        broker.publish(STREAM, &batch()).await.expect("stored");
    }
}

/// Messages per second of `work`, which is through with this number of them at the end.
async fn timed(messages: usize, work: impl Future<Output = usize>) -> f64 {
    let start = Instant::now();
    assert_eq!(work.await, messages);
    messages as f64 / start.elapsed().as_secs_f64()
}

async fn read(broker: &RedisStreams) -> Vec<(Position, RawMessage)> {
    let read = Read {
        streams: &[STREAM],
        consumer: CONSUMER,
        max: BATCH,
        block_ms: 1,
    };
    let batch = broker.read(GROUP, read).await.expect("an answer");
    let deliveries = batch.deliveries.into_iter();
    let message = |it: resilience_core::stream::Delivery| it.message.expect("a message");
    deliveries.map(|it| (it.position, message(it))).collect()
}

/// One consumer that reads and acknowledges, one after the other.
async fn consume(broker: &RedisStreams) -> usize {
    let mut many = 0;
    loop {
        let batch = read(broker).await;
        if batch.is_empty() {
            return many;
        }
        many += batch.len();
        assert!(batch.iter().all(|(_, message)| message.body.len() == BODY));
        let settlement = |(position, _): &(Position, _)| Settlement {
            position: *position,
            action: Action::Ack(None),
        };
        let settlements: Vec<_> = batch.iter().map(settlement).collect();
        settle(broker, &settlements).await;
    }
}

async fn settle(broker: &RedisStreams, settlements: &[Settlement]) {
    let settled = broker.settle(STREAM, GROUP, CONSUMER, settlements).await;
    let settled = settled.expect("an answer");
    assert!(settled.iter().all(|it| *it == Settled::Done), "{settled:?}");
}

type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;

/// The positions of a batch, whose messages were read.
async fn read_bare(conn: &mut MultiplexedConnection, key: &str) -> Vec<String> {
    let mut read = ::redis::cmd("XREADGROUP");
    read.arg("GROUP")
        .arg(GROUP)
        .arg(CONSUMER)
        .arg("COUNT")
        .arg(BATCH);
    read.arg("BLOCK").arg(1).arg("STREAMS").arg(key).arg(">");
    let answer: Value = read.query_async(conn).await.expect("an answer");
    let answer: Option<Vec<(String, Entries)>> =
        ::redis::from_redis_value(answer).expect("entries");
    let entries = answer.unwrap_or_default().into_iter().flat_map(|it| it.1);
    entries
        .map(|(position, fields)| {
            let body = fields.iter().find(|(name, _)| name == "data");
            assert_eq!(body.map(|(_, body)| body.len()), Some(BODY));
            position
        })
        .collect()
}

async fn consume_bare(conn: &mut MultiplexedConnection, key: &str) -> usize {
    let mut many = 0;
    loop {
        let positions = read_bare(conn, key).await;
        if positions.is_empty() {
            return many;
        }
        many += positions.len();
        let mut ack = ::redis::cmd("XACK");
        ack.arg(key).arg(GROUP).arg(&positions);
        let acknowledged: usize = ack.query_async(conn).await.expect("an answer");
        assert_eq!(acknowledged, positions.len());
    }
}

const MESSAGES: usize = 40_000;

async fn consumes(server: &RedisServer, broker: &RedisStreams) {
    let (key, conn) = (broker.key(STREAM), connection(server).await);
    let bare = async || {
        fill(server, broker, MESSAGES).await;
        timed(MESSAGES, consume_bare(&mut conn.clone(), &key)).await
    };
    let whole = async || {
        fill(server, broker, MESSAGES).await;
        timed(MESSAGES, consume(broker)).await
    };
    let name = "stream_consume_of_xreadgroup";
    beside(name, 0.8, 1, bare, whole).await;
}

/// One consumer that reads, begins the effects, and records them with their acknowledgements; the time that the last of these took.
async fn take_effect(broker: &RedisStreams, id: &AtomicU64) -> (usize, Duration) {
    let (mut many, mut took) = (0, Duration::ZERO);
    loop {
        let batch = read(broker).await;
        if batch.is_empty() {
            return (many, took);
        }
        many += batch.len();
        let begin = |(position, _): &(Position, RawMessage)| Begin {
            position: *position,
            key: effect_key(id).into(),
            keep_ms: HOUR,
        };
        let begins: Vec<_> = batch.iter().map(begin).collect();
        let begun = broker.begin(STREAM, GROUP, CONSUMER, &begins).await;
        let begun = begun.expect("an answer");
        let settlement = |(begin, begun): (Begin, Begun)| {
            let Begun::Run { fence, .. } = begun else {
                panic!("not begun: {begun:?}");
            };
            let effect = Effect {
                key: begin.key,
                fence,
                outcome: OUTCOME.into(),
                ttl_ms: HOUR,
            };
            Settlement {
                position: begin.position,
                action: Action::Ack(Some(effect)),
            }
        };
        let settlements: Vec<_> = begins.into_iter().zip(begun).map(settlement).collect();
        let start = Instant::now();
        settle(broker, &settlements).await;
        took += start.elapsed();
    }
}

const OUTCOME: &[u8] = b"{\"billed\":true}";

/// As ids of events are.
fn effect_key(id: &AtomicU64) -> String {
    format!("{:032x}", id.fetch_add(1, Relaxed))
}

async fn take_effect_bare(
    conn: &mut MultiplexedConnection,
    key: &str,
    id: &AtomicU64,
    [begin, settle]: [&str; 2],
) -> (usize, Duration) {
    let (mut many, mut took) = (0, Duration::ZERO);
    loop {
        let positions = read_bare(conn, key).await;
        if positions.is_empty() {
            return (many, took);
        }
        many += positions.len();
        let prefix = key.strip_suffix("log").expect("a key");
        let of_effect = |_: &String| format!("{prefix}group:{GROUP}:effect:{}", effect_key(id));
        let records: Vec<_> = positions.iter().map(of_effect).collect();
        let mut begins = ::redis::cmd("EVALSHA");
        begins.arg(begin).arg(records.len()).arg(&records).arg(HOUR);
        let begun: Vec<u64> = begins.query_async(conn).await.expect("begun");
        assert!(begun.iter().all(|it| *it == 0));
        let start = Instant::now();
        let mut settles = ::redis::cmd("EVALSHA");
        settles
            .arg(settle)
            .arg(records.len() + 1)
            .arg(key)
            .arg(&records);
        settles.arg(GROUP).arg(CONSUMER).arg(OUTCOME).arg(HOUR);
        settles.arg(&positions);
        let settled: Vec<u64> = settles.query_async(conn).await.expect("settled");
        assert_eq!(settled.len(), positions.len());
        took += start.elapsed();
    }
}

async fn effects(server: &RedisServer, broker: &RedisStreams) {
    let (key, mut conn) = (broker.key(STREAM), connection(server).await);
    let begin = load(&mut conn, BARE_BEGIN).await;
    let settle = load(&mut conn, BARE_EFFECTS).await;
    let (id, scripts) = (AtomicU64::new(0), [begin.as_str(), settle.as_str()]);
    let bare = async || {
        fill(server, broker, MESSAGES).await;
        let (many, took) = take_effect_bare(&mut conn.clone(), &key, &id, scripts).await;
        many as f64 / took.as_secs_f64()
    };
    let whole_rates = std::cell::RefCell::new(Vec::new());
    let whole = async || {
        fill(server, broker, MESSAGES).await;
        let start = Instant::now();
        let (many, took) = take_effect(broker, &id).await;
        let rate = many as f64 / start.elapsed().as_secs_f64();
        whole_rates.borrow_mut().push(rate);
        many as f64 / took.as_secs_f64()
    };
    beside("stream_effects_of_script", 0.8, 1, bare, whole).await;
    let rate = quantile(&mut whole_rates.borrow_mut(), 0.5);
    let unit = "effects/s of one consumer: read, begun, recorded and acknowledged by the hundred";
    figure("stream_effects_per_second", rate, unit, Target::Open);
}

/// From the publish to the handler, with nothing else to do.
async fn end_to_end(server: &RedisServer) {
    const EVENTS: u64 = 1_000;
    assert_eq!(server.command("FLUSHALL"), "OK");
    let took = Arc::new(std::sync::Mutex::new(Vec::new()));
    let broker = connect(&server.url()).await.streams();
    let consumer = Consumer::<u64>::builder(STREAM, broker)
        .group(GROUP)
        .build();
    let consumer = Arc::new(consumer.expect("good settings"));
    let (serving, times) = (Arc::clone(&consumer), Arc::clone(&took));
    let running = tokio::spawn(async move {
        let handler = move |message: Message<u64>| {
            let micros = (now_ns() - message.event()) as f64 / 1e6;
            times.lock().expect("no panic").push(micros);
            async { Ok::<_, String>(()) }
        };
        serving.run(handler).await
    });
    let broker = connect(&server.url()).await.streams();
    let producer = Producer::<u64>::builder(STREAM, broker).build();
    let producer = producer.expect("good settings");
    for _ in 0..EVENTS {
        producer.publish("key", &now_ns()).await.expect("stored");
        tokio::time::sleep(ms(3)).await;
    }
    while consumer.snapshot().totals.acknowledged < EVENTS {
        tokio::time::sleep(ms(1)).await;
    }
    consumer.shutdown(ms(10_000)).await.expect("it ends");
    running.await.expect("no panic").expect("it served");
    let mut took = std::mem::take(&mut *took.lock().expect("no panic"));
    // The first ones found no connection yet.
    took.drain(..EVENTS as usize / 20);
    let half = quantile(&mut took, 0.5);
    let unit = "ms from the publish to the handler, idle";
    figure("stream_end_to_end_p50_ms", half, unit, Target::Open);
    let most = quantile(&mut took, 0.99);
    let bound = Target::AtMost(5.0);
    figure("stream_end_to_end_p99_ms", most, unit, bound);
}

/// A producer of batches and a consumer, as fast as they can.
async fn full_load(server: &RedisServer) {
    const EVENTS: u64 = 100_000;
    for (name, once) in [("", false), ("_effect_once", true)] {
        assert_eq!(server.command("FLUSHALL"), "OK");
        let broker = connect(&server.url()).await.streams();
        let builder = Consumer::<u64>::builder(STREAM, broker)
            .group(GROUP)
            .concurrency(64)
            .prefetch(256);
        let builder = if once { builder.effect_once() } else { builder };
        let consumer = Arc::new(builder.build().expect("good settings"));
        let serving = Arc::clone(&consumer);
        let broker = connect(&server.url()).await.streams();
        let producer = Producer::<u64>::builder(STREAM, broker).build();
        let producer = producer.expect("good settings");
        let (before, start) = (commands(server), Instant::now());
        let running = tokio::spawn(async move {
            let handler = |_: Message<u64>| async { Ok::<_, String>(()) };
            serving.run(handler).await
        });
        for first in (0..EVENTS).step_by(BATCH) {
            let numbers: Vec<_> = (first..first + BATCH as u64).collect();
            let events = numbers.iter().map(Event::new);
            producer.publish_all(events).await.expect("stored");
        }
        while consumer.snapshot().totals.acknowledged < EVENTS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (seconds, sent) = (start.elapsed().as_secs_f64(), commands(server) - before);
        consumer.shutdown(ms(10_000)).await.expect("it ends");
        running.await.expect("no panic").expect("it served");
        let rate = EVENTS as f64 / seconds;
        let unit = "messages/s, published and handled in one process";
        let figure_name = format!("stream_messages{name}_per_second");
        figure(&figure_name, rate, unit, Target::Open);
        let each = sent as f64 / EVENTS as f64;
        let unit = "commands of producer and consumer per message, full load";
        let figure_name = format!("stream_commands_per_message{name}");
        figure(&figure_name, each, unit, Target::AtMost(0.2));
    }
}

/// Scripts, reads that wait, and what clients send beside.
fn commands(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats");
    let calls = |name: &str| {
        let prefix = format!("cmdstat_{name}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&*prefix));
        let calls = line.and_then(|line| line.split(',').next());
        calls.map_or(0, |calls| calls.parse::<u64>().expect("a number"))
    };
    ["evalsha", "eval", "xreadgroup", "ping"]
        .map(calls)
        .iter()
        .sum()
}
