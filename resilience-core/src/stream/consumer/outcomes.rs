//! What comes back to the loop of a consumer, and what it does about it.

use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    task::{Id, JoinError},
    time::Instant,
};
use tower_service::Service;

use super::{
    Message,
    decision::{Decision, Ending},
    driver::{Driver, Running, Waiting},
    message,
    settings::LaneOf,
};
use crate::{
    classify::Classify,
    error::ServiceError,
    fleet::millis,
    stream::{
        broker::{StoreError, validate::MAX_OUTCOME},
        message::Position,
        steps::{
            Action, Batch, Begun, Claimed, Delivery, Effect, Held, Joined, JoinedGroup, Settled,
            Settlement,
        },
    },
    sync::lock,
};

/// How a task of a consumer ended.
pub(super) enum Outcome {
    Handled(Ending),
    Joined(Result<Joined, StoreError>),
    Read(Result<Batch, StoreError>),
    Claimed {
        asked: Instant,
        max: usize,
        claimed: Result<Claimed, StoreError>,
    },
    Extended {
        asked: Instant,
        answers: Vec<(Position, Held)>,
        /// Whether all were answered.
        all: bool,
    },
    Settled {
        batch: Vec<ToSettle>,
        answers: Result<Vec<Settled>, StoreError>,
    },
    Begun {
        asked: Instant,
        deliveries: Vec<Delivery>,
        begun: Result<Vec<Begun>, StoreError>,
    },
}

/// A step of the broker in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Join,
    Read,
    Claim,
    Extend,
    Settle,
    Begin,
}

/// A settlement on its way.
#[derive(Debug)]
pub(super) struct ToSettle {
    pub(super) settlement: Settlement,
    /// An earlier attempt may have been done.
    pub(super) in_doubt: bool,
}

/// A copy of an event whose first one is handled elsewhere comes again after this time.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

impl<T, S, C> Driver<T, S, C>
where
    T: Send + Sync + 'static,
    S: Service<Message<T>> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: ServiceError + fmt::Display + Send,
    C: Classify<S::Response, S::Error> + Clone + Send + Sync + 'static,
{
    pub(super) fn on(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        if let Some(running) = self.running.remove(&id) {
            let ending = match ended {
                Ok((_, Outcome::Handled(ending))) => ending,
                Err(error) if error.is_panic() => Ending::Panicked,
                _ => Ending::Cancelled,
            };
            self.on_handled(&running, ending);
            return;
        }
        let step = self.steps.remove(&id);
        match ended {
            Ok((_, outcome)) => self.on_step(outcome),
            // A broker that panics: what it was asked is asked again, or found out when leases end.
            Err(_) => self.on_broken(step),
        }
    }

    fn on_step(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Joined(joined) => self.on_joined(joined.ok()),
            Outcome::Read(batch) => self.on_read(batch),
            Outcome::Claimed {
                asked,
                max,
                claimed,
            } => self.on_claimed(asked, max, claimed),
            Outcome::Extended {
                asked,
                answers,
                all,
            } => self.on_extended(asked, answers, all),
            Outcome::Settled { batch, answers } => self.on_settled(batch, answers),
            Outcome::Begun {
                asked,
                deliveries,
                begun,
            } => self.on_begun(asked, deliveries, begun),
            // Those of handlers are found by their task.
            Outcome::Handled(_) => {}
        }
    }

    fn on_broken(&mut self, step: Option<Step>) {
        let again = Self::pause_after_error();
        self.at.read = self.at.read.max(again);
        self.at.claim = self.at.claim.max(again);
        self.at.settle = self.at.settle.max(again);
        match step {
            Some(Step::Join) => self.at.join = Some(again),
            Some(Step::Begin) => self.beginning = 0,
            Some(Step::Settle) => self.settling.clear(),
            _ => {}
        }
    }

    fn on_handled(&mut self, running: &Running, ending: Ending) {
        self.lanes.done(running.key.as_ref());
        let position = running.position;
        if !self.held.contains(position) {
            // Lost meanwhile: counted and reported then. Its end would be refused.
            return;
        }
        let rules = &self.shared.settings.rules;
        let action = match rules.decide(ending, running.about.deliveries) {
            Decision::Ack => Action::Ack(self.effect(running)),
            Decision::Settle(action) => action,
            Decision::Pause(wait) => {
                self.pause_for(wait);
                let after_ms = millis(wait);
                Action::GiveBack { after_ms }
            }
        };
        if let Action::Retry { after_ms, .. } | Action::GiveBack { after_ms } = &action {
            let due = Instant::now() + Duration::from_millis(*after_ms);
            self.at.claim = self.at.claim.min(due);
        }
        self.end(position, action);
    }

    fn effect(&self, running: &Running) -> Option<Effect> {
        let begun = running.about.effect?;
        let keep = self.shared.settings.effect_once?;
        let mut outcome = mem::take(&mut *lock(&running.about.outcome));
        if outcome.len() > MAX_OUTCOME {
            outcome.clear();
        }
        Some(Effect {
            key: Arc::clone(&running.about.envelope.id),
            fence: begun.fence,
            outcome,
            ttl_ms: millis(keep),
        })
    }

    fn pause_for(&mut self, wait: Duration) {
        if self.paused_until.is_none() {
            self.shared.totals.pauses.fetch_add(1, Relaxed);
        }
        let until = Instant::now() + wait;
        self.paused_until = Some(self.paused_until.map_or(until, |it| it.max(until)));
    }

    /// Has a message settled.
    pub(super) fn end(&mut self, position: Position, action: Action) {
        self.to_settle.push(ToSettle {
            settlement: Settlement { position, action },
            in_doubt: false,
        });
    }

    pub(super) fn give_back_waiting(&mut self) {
        for (position, _) in self.lanes.take(|_| true) {
            if self.held.contains(position) {
                self.end(position, Action::GiveBack { after_ms: 0 });
            }
        }
    }

    fn on_read(&mut self, batch: Result<Batch, StoreError>) {
        match batch {
            Ok(batch) => {
                if !batch.missing.is_empty() {
                    let now = Instant::now();
                    self.at.join = Some(now);
                    // Not before it has joined.
                    self.at.read = Self::pause_after_error();
                }
                self.deliver(batch.deliveries, Instant::now());
            }
            Err(_) => self.at.read = Self::pause_after_error(),
        }
    }

    fn on_claimed(&mut self, asked: Instant, max: usize, claimed: Result<Claimed, StoreError>) {
        let now = Instant::now();
        let poll = self.shared.settings.poll;
        let Ok(claimed) = claimed else {
            self.at.claim = Self::pause_after_error();
            return;
        };
        let shortest = match claimed.deliveries.len() {
            // No room, or paused: what is due stays so.
            _ if max == 0 => poll / 4,
            many if many == max => Duration::ZERO,
            _ => SHORTEST_POLL,
        };
        let next = claimed.next_ms.map_or(poll, Duration::from_millis);
        self.at.claim = now + next.clamp(shortest, poll);
        if claimed.incarnation == 0 {
            self.at.join = Some(now);
            return;
        }
        self.group_paused = claimed.paused.is_some();
        let totals = &self.shared.totals;
        totals.skipped.store(claimed.skipped, Relaxed);
        if claimed.incarnation != self.incarnation {
            // Another consumer has found out first.
            self.on_incarnation(claimed.incarnation);
            self.on_loss(JoinedGroup::Recreated);
        }
        self.deliver(claimed.deliveries, asked);
    }

    /// Takes in messages that are now held, since `since` at the earliest.
    fn deliver(&mut self, deliveries: Vec<Delivery>, since: Instant) {
        let settings = &self.shared.settings;
        let (until, effect_once) = (since + settings.lease, settings.effect_once);
        let mut fresh = Vec::new();
        for delivery in deliveries {
            let total = match delivery.deliveries {
                1 => &self.shared.totals.delivered,
                _ => &self.shared.totals.redelivered,
            };
            total.fetch_add(1, Relaxed);
            let is_new = self.held.add(delivery.position, until);
            if !is_new || self.is_at_hand(&delivery) {
                continue;
            }
            match self.refusal(&delivery) {
                Some(action) => self.end(delivery.position, action),
                None => fresh.push(delivery),
            }
        }
        match effect_once {
            Some(keep) if !fresh.is_empty() => self.begin_effects(fresh, keep),
            _ => fresh.into_iter().for_each(|it| self.wait(it, None)),
        }
    }

    /// Whether a message whose lease had ended came back to where it still runs: its end then is the end of this delivery.
    fn is_at_hand(&mut self, delivery: &Delivery) -> bool {
        let position = delivery.position;
        if delivery.deliveries == 1 {
            return false;
        }
        let runs = self.running.values().any(|it| it.position == position);
        if runs {
            self.held.start(position, Instant::now());
        }
        runs || self.settles(position)
    }

    /// The end of a message that is not to be handled at all.
    fn refusal(&self, delivery: &Delivery) -> Option<Action> {
        let settings = &self.shared.settings;
        let Some(message) = &delivery.message else {
            let reason = "no longer in the stream: trimmed before it was handled".into();
            return Some(Action::Dead { reason });
        };
        let schema = message.envelope.schema;
        if !settings.schemas.contains(&schema) {
            let (from, to) = (settings.schemas.start(), settings.schemas.end());
            let reason = format!("of schema {schema}; this consumer reads {from} to {to}").into();
            return Some(Action::Dead { reason });
        }
        let rules = &settings.rules;
        rules.is_spent(delivery.deliveries).then(|| rules.spent())
    }

    fn wait(&mut self, delivery: Delivery, effect: Option<message::Begun>) {
        let Some(message) = delivery.message else {
            return;
        };
        let lanes = self.shared.settings.lanes.as_ref();
        // A lane that panics is no reason to end.
        let find = |lane: &Arc<LaneOf>| catch_unwind(AssertUnwindSafe(|| lane(&message.envelope)));
        let key = lanes.and_then(|lane| find(lane).ok().flatten());
        let waiting = Waiting {
            deliveries: delivery.deliveries,
            message,
            effect,
        };
        self.lanes.push(delivery.position, key, waiting);
    }

    fn on_begun(
        &mut self,
        asked: Instant,
        deliveries: Vec<Delivery>,
        begun: Result<Vec<Begun>, StoreError>,
    ) {
        self.beginning = self.beginning.saturating_sub(deliveries.len());
        let Ok(begun) = begun else {
            // They are claimed when their leases end.
            deliveries
                .iter()
                .for_each(|it| self.held.remove(it.position));
            return;
        };
        let until = asked + self.shared.settings.lease;
        for (delivery, begun) in deliveries.into_iter().zip(begun) {
            let position = delivery.position;
            if !self.held.contains(position) {
                continue;
            }
            match begun {
                Begun::Run { fence, attempt } => {
                    self.held.add(position, until);
                    let effect = message::Begun { fence, attempt };
                    self.wait(delivery, Some(effect));
                }
                Begun::Done { .. } => {
                    self.shared.totals.replayed.fetch_add(1, Relaxed);
                    self.end(position, Action::Ack(None));
                }
                Begun::Busy => {
                    let after_ms = millis(BUSY_PAUSE);
                    self.end(position, Action::GiveBack { after_ms });
                }
                Begun::Lost(_) => self.on_lost(&[position]),
            }
        }
    }
}

/// Shortest wait between two claims of which the first found fewer messages than there was room for.
const SHORTEST_POLL: Duration = Duration::from_millis(10);
