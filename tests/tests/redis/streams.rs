//! Producers and consumers over Redis, while connections break.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use resilience_core::{
    Consumer, Producer,
    stream::{Message, StreamBroker},
};
use resilience_redis::{Redis, RedisStreams};
use resilience_tests::{
    redis::{Flavour, RedisServer},
    redis_scene::SOON,
    stream_scene::{Plan, run},
    until::eventually,
};
use tokio::time::Instant;

const STREAM: &str = "orders";
const GROUP: &str = "billing";
const EVENTS: u32 = 300;

/// How often each event was handled.
type Handled = Arc<Mutex<BTreeMap<u32, u32>>>;

async fn connect(server: &RedisServer) -> RedisStreams {
    let redis = Redis::connect(&server.url()).expect("a good URL");
    redis.ready(SOON).await.expect("connects");
    redis.streams()
}

/// Starts a consumer, with a connection of its own.
async fn consume(server: &RedisServer, handled: &Handled) -> Arc<Consumer<u32>> {
    let broker = connect(server).await;
    let consumer = Consumer::<u32>::builder(STREAM, broker)
        .group(GROUP)
        .concurrency(8)
        .lanes(|message| message.key.clone())
        .lease(Duration::from_secs(2))
        .effect_once()
        .build();
    let consumer = Arc::new(consumer.expect("good settings"));
    let (serving, handled) = (Arc::clone(&consumer), Arc::clone(handled));
    tokio::spawn(async move {
        let handler = move |message: Message<u32>| {
            let handled = Arc::clone(&handled);
            async move {
                let mut handled = handled.lock().unwrap_or_else(PoisonError::into_inner);
                *handled.entry(*message.event()).or_default() += 1;
                Ok::<_, String>(())
            }
        };
        serving.run(handler).await.expect("it serves");
    });
    consumer
}

fn count(handled: &Handled) -> usize {
    let handled = handled.lock().unwrap_or_else(PoisonError::into_inner);
    handled.len()
}

/// Nothing is held, waits or is undelivered.
async fn is_settled(broker: &RedisStreams) -> bool {
    let Ok(Some(state)) = broker.state(STREAM).await else {
        return false;
    };
    let group = state.groups.iter().find(|it| &*it.group == GROUP);
    group.is_some_and(|it| it.held + it.waiting + it.lag + it.dead == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_handled_while_connections_break_and_scripts_are_forgotten() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let handled = Handled::default();
        let consumers = [
            consume(&server, &handled).await,
            consume(&server, &handled).await,
        ];
        let broker = connect(&server).await;
        let orders = Producer::<u32>::builder(STREAM, broker.clone()).build();
        let orders = orders.expect("good settings");
        for event in 0..EVENTS {
            if event % 100 == 50 {
                let _ = server.command("CLIENT KILL TYPE normal");
                let _ = server.command("SCRIPT FLUSH");
            }
            let key = (event % 7).to_string();
            let until = Instant::now() + SOON;
            while let Err(error) = orders.publish(&key, &event).await {
                assert!(Instant::now() < until, "{error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        eventually("all are handled", SOON, || async {
            count(&handled) == EVENTS as usize
        })
        .await;
        eventually("all are settled", SOON, || is_settled(&broker)).await;
        for consumer in &consumers {
            let ended = consumer.shutdown(SOON).await;
            assert!(ended.is_ok(), "{ended:?}");
        }
        let state = broker.state(STREAM).await.expect("an answer");
        let group = &state.expect("a stream").groups[0];
        assert!(group.consumers.is_empty(), "they have left: {group:?}");
    }
}

/// A shutdown does not wait for the end of a read that waits for messages.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_ends_soon() {
    let server = RedisServer::start();
    let handled = Handled::default();
    let consumer = consume(&server, &handled).await;
    eventually("it reads", SOON, || async {
        let list = server.command("CLIENT LIST TYPE normal");
        list.lines().any(|line| line.contains("cmd=xreadgroup"))
    })
    .await;
    let started = Instant::now();
    let ended = consumer.shutdown(SOON).await;
    assert!(ended.is_ok(), "{ended:?}");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// The number of XREADGROUP commands so far.
fn reads(server: &RedisServer) -> u32 {
    let stats = server.command("INFO commandstats");
    let reads = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_xreadgroup:calls="));
    reads.map_or(0, |line| {
        let (calls, _) = line.split_once(',').expect("further numbers");
        calls.parse().expect("a number")
    })
}

/// It waits in Redis, and does not poll.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_reads_at_most_once_a_second() {
    let server = RedisServer::start();
    let handled = Handled::default();
    let started = Instant::now();
    let consumer = consume(&server, &handled).await;
    eventually("it reads again and again", SOON, || async {
        reads(&server) >= 4
    })
    .await;
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let orders = Producer::<u32>::builder(STREAM, connect(&server).await).build();
    let published = orders.expect("good settings").publish("key", &7).await;
    published.expect("published");
    eventually("it is handled", SOON, || async { count(&handled) == 1 }).await;
    consumer.shutdown(SOON).await.expect("it ends");
}

/// One of two processes is killed, and one stopped for longer than its leases last.
#[tokio::test(flavor = "multi_thread")]
async fn events_take_effect_once_although_consumers_are_killed_and_stopped() {
    let plan = Plan {
        processes: 2,
        events: 2_000,
        pace: Duration::from_millis(20),
        calm: Duration::from_millis(200),
        faults: 2,
        limit: SOON,
    };
    let came = run(Path::new(env!("CARGO_BIN_EXE_torture")), plan).await;
    println!("{came:?}");
    assert_eq!((came.twice, came.lost, came.hung), (0, 0, 0), "{came:?}");
    assert_eq!((came.faults.kills, came.faults.stops), (1, 1));
}
