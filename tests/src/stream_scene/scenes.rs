//! What is to be endured.

use std::{path::Path, time::Duration};

use resilience_core::{
    Producer,
    stream::{Event, StreamBroker},
};
use resilience_redis::RedisStreams;
use tokio::time::{Instant, sleep};

use super::{
    GROUP, SOON, STREAM,
    balance::{Balance, balance},
    connect,
    fleet::{Faults, Fleet},
    ledger::Ledger,
    until,
};
use crate::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
};

/// Events of as many keys.
const KEYS: u64 = 64;
const BATCH: u64 = 50;

/// What is to be endured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Processes that consume.
    pub processes: usize,
    /// Events that are published.
    pub events: u64,
    /// Time from one batch of 50 to the next.
    pub pace: Duration,
    /// Time from one fault to the next.
    pub calm: Duration,
    /// Most faults: of each kind in turn.
    pub faults: usize,
    /// After this it has failed.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Came {
    /// Events that took effect more than once, although one attempt was recorded.
    pub twice: usize,
    /// Events without an effect, or without its record.
    pub lost: usize,
    /// Events that took more than one attempt.
    pub doubted: usize,
    /// Writes that came too late, and were refused by their fence.
    pub fenced: usize,
    /// Processes that did not end gracefully.
    pub hung: usize,
    /// What the processes went through.
    pub faults: Faults,
    /// How long it took.
    pub took: Duration,
}

/// Publishes events, and has processes consume them that are killed, stopped and cut off. `program` is a binary that knows
/// [`INSTANCE`](super::INSTANCE).
///
/// # Panics
/// If an event is a dead letter or stored twice, or it takes longer than the limit.
pub async fn run(program: &Path, plan: Plan) -> Came {
    let began = Instant::now();
    let server = RedisServer::start();
    let ledger = Ledger::open().await;
    let broker = connect(&server.url()).await;
    let mut fleet = Fleet::start(program, &server, &ledger, plan.processes, "works").await;
    let publishing = tokio::spawn(publish(server.addr().to_owned(), plan.events, plan.pace));
    let mut next = Instant::now() + plan.calm;
    let mut number = 0;
    until("everything is settled", plan.limit, async || {
        if number < plan.faults && Instant::now() >= next {
            fleet.suffer(number).await;
            number += 1;
            next = Instant::now() + plan.calm;
        }
        let is_over = publishing.is_finished() && number >= plan.faults.min(4);
        is_over && is_settled(&broker).await
    })
    .await;
    publishing.await.expect("all are published");
    let faults = fleet.faults;
    let hung = fleet.end().await;
    let entries = ledger.entries().clone();
    let Balance {
        twice,
        lost,
        doubted,
    } = balance(&broker, plan.events, &entries).await;
    Came {
        twice,
        lost,
        doubted,
        fenced: entries.fenced,
        hung,
        faults,
        took: began.elapsed(),
    }
}

async fn is_settled(broker: &RedisStreams) -> bool {
    let Ok(Some(state)) = broker.state(STREAM).await else {
        return false;
    };
    let group = state.groups.iter().find(|it| &*it.group == GROUP);
    let Some(group) = group else { return false };
    assert_eq!(group.dead, 0, "nothing fails");
    group.lag + group.held + group.waiting == 0
}

/// Publishes each event once, over connections that are cut now and then.
async fn publish(server: String, events: u64, pace: Duration) {
    let mut proxy = Proxy::to(server.parse().expect("an address")).await;
    let proxy = proxy.as_mut().expect("a port");
    let broker = connect(&format!("redis://{}", proxy.address())).await;
    let producer = Producer::<u64>::builder(STREAM, broker).build();
    let producer = producer.expect("good settings");
    let began = Instant::now();
    for first in (0..events).step_by(BATCH as usize) {
        if fastrand::u8(..100) == 0 {
            proxy.set(Weather::Reset).await;
            proxy.set(Weather::Fine).await;
        }
        let numbers: Vec<u64> = (first..(first + BATCH).min(events)).collect();
        loop {
            let event = |it| Event::new(it).key(key(*it)).id(it.to_string());
            let batch = numbers.iter().map(event);
            if producer
                .publish_numbered("shop", first + 1, batch)
                .await
                .is_ok()
            {
                break;
            }
            assert!(began.elapsed() < SOON * 5, "not published: {first}");
            sleep(Duration::from_millis(20)).await;
        }
        sleep(pace).await;
    }
}

fn key(event: u64) -> String {
    (event % KEYS).to_string()
}

/// Events that one consumer handled before an earlier one with the same key, without a fault but a script cache that is emptied.
///
/// # Panics
/// If it takes long.
pub async fn out_of_order(program: &Path, events: u64) -> usize {
    let server = RedisServer::start();
    let ledger = Ledger::open().await;
    let broker = connect(&server.url()).await;
    let fleet = Fleet::start(program, &server, &ledger, 1, "works").await;
    publish(server.addr().to_owned(), events, Duration::ZERO).await;
    until("everything is settled", SOON * 5, async || {
        sleep(Duration::from_millis(100)).await;
        let _ = server.command("SCRIPT FLUSH");
        is_settled(&broker).await
    })
    .await;
    assert_eq!(fleet.end().await, 0, "it ends gracefully");
    let order = ledger.entries().order.clone();
    assert_eq!(order.len() as u64, events);
    let mut last = vec![None; KEYS as usize];
    let is_late = |event: &&u64| {
        let last = &mut last[(**event % KEYS) as usize];
        let is_late = *last > Some(**event);
        *last = (*last).max(Some(**event));
        is_late
    };
    order.iter().filter(is_late).count()
}

/// How long the events of processes that were killed had to wait for their next delivery, each.
///
/// # Panics
/// If one is not delivered again.
pub async fn redelivered_after(program: &Path, kills: u64) -> Vec<Duration> {
    let server = RedisServer::start();
    let ledger = Ledger::open().await;
    let broker = connect(&server.url()).await;
    let mut fleet = Fleet::start(program, &server, &ledger, 2, "hangs").await;
    let producer = Producer::<u64>::builder(STREAM, broker).build();
    let producer = producer.expect("good settings");
    let mut took = Vec::new();
    for event in 0..kills {
        let published = producer.publish_event(Event::new(&event).id(event.to_string()));
        published.await.expect("published");
        let holder = async || {
            let entries = ledger.entries();
            let writes = entries.writes.get(&event);
            writes.map_or(Vec::new(), Clone::clone)
        };
        until("it is held", SOON, async || holder().await.len() == 1).await;
        let (_, process) = holder().await[0];
        fleet.kill_one(process).await;
        let killed = Instant::now();
        until("it comes again", SOON, async || holder().await.len() == 2).await;
        took.push(killed.elapsed());
        fleet.add().await;
    }
    took
}
