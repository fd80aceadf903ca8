//! What the loop of a consumer asks of the broker.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;
use tower_service::Service;

use super::{
    Message,
    driver::Driver,
    outcomes::{Outcome, Step},
};
use crate::{
    classify::Classify,
    error::ServiceError,
    fleet::{jittered, millis},
    stream::{
        announce,
        broker::{StreamBroker, validate::MAX_BATCH},
        steps::{Begin, Claim, Delivery, Join, Read, Resume},
    },
};

/// Longest wait of one read: a shutdown waits for its end.
const BLOCK: Duration = Duration::from_secs(1);

impl<T, S, C> Driver<T, S, C>
where
    T: Send + Sync + 'static,
    S: Service<Message<T>> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: ServiceError + fmt::Display + Send,
    C: Classify<S::Response, S::Error> + Clone + Send + Sync + 'static,
{
    fn begin_step(&mut self, step: Step, outcome: impl Future<Output = Outcome> + Send + 'static) {
        let id = self.tasks.spawn(outcome).id();
        self.steps.insert(id, step);
    }

    pub(super) fn join(&mut self, now: Instant) {
        if self.does(Step::Join) || self.at.join.is_none_or(|at| at > now) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let settings = &shared.settings;
        let join = Join {
            consumer: Arc::clone(&shared.consumer),
            lease_ms: millis(settings.lease),
            start: settings.start,
            resume: (self.incarnation != 0).then(|| Resume {
                incarnation: self.incarnation,
                after: self.held.settled_up_to(),
            }),
            keep_ms: millis(settings.keep),
        };
        let announces = self.at.announce <= now;
        if announces {
            self.at.announce = now + jittered(announce::INTERVAL);
        }
        self.begin_step(Step::Join, async move {
            let step = |broker| StreamBroker::join(broker, &shared.stream, &shared.group, &join);
            let announced = async {
                if announces {
                    announce::announce(&shared.client, &shared.stream).await;
                }
            };
            let (joined, ()) = tokio::join!(shared.client.call(step), announced);
            Outcome::Joined(joined)
        });
    }

    pub(super) fn read(&mut self, now: Instant) {
        if self.does(Step::Read) || self.at.read > now || !self.may_read() {
            return;
        }
        let (shared, max) = (Arc::clone(&self.shared), self.room().min(MAX_BATCH));
        self.begin_step(Step::Read, async move {
            let read = Read {
                streams: &[&shared.stream],
                consumer: &shared.consumer,
                max,
                block_ms: millis(BLOCK),
            };
            let budget = BLOCK + shared.client.budget();
            let step = |broker| StreamBroker::read(broker, &shared.group, read);
            let batch = shared.client.call_within(budget, step).await;
            Outcome::Read(batch)
        });
    }

    pub(super) fn claim(&mut self, now: Instant) {
        if self.does(Step::Claim) || self.at.claim > now {
            return;
        }
        let room = if self.is_paused() { 0 } else { self.room() };
        let (shared, max) = (Arc::clone(&self.shared), room.min(MAX_BATCH));
        self.begin_step(Step::Claim, async move {
            let asked = Instant::now();
            let claim = Claim {
                consumer: &shared.consumer,
                max,
            };
            let step = |broker| StreamBroker::claim(broker, &shared.stream, &shared.group, claim);
            let claimed = shared.client.call(step).await;
            Outcome::Claimed {
                asked,
                max,
                claimed,
            }
        });
    }

    /// Renews the leases of all messages that this consumer holds.
    pub(super) fn renew(&mut self) {
        let now = Instant::now();
        if self.does(Step::Extend) || self.at.extend > now {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.at.extend = now + jittered(shared.settings.lease / 3);
        self.at.join = Some(now);
        let held = self.held.to_extend(now, shared.settings.longest_lease);
        if held.is_empty() {
            return;
        }
        self.begin_step(Step::Extend, async move {
            let (asked, mut answers) = (Instant::now(), Vec::new());
            for some in held.chunks(MAX_BATCH) {
                let (stream, group) = (&shared.stream, &shared.group);
                let step =
                    |broker| StreamBroker::extend(broker, stream, group, &shared.consumer, some);
                match shared.client.attempt(step).await {
                    Ok(held) => answers.extend(some.iter().copied().zip(held)),
                    Err(_) => {
                        return Outcome::Extended {
                            asked,
                            answers,
                            all: false,
                        };
                    }
                }
            }
            Outcome::Extended {
                asked,
                answers,
                all: true,
            }
        });
    }

    /// Settles what has ended.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        if self.to_settle.is_empty() || self.does(Step::Settle) || self.at.settle > now {
            return;
        }
        let most = self.to_settle.len().min(MAX_BATCH);
        let batch: Vec<_> = self.to_settle.drain(..most).collect();
        self.settling = batch.iter().map(|it| it.settlement.position).collect();
        let shared = Arc::clone(&self.shared);
        self.begin_step(Step::Settle, async move {
            let settlements: Vec<_> = batch.iter().map(|it| it.settlement.clone()).collect();
            let (stream, group) = (&shared.stream, &shared.group);
            let step = |broker| {
                StreamBroker::settle(broker, stream, group, &shared.consumer, &settlements)
            };
            let answers = shared.client.attempt(step).await;
            Outcome::Settled { batch, answers }
        });
    }

    /// Begins the effects of messages that were delivered.
    pub(super) fn begin_effects(&mut self, deliveries: Vec<Delivery>, keep: Duration) {
        self.beginning += deliveries.len();
        let shared = Arc::clone(&self.shared);
        let begin = |it: &Delivery| Begin {
            position: it.position,
            key: it
                .message
                .as_ref()
                .map_or_else(|| "-".into(), |it| Arc::clone(&it.envelope.id)),
            keep_ms: millis(keep),
        };
        let begins: Vec<_> = deliveries.iter().map(begin).collect();
        self.begin_step(Step::Begin, async move {
            let until = Instant::now() + shared.settings.lease / 2;
            let mut asked = Instant::now();
            let (stream, group) = (&shared.stream, &shared.group);
            let begun = shared.client.call_until(until, |broker| {
                asked = Instant::now();
                StreamBroker::begin(broker, stream, group, &shared.consumer, &begins)
            });
            let begun = begun.await;
            Outcome::Begun {
                asked,
                deliveries,
                begun,
            }
        });
    }
}
