//! The work of the relay that has the lease.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use ::sqlx::Error;
use tokio::time::Instant;

use super::{
    PATTERN, Shared,
    builder::Settings,
    set_aside::SetAside,
    steps::{Begin, Database, Finished, Turn},
};
use crate::{
    backoff::Delays,
    fleet::{Probe, instance_id, millis},
    sql::outbox::{
        batch::{Batch, Refused, Run, Then},
        dialect::Dialect,
        lease::certain_until,
    },
    stream::{
        Published,
        broker::{StoreError, StreamBroker},
    },
};

/// One lease of a relay.
pub(super) struct Term {
    fence: i64,
    /// No other relay has taken the lease before.
    certain: Instant,
    /// When the lease is renewed next.
    pub(super) renew_at: Instant,
    /// A name of this lease's own: what is restored from a backup, or has the same outbox' name, repeats no numbers.
    producer: Arc<str>,
    next_number: u64,
    /// Whether the batch that another relay may have left was looked for.
    adopted: bool,
    batch: Option<Batch>,
    aside: SetAside,
    delays: Delays,
}

/// What comes after a piece of work.
pub(super) enum Next {
    /// More work.
    Now,
    /// The broker takes nothing now.
    Pause(Duration),
    /// The broker has not answered for as long as a lease lasts: perhaps it answers another relay.
    CutOff,
    /// There is nothing to publish, or not before this moment.
    Idle(Option<Instant>),
    /// Another relay has the lease.
    Lost,
    /// The table has a row of a format of a later version: for another relay.
    Unreadable(i32),
}

/// What the work needs.
pub(super) struct Context<DB: Dialect> {
    pub(super) database: Database<DB>,
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Settings,
}

/// After the last of the pauses.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Term {
    /// A lease that was taken by a request sent at `sent`.
    pub(super) fn new(fence: i64, sent: Instant, settings: &Settings) -> Self {
        let mut term = Self {
            fence,
            certain: sent,
            renew_at: sent,
            producer: format!("outbox-{}{}", instance_id(None), instance_id(None)).into(),
            next_number: 1,
            adopted: false,
            batch: None,
            aside: SetAside::default(),
            delays: settings.backoff.delays(),
        };
        term.renewed(sent, settings);
        term
    }

    fn renewed(&mut self, sent: Instant, settings: &Settings) {
        self.certain = certain_until(sent, settings.lease);
        self.renew_at = sent + settings.lease / 4;
    }

    pub(super) const fn fence(&self) -> i64 {
        self.fence
    }

    /// Renews the lease; whether it is still this relay's.
    pub(super) async fn renew<DB: Dialect>(
        &mut self,
        context: &Context<DB>,
    ) -> Result<bool, Error> {
        let sent = Instant::now();
        let held = context.database.renew(self.fence).await?;
        if held {
            self.renewed(sent, &context.settings);
        }
        Ok(held)
    }

    /// One transaction, or as much of a batch as fits between two renewals.
    pub(super) async fn work<DB: Dialect>(&mut self, context: &Context<DB>) -> Result<Next, Error> {
        let until = Instant::now() + context.settings.lease / 4;
        let budget = context.shared.client.budget();
        while let Some(run) = self.batch.as_mut().and_then(Batch::next) {
            if Instant::now() + budget >= self.certain && !self.renew(context).await? {
                return Ok(Next::Lost);
            }
            let answer = publish(context, &run).await;
            match self.answered(context, &run, &answer).await {
                Then::GoOn if Instant::now() < until => {}
                Then::GoOn => return Ok(Next::Now),
                Then::Pause
                    if context.shared.client.unavailable_for() >= context.settings.lease =>
                {
                    return Ok(Next::CutOff);
                }
                Then::Pause => {
                    return Ok(Next::Pause(self.delays.next().unwrap_or(LONGEST_PAUSE)));
                }
                Then::Refused(refused) => {
                    told_of(&context.shared, &refused);
                    self.aside
                        .add(refused, Instant::now(), &context.settings.backoff);
                    break;
                }
            }
        }
        self.turn(context).await
    }

    async fn answered<DB: Dialect>(
        &mut self,
        context: &Context<DB>,
        run: &Run,
        answer: &Result<Vec<Published>, StoreError>,
    ) -> Then {
        let Shared { client, totals, .. } = &*context.shared;
        match answer {
            Ok(published) => {
                for one in published {
                    let total = match one {
                        Published::Duplicate => &totals.duplicates,
                        _ => &totals.stored,
                    };
                    total.fetch_add(1, Relaxed);
                }
                self.aside.stored();
                self.delays = context.settings.backoff.delays();
            }
            Err(error) => {
                totals.broker_errors.fetch_add(1, Relaxed);
                tracing::debug!(target: "resilience", pattern = PATTERN, name = &*context.shared.name, %error, "the broker took no events of the outbox");
                // Refused, or not reached?
                let probe = |broker| Probe::probe(broker, &run.stream);
                if !error.ambiguous && client.attempt(probe).await.is_err() {
                    return Then::Pause;
                }
            }
        }
        let batch = self.batch.as_mut();
        batch.map_or(Then::GoOn, |batch| batch.answered(run, answer))
    }

    /// Ends the batch and begins the next one.
    async fn turn<DB: Dialect>(&mut self, context: &Context<DB>) -> Result<Next, Error> {
        let settings = &context.settings;
        let finished = self.finished(settings);
        let now = Instant::now();
        let without = self.aside.without(now);
        let begin = Begin {
            producer: self.producer.to_string(),
            first: self.next_number,
            most: if self.aside.is_full() {
                0
            } else {
                settings.batch
            },
            without,
            adopt: !self.adopted,
        };
        let turn = context.database.turn(self.fence, &finished, &begin).await?;
        if let Turn::Lost = turn {
            return Ok(Next::Lost);
        }
        self.renewed(now, settings);
        self.aside.counted(&finished.refused);
        note_dead(&context.shared, &finished);
        (self.adopted, self.batch) = (true, None);
        match turn {
            Turn::Batch(begun, rows) => {
                if *begun.producer == *self.producer {
                    self.next_number += begun.sequences.len() as u64;
                }
                self.batch = Some(Batch::new(&begun, rows, millis(settings.remember)));
                Ok(Next::Now)
            }
            Turn::Unreadable(format) => Ok(Next::Unreadable(format)),
            Turn::Empty | Turn::Lost => Ok(Next::Idle(self.aside.next_due())),
        }
    }

    fn finished(&self, settings: &Settings) -> Finished {
        let mut finished = Finished {
            stored: Vec::new(),
            refused: self.aside.to_count(settings.max_attempts),
        };
        if let Some(batch) = &self.batch {
            finished.stored = batch.stored();
            let invalid = batch
                .invalid()
                .map(|(row, reason)| (row, reason.to_owned(), true));
            finished.refused.extend(invalid);
        }
        finished
    }

    /// The last step: notes what was sent, and gives the lease back.
    pub(super) async fn leave<DB: Dialect>(&mut self, context: &Context<DB>) -> Result<(), Error> {
        let finished = self.finished(&context.settings);
        context.database.leave(self.fence, &finished).await
    }
}

async fn publish<DB: Dialect>(
    context: &Context<DB>,
    run: &Run,
) -> Result<Vec<Published>, StoreError> {
    let step = |broker| StreamBroker::publish(broker, &run.stream, &run.publish);
    context.shared.client.attempt(step).await
}

fn told_of(shared: &Shared, refused: &Refused) {
    let Refused {
        id,
        attempts,
        reason,
        ..
    } = refused;
    tracing::warn!(
        target: "resilience", pattern = PATTERN, name = &*shared.name, id = &**id, attempts, reason,
        "event refused by the broker"
    );
}

fn note_dead(shared: &Shared, finished: &Finished) {
    for (sequence, reason, _) in finished.refused.iter().filter(|it| it.2) {
        shared.totals.dead.fetch_add(1, Relaxed);
        tracing::warn!(
            target: "resilience", pattern = PATTERN, name = &*shared.name, sequence, reason,
            "event became a dead letter"
        );
    }
}
