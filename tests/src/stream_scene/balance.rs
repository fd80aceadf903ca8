//! The books: what was published, what is recorded, and what the ledger has accepted.

use std::collections::HashMap;

use resilience_core::stream::{
    Action, Begin, Begun, Join, Read, Settled, Settlement, Start, StreamBroker,
};
use resilience_redis::RedisStreams;

use super::{GROUP, STREAM, ledger::Entries};

const CHECKER: &str = "checker";
const HOUR: u64 = 3_600_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Balance {
    /// Events that took effect after an attempt that was recorded, or twice in one attempt.
    pub(super) twice: usize,
    /// Events that were published, and have no effect, or none that is recorded.
    pub(super) lost: usize,
    /// Events that took more than one attempt at their effect.
    pub(super) doubted: usize,
}

/// Reads the whole stream again, as a consumer of the group: what is recorded is found by beginning each effect again.
pub(super) async fn balance(broker: &RedisStreams, events: u64, entries: &Entries) -> Balance {
    let recorded = recorded(broker).await;
    let mut balance = Balance::default();
    for event in 0..events {
        let writes = entries.writes.get(&event).map_or(&[][..], Vec::as_slice);
        let fences: Vec<u64> = writes.iter().map(|(fence, _)| *fence).collect();
        balance.enter(&fences, recorded.get(&event).copied().flatten());
    }
    balance
}

impl Balance {
    /// One event: the fences of its writes, and the one that is recorded.
    fn enter(&mut self, fences: &[u64], recorded: Option<u64>) {
        self.doubted += usize::from(fences.len() > 1);
        let Some(fence) = recorded.filter(|fence| fences.contains(fence)) else {
            self.lost += 1;
            return;
        };
        let is_last = fences.last() == Some(&fence);
        let is_strict = fences.is_sorted_by(|a, b| a < b);
        self.twice += usize::from(!is_last || !is_strict);
    }
}

/// The fences that are recorded, by event; nothing for one that has no record.
async fn recorded(broker: &RedisStreams) -> HashMap<u64, Option<u64>> {
    let join = Join {
        consumer: CHECKER.into(),
        lease_ms: HOUR,
        start: Start::Oldest,
        resume: None,
        keep_ms: HOUR,
    };
    broker.join(STREAM, GROUP, &join).await.expect("joined");
    let sought = broker.seek(STREAM, GROUP, Start::Oldest).await;
    assert_eq!(sought, Ok(true));
    let mut recorded = HashMap::new();
    loop {
        let read = Read {
            streams: &[STREAM],
            consumer: CHECKER,
            max: 500,
            block_ms: 0,
        };
        let batch = broker.read(GROUP, read).await.expect("an answer");
        if batch.deliveries.is_empty() {
            return recorded;
        }
        let messages = batch.deliveries.iter().map(|it| {
            let message = it.message.as_ref().expect("a message");
            (it.position, message)
        });
        let begins: Vec<_> = messages
            .clone()
            .map(|(position, message)| Begin {
                position,
                key: message.envelope.id.clone(),
                keep_ms: HOUR,
            })
            .collect();
        let begun = broker.begin(STREAM, GROUP, CHECKER, &begins).await;
        for ((_, message), begun) in messages.clone().zip(begun.expect("an answer")) {
            let event = message.envelope.id.parse().expect("a number");
            let fence = match begun {
                Begun::Done { outcome } => String::from_utf8_lossy(&outcome).parse().ok(),
                _ => None,
            };
            assert!(recorded.insert(event, fence).is_none(), "stored twice");
        }
        let settlement = |it: &Begin| Settlement {
            position: it.position,
            action: Action::Ack(None),
        };
        let settlements: Vec<_> = begins.iter().map(settlement).collect();
        let settled = broker.settle(STREAM, GROUP, CHECKER, &settlements).await;
        let is_done = |it: &Settled| *it == Settled::Done;
        assert!(settled.expect("an answer").iter().all(is_done));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_without_a_record_after_it_and_twice_in_an_attempt_are_found() {
        let of = |fences: &[u64], recorded| {
            let mut balance = Balance::default();
            balance.enter(fences, recorded);
            (balance.twice, balance.lost, balance.doubted)
        };
        assert_eq!(of(&[7], Some(7)), (0, 0, 0));
        assert_eq!(of(&[5, 7], Some(7)), (0, 0, 1), "the first one died");
        assert_eq!(of(&[7, 9], Some(7)), (1, 0, 1), "after the record");
        assert_eq!(of(&[7, 7], Some(7)), (1, 0, 1), "twice in one attempt");
        assert_eq!(of(&[7], None), (0, 1, 0), "not recorded");
        assert_eq!(of(&[7], Some(9)), (0, 1, 0), "recorded without an effect");
        assert_eq!(of(&[], None), (0, 1, 0), "never handled");
    }
}
