//! Consumers that charge for orders, and the bank where they do.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::{
    FleetOptions,
    stream::{
        Action, Claim, Consumer, Delivery, InProcessStreams, Join, Message, Position, Read,
        Settlement, Start, StreamBroker,
    },
};

use super::{Acknowledges, GROUP, LEASE, STREAM, process::Life};

/// Number of messages that a process handles at a time, or reads at once.
const BATCH: usize = 3;
/// How long a read waits, and how often a consumer looks for messages of processes that were killed.
const POLL: Duration = Duration::from_millis(50);
/// A day.
const KEEP_MS: u64 = 86_400_000;

/// Takes charges; compares fences, if there are some.
#[derive(Debug, Default)]
pub(super) struct Bank {
    orders: Mutex<BTreeMap<u64, Charged>>,
    refused: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Charged {
    times: u32,
    /// The highest one that it was asked with.
    fence: u64,
}

impl Bank {
    /// Charges for an order, unless an attempt with a higher fence has asked before. Whether it did.
    fn charge(&self, order: u64, fence: u64) -> bool {
        let mut orders = self.lock();
        let it = orders.entry(order).or_default();
        if fence < it.fence {
            self.refused.fetch_add(1, SeqCst);
            return false;
        }
        it.fence = fence;
        it.times += 1;
        true
    }

    /// Whether an order was charged for. From then on, attempts with a lower fence are refused.
    fn was_charged(&self, order: u64, fence: u64) -> bool {
        let mut orders = self.lock();
        let it = orders.entry(order).or_default();
        it.fence = it.fence.max(fence);
        it.times > 0
    }

    /// How often an order was charged for.
    pub(super) fn charges(&self, order: u64) -> u32 {
        self.lock().get(&order).map_or(0, |it| it.times)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Charged>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As programs do with XREADGROUP, XAUTOCLAIM and XACK.
pub(super) async fn by_hand(
    broker: InProcessStreams,
    bank: Arc<Bank>,
    life: Life,
    acknowledges: Acknowledges,
) {
    let join = Join {
        consumer: life.name().into(),
        lease_ms: u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX),
        start: Start::Oldest,
        resume: None,
        keep_ms: KEEP_MS,
    };
    let joined = broker.join(STREAM, GROUP, &join).await;
    joined.expect("an in-process broker answers");
    loop {
        for message in next_messages(&broker, life.name()).await {
            let acknowledge = acknowledge(&broker, life.name(), message.position);
            if acknowledges == Acknowledges::Before {
                acknowledge.await;
                charge(&bank, &life, &message).await;
            } else {
                charge(&bank, &life, &message).await;
                acknowledge.await;
            }
        }
    }
}

async fn next_messages(broker: &InProcessStreams, consumer: &str) -> Vec<Delivery> {
    let claim = Claim {
        consumer,
        max: BATCH,
    };
    let claimed = broker.claim(STREAM, GROUP, claim).await;
    let claimed = claimed.map(|it| it.deliveries).unwrap_or_default();
    if !claimed.is_empty() {
        return claimed;
    }
    let read = Read {
        streams: &[STREAM],
        consumer,
        max: BATCH,
        block_ms: u64::try_from(POLL.as_millis()).unwrap_or(u64::MAX),
    };
    let read = broker.read(GROUP, read).await;
    read.map(|it| it.deliveries).unwrap_or_default()
}

async fn acknowledge(broker: &InProcessStreams, consumer: &str, position: Position) {
    let settlement = Settlement {
        position,
        action: Action::Ack(None),
    };
    let settled = broker.settle(STREAM, GROUP, consumer, &[settlement]).await;
    settled.expect("an in-process broker answers");
}

async fn charge(bank: &Bank, life: &Life, delivery: &Delivery) {
    let body = delivery.message.as_ref().map(|it| &*it.body);
    let order = body.and_then(|it| std::str::from_utf8(it).ok()?.parse().ok());
    life.step().await;
    bank.charge(order.expect("the number of an order"), 0);
    life.step().await;
}

/// A consumer of the toolkit.
pub(super) async fn ours(broker: InProcessStreams, bank: Arc<Bank>, life: Life) {
    let consumer = Consumer::<u64>::builder(STREAM, broker)
        .group(GROUP)
        .fleet(FleetOptions::new().instance(life.name()))
        .concurrency(BATCH)
        .lease(LEASE)
        .poll(POLL)
        // Processes are killed in the middle of the work far more often than in production.
        .max_deliveries(1_000)
        .effect_once()
        .build();
    let consumer = consumer.expect("good settings, and a runtime");
    let handler = move |order: Message<u64>| charge_once(Arc::clone(&bank), life.clone(), order);
    let served = consumer.run(handler).await;
    served.expect("the broker loses nothing");
}

/// Charges for an order. The bank tells apart attempts by their fence; where one came before, it is asked first.
async fn charge_once(
    bank: Arc<Bank>,
    life: Life,
    message: Message<u64>,
) -> Result<(), &'static str> {
    let (order, fence) = (*message.event(), message.fence().unwrap_or_default());
    if message.attempt() > 1 && bank.was_charged(order, fence) {
        return Ok(());
    }
    life.step().await;
    if !bank.charge(order, fence) {
        return Err("another process has taken over");
    }
    life.step().await;
    message.record(format!("order {order} is charged"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_that_was_asked_by_a_later_attempt_refuses_an_earlier_one() {
        let bank = Bank::default();
        assert!(!bank.was_charged(7, 2));
        assert!(!bank.charge(7, 1), "it was stopped meanwhile");
        assert!(bank.charge(7, 2) && bank.was_charged(7, 3));
        assert_eq!((bank.charges(7), bank.refused()), (1, 1));
        // Without fences, every charge counts.
        assert!(bank.charge(8, 0) && bank.charge(8, 0));
        assert_eq!((bank.charges(8), bank.charges(9)), (2, 0));
    }
}
