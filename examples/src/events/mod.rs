//! Orders as events, between services whose processes are killed.
//!
//! One service takes orders, keeps them in a table, and publishes each as an event; another one charges for them at a bank.
//! Processes of both are killed, which drops all their tasks wherever they wait, and stopped for longer than a lease; others
//! take over. The consumer is either written by hand over the broker, and acknowledges after the charge or before it, or is a
//! [`Consumer`](resilience_core::stream::Consumer). All over an in-process broker, which is not killed.

mod consumers;
mod process;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::stream::{
    Envelope, Event, InProcessStreams, Outgoing, Producer, Publish, RawMessage, StreamBroker,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use self::{
    consumers::{Bank, by_hand, ours},
    process::{Life, Lives},
};

const STREAM: &str = "orders";
const GROUP: &str = "billing";
/// Number of orders.
const ORDERS: u64 = 200;
/// Number of processes that charge.
const CONSUMERS: u64 = 3;
/// After which time the messages of a process that was killed are delivered to others.
const LEASE: Duration = Duration::from_millis(200);
/// How often it is looked whether all is done.
const LOOK: Duration = Duration::from_millis(20);

/// When a consumer acknowledges a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledges {
    /// By hand, after the charge.
    After,
    /// By hand, before the charge.
    Before,
    /// With the record of the charge, in one step.
    WithRecord,
}

impl Acknowledges {
    /// The name, as the JSON has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::After => "after",
            Self::Before => "before",
            Self::WithRecord => "with_record",
        }
    }
}

/// What became of the orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handled {
    pub(crate) acknowledges: Acknowledges,
    /// Orders that the service has noted as published.
    pub(crate) published: u64,
    /// Those that were charged once, more than once, and never.
    pub(crate) once: u64,
    pub(crate) repeatedly: u64,
    pub(crate) lost: u64,
    /// Those that were not settled when the run ended.
    pub(crate) unfinished: u64,
    /// Charges that the bank refused, because a later attempt had come to it before.
    pub(crate) refused: u64,
    /// Processes that were killed.
    pub(crate) killed: u64,
}

/// What the services do, in words.
pub(crate) fn settings() -> String {
    format!(
        "Events: a service publishes {ORDERS} orders, {CONSUMERS} processes of another one charge for them; all are killed at any \
         moment or stopped for longer than a lease of {} ms, and replaced. What was published and not noted is published again. \
         `plain` reads and acknowledges by hand: after the charge, and before it. `shared` is a consumer with `effect_once`, whose \
         bank compares fences. All over a broker in this process.",
        LEASE.as_millis()
    )
}

/// Plays with consumers of each kind at the same time, for at most so long, or until `stop` turns true.
pub(crate) async fn play(
    seed: u64,
    within: Duration,
    stop: watch::Receiver<bool>,
) -> (Vec<Handled>, Vec<Handled>) {
    let until = Instant::now() + within;
    let play = |how| Scene::new(how).play(seed, until, stop.clone());
    let (after, before, with_record) = tokio::join!(
        play(Acknowledges::After),
        play(Acknowledges::Before),
        play(Acknowledges::WithRecord)
    );
    (vec![after, before], vec![with_record])
}

/// What outlives the processes; clones are the same.
#[derive(Clone, Debug)]
struct Scene {
    acknowledges: Acknowledges,
    broker: InProcessStreams,
    /// The table of the service that takes orders: how many of them it has noted as published.
    noted: Arc<AtomicU64>,
    bank: Arc<Bank>,
}

impl Scene {
    fn new(acknowledges: Acknowledges) -> Self {
        Self {
            acknowledges,
            broker: InProcessStreams::new(),
            noted: Arc::default(),
            bank: Arc::default(),
        }
    }

    async fn play(self, seed: u64, until: Instant, mut stop: watch::Receiver<bool>) -> Handled {
        let (end, ended) = watch::channel(false);
        let mut processes = JoinSet::new();
        for number in 0..=CONSUMERS {
            let (scene, lives) = (self.clone(), Lives::new(seed ^ number, ended.clone()));
            // A thread for each: a process that is stopped stops no other.
            processes.spawn_blocking(move || match number {
                0 => lives.run(|life| scene.clone().publish(life)),
                _ => lives.run(|life| scene.clone().consume(life)),
            });
        }
        tokio::select! {
            _ = timeout_at(until, self.all_settled()) => {}
            _ = stop.wait_for(|&stop| stop) => {}
        }
        end.send_replace(true);
        let killed = processes.join_all().await.into_iter().sum();
        self.handled(killed).await
    }

    async fn all_settled(&self) {
        while self.noted.load(SeqCst) < ORDERS || self.unfinished().await > 0 {
            sleep(LOOK).await;
        }
    }

    /// Messages that the group has not settled.
    async fn unfinished(&self) -> u64 {
        let state = self.broker.state(STREAM).await.ok().flatten();
        let groups = state.map(|it| it.groups).unwrap_or_default();
        let group = groups.first();
        let of_group = group.map(|it| it.lag + it.held + it.waiting);
        // Before the first consumer has joined, there is none.
        of_group.unwrap_or_else(|| self.noted.load(SeqCst))
    }

    async fn handled(&self, killed: u64) -> Handled {
        let (published, unfinished) = (self.noted.load(SeqCst), self.unfinished().await);
        let charges: Vec<_> = (0..published).map(|it| self.bank.charges(it)).collect();
        let count = |is: fn(u32) -> bool| charges.iter().filter(|&&it| is(it)).count() as u64;
        Handled {
            acknowledges: self.acknowledges,
            published,
            once: count(|charges| charges == 1),
            repeatedly: count(|charges| charges > 1),
            lost: count(|charges| charges == 0).saturating_sub(unfinished),
            unfinished,
            refused: self.bank.refused(),
            killed,
        }
    }

    /// The service that takes orders. One that was published and not noted is published again by the next process.
    async fn publish(self, life: Life) {
        let producer = Producer::<u64>::builder(STREAM, self.broker.clone()).build();
        let producer = producer.expect("good settings, and a runtime");
        loop {
            let order = self.noted.load(SeqCst);
            if order == ORDERS {
                return std::future::pending().await;
            }
            life.step().await;
            let is_published = match self.acknowledges {
                Acknowledges::WithRecord => {
                    let event = Event::new(&order).id(format!("order-{order}"));
                    producer.publish_event(event).await.is_ok()
                }
                _ => self.publish_by_hand(order).await,
            };
            life.step().await;
            if is_published {
                self.noted.store(order + 1, SeqCst);
            }
        }
    }

    async fn publish_by_hand(&self, order: u64) -> bool {
        let envelope = Envelope {
            id: format!("{:x}", fastrand::u128(..)).into(),
            ..Envelope::default()
        };
        let message = RawMessage {
            envelope,
            body: order.to_string().into(),
        };
        let publish = Publish {
            messages: vec![Outgoing {
                message,
                delay_ms: 0,
            }],
            sequence: None,
        };
        self.broker.publish(STREAM, &publish).await.is_ok()
    }

    /// A process that charges.
    async fn consume(self, life: Life) {
        match self.acknowledges {
            Acknowledges::WithRecord => ours(self.broker, self.bank, life).await,
            how => by_hand(self.broker, self.bank, life, how).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn by_hand_orders_are_charged_twice_or_lost_and_with_a_record_neither() {
        let (_stop, stopped) = watch::channel(false);
        let (by_hand, ours) = play(7, Duration::from_secs(60), stopped).await;
        let [after, before, ours] = [by_hand[0], by_hand[1], ours[0]];
        let all = format!("{after:#?}\n{before:#?}\n{ours:#?}");
        for it in [after, before, ours] {
            assert_eq!((it.published, it.unfinished), (ORDERS, 0), "{all}");
            assert!(it.killed > 5, "{all}");
        }
        assert!(after.repeatedly > 0 && after.lost == 0, "{all}");
        assert!(before.lost > 0, "{all}");
        assert_eq!(
            (ours.once, ours.repeatedly, ours.lost),
            (ORDERS, 0, 0),
            "{all}"
        );
    }
}
