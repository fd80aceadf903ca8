//! "My queue delivers every message at least once. My customers want to be charged once."
//!
//! A consumer does what a message asks for under the message's id: its effect happens once, though the message comes
//! again, its handler fails half way, and two consumers get it at the same time.
//!
//! ```text
//! cargo run -p resilience-examples --example queue_consumer
//! ```
//!
//! What it shows:
//! 1. A message that comes again is answered from the record.
//! 2. A handler that fails gives the message back, and goes on from its checkpoint when it comes again; what it calls
//!    gets the same key both times.
//! 3. Two consumers with one message: one works, the other waits for its outcome.
//! 4. A message that was redelivered because its consumer was given up on: the work goes on, and counts once.
//!
//! The records are kept in this process; with several consumers, give the handle a store that they share.

use std::{
    collections::{HashMap, VecDeque},
    error::Error as StdError,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use resilience_core::{
    Error, Idempotency, Rejected,
    idempotency::{Attempt, Fingerprint, Key, Outcome},
};
use tokio::time::{sleep, timeout};

type BoxError = Box<dyn StdError + Send + Sync>;

/// What the queue holds: it does not forget a message before it is acknowledged.
#[derive(Clone, Debug)]
struct Message {
    id: &'static str,
    cents: u32,
    /// Number of times that the handler fails after the charge and before the mail.
    fails: u32,
}

/// The payment service: charges once per key, as such services do, and keeps count of what it was asked.
#[derive(Clone, Debug, Default)]
struct Payments(Arc<Mutex<Ledger>>);

#[derive(Debug, Default)]
struct Ledger {
    charges: HashMap<String, u32>,
    asked: u32,
    mails: u32,
}

/// What was seen, for the tests.
#[derive(Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    delivered: u32,
    handled: u32,
    replayed: u32,
    charged_cents: u32,
    charges: usize,
    mails: u32,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    run().await.map(drop)
}

async fn run() -> Result<Seen, BoxError> {
    let consumer = Consumer::new()?;
    let mut seen = Seen::default();
    comes_again(&consumer, &mut seen).await?;
    fails_half_way(&consumer, &mut seen).await?;
    two_at_once(&consumer, &mut seen).await?;
    given_up_on(&consumer, &mut seen).await?;
    let ledger = consumer.payments.ledger();
    seen.charged_cents = ledger.charges.values().sum();
    seen.charges = ledger.charges.len();
    seen.mails = ledger.mails;
    println!("in the end: {seen:?}");
    Ok(seen)
}

#[derive(Clone)]
struct Consumer {
    once: Idempotency,
    payments: Payments,
}

impl Consumer {
    fn new() -> Result<Self, BoxError> {
        let once = Idempotency::builder("orders")
            // Longer than the longest time after which a message may come again.
            .ttl(Duration::from_secs(7 * 86_400))
            .wait(16, Duration::from_secs(5))
            .build()?;
        Ok(Self {
            once,
            payments: Payments::default(),
        })
    }

    /// What is acknowledged when it is `Ok`, and comes again when it is not.
    async fn handle(&self, message: Message) -> Result<Outcome<String>, Error<io::Error>> {
        // The id says which message it is, the fingerprint that it is still the same.
        let cents = message.cents.to_be_bytes();
        let key = Key::new(message.id)
            .scope("queue:orders")
            .fingerprint(Fingerprint::of([cents.as_slice()]));
        let payments = self.payments.clone();
        self.once
            .run(key, move |attempt| async move {
                charge_and_mail(&payments, &message, &attempt).await
            })
            .await
    }
}

async fn charge_and_mail(
    payments: &Payments,
    message: &Message,
    attempt: &Attempt,
) -> Result<String, io::Error> {
    let receipt: Option<String> = attempt.checkpoint_as().map_err(io::Error::other)?;
    let receipt = match receipt {
        Some(receipt) => receipt,
        None => {
            let receipt = payments.charge(&attempt.child_key("charge"), message.cents);
            sleep(Duration::from_millis(50)).await;
            attempt
                .save_checkpoint_as(&receipt)
                .await
                .map_err(io::Error::other)?;
            receipt
        }
    };
    if attempt.number() <= message.fails {
        return Err(io::Error::other("the mail server is away"));
    }
    payments.ledger().mails += 1;
    Ok(receipt)
}

impl Payments {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn charge(&self, key: &str, cents: u32) -> String {
        let mut ledger = self.ledger();
        ledger.asked += 1;
        ledger.charges.insert(key.to_owned(), cents);
        format!("receipt {}", &key[..8])
    }
}

/// Takes messages until none is left; those that fail are put back.
async fn consume(
    consumer: &Consumer,
    messages: impl IntoIterator<Item = Message>,
    seen: &mut Seen,
) -> Result<(), Rejected> {
    let mut queue: VecDeque<Message> = messages.into_iter().collect();
    while let Some(message) = queue.pop_front() {
        seen.delivered += 1;
        match consumer.handle(message.clone()).await {
            Ok(outcome) => {
                let how = match outcome.replayed() {
                    Some(age) => format!("done {age:?} ago"),
                    None => String::from("done now"),
                };
                seen.handled += 1;
                seen.replayed += u32::from(outcome.replayed().is_some());
                println!("  {}: {} ({how})", message.id, outcome.value);
            }
            Err(Error::Service(error)) => {
                println!("  {}: {error}, comes again", message.id);
                queue.push_back(message);
            }
            Err(Error::Rejected(rejected)) => return Err(rejected),
        }
    }
    Ok(())
}

fn message(id: &'static str, fails: u32) -> Message {
    Message {
        id,
        cents: 2_000,
        fails,
    }
}

async fn comes_again(consumer: &Consumer, seen: &mut Seen) -> Result<(), BoxError> {
    println!("a message that comes three times:");
    consume(consumer, (0..3).map(|_| message("m-1", 0)), seen).await?;
    Ok(())
}

async fn fails_half_way(consumer: &Consumer, seen: &mut Seen) -> Result<(), BoxError> {
    println!("a handler that fails twice between the charge and the mail:");
    let before = consumer.payments.ledger().asked;
    consume(consumer, [message("m-2", 2)], seen).await?;
    let asked = consumer.payments.ledger().asked - before;
    println!("  the payment service was asked {asked} time(s)");
    Ok(())
}

async fn two_at_once(consumer: &Consumer, seen: &mut Seen) -> Result<(), BoxError> {
    println!("two consumers with the same message:");
    let mut other = Seen::default();
    let (one, two) = tokio::join!(
        consume(consumer, [message("m-3", 0)], seen),
        consume(consumer, [message("m-3", 0)], &mut other),
    );
    one.and(two)?;
    seen.delivered += other.delivered;
    seen.handled += other.handled;
    seen.replayed += other.replayed;
    Ok(())
}

async fn given_up_on(consumer: &Consumer, seen: &mut Seen) -> Result<(), BoxError> {
    println!("a consumer that is given up on after 10 ms, in the middle of its work:");
    let handling = consumer.handle(message("m-4", 0));
    let given_up = timeout(Duration::from_millis(10), handling).await.is_err();
    seen.delivered += 1;
    println!("  given up: {given_up}");
    consume(consumer, [message("m-4", 0)], seen).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_message_takes_effect_once_however_often_it_comes() {
        let seen = run().await.unwrap();
        let expected = Seen {
            delivered: 3 + 3 + 2 + 2,
            handled: 3 + 1 + 2 + 1,
            replayed: 2 + 1 + 1,
            charged_cents: 4 * 2_000,
            charges: 4,
            mails: 4,
        };
        assert_eq!(seen, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn the_checkpoint_saves_the_second_charge() {
        let consumer = Consumer::new().unwrap();
        consume(&consumer, [message("m", 3)], &mut Seen::default())
            .await
            .unwrap();
        let ledger = consumer.payments.ledger();
        assert_eq!((ledger.asked, ledger.mails), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn another_message_under_the_same_id_is_refused() {
        let consumer = Consumer::new().unwrap();
        assert!(consumer.handle(message("m", 0)).await.is_ok());
        let other = Message {
            cents: 1,
            ..message("m", 0)
        };
        let refused = consumer.handle(other).await.unwrap_err();
        let reason = refused.rejected().unwrap().reason();
        assert_eq!(reason, resilience_core::Reason::KeyReused);
    }
}
