//! What the broker does: the records of messages and those of effects, put together as in `InProcessStreams` and in the scripts of
//! Redis. What an observer knows of each step is written down beside.

use std::sync::Arc;

use bytes::Bytes;
use resilience_core::stream::{
    Action, Begin, Begun, Effect, Held, Position, Settled,
    record::{EffectRecord, Next, Record},
};

use super::{
    End, Event, KEEP, LEASE, MAX_DELIVERIES, Mistake, Reply, Request, Seen, World,
    consumer::is_done,
};

impl World {
    pub(super) fn step(&mut self, name: &Arc<str>, request: &Request, mistake: Mistake) -> Reply {
        match request {
            Request::Read => Reply::Delivered(self.deliver_new(name)),
            Request::Claim => Reply::Delivered(self.deliver_due(name, mistake)),
            Request::Extend(position)
            | Request::Begin(position, _)
            | Request::Settle(position, ..) => {
                let before = self.clone();
                let reply = self.of_holder(name, request, mistake);
                self.observe(&before, name, *position, request, &reply);
                reply
            }
        }
    }

    fn deliver_new(&mut self, name: &Arc<str>) -> Option<(Position, Event, u32)> {
        let (position, event) = self.log.range(self.cursor.next()..).next()?;
        let (position, event) = (*position, *event);
        let record = Record::deliver(name, LEASE, self.now);
        let deliveries = record.deliveries();
        self.cursor = position;
        self.records.insert(position, record);
        let seen = self.seen.entry(position).or_default();
        (seen.holder, seen.deliveries) = (Some(Arc::clone(name)), seen.deliveries + 1);
        Some((position, event, deliveries))
    }

    fn deliver_due(&mut self, name: &Arc<str>, mistake: Mistake) -> Option<(Position, Event, u32)> {
        let first = self.records.keys().next();
        self.bookmark = first.map_or(self.cursor, |it| it.before().min(self.cursor));
        let now = self.now;
        if now < self.claimed && mistake != Mistake::ClockUnnoticed {
            self.records.values_mut().for_each(|it| it.set_back(now));
        }
        self.claimed = now;
        let may = |record: &Record| record.holder().is_none() || mistake != Mistake::NoTakeover;
        let mut due = self.records.iter_mut();
        let (position, record) = due.find(|(_, it)| it.due(now) <= now && may(it))?;
        let was_held = record.holder().is_some();
        if !record.claim(name, LEASE, now) {
            return None;
        }
        let (position, deliveries) = (*position, record.deliveries());
        let seen = self.seen.entry(position).or_default();
        (seen.holder, seen.deliveries) = (Some(Arc::clone(name)), seen.deliveries + 1);
        seen.failures += usize::from(was_held);
        Some((position, self.log[&position], deliveries))
    }

    fn of_holder(&mut self, name: &Arc<str>, request: &Request, mistake: Mistake) -> Reply {
        match request {
            Request::Extend(position) => Reply::Held(self.extend_lease(name, *position)),
            Request::Begin(position, event) => self.begin_effect(name, *position, *event, mistake),
            Request::Settle(position, event, end) => {
                Reply::Settled(self.end_delivery(name, *position, *event, *end, mistake))
            }
            Request::Read | Request::Claim => Reply::Delivered(None),
        }
    }

    fn extend_lease(&mut self, name: &str, position: Position) -> Held {
        let now = self.now;
        let record = self.records.get_mut(&position);
        record.map_or(Held::Gone, |it| it.extend(name, LEASE, now))
    }

    fn begin_effect(
        &mut self,
        name: &str,
        position: Position,
        event: Event,
        mistake: Mistake,
    ) -> Reply {
        match self.extend_lease(name, position) {
            Held::Held => {}
            lost => return Reply::Held(lost),
        }
        let begin = Begin {
            position,
            key: key(event),
            keep_ms: KEEP,
        };
        let records = &self.records;
        let is_held = |at| {
            let record: Option<&Record> = records.get(&at);
            record.is_some_and(|it| it.holder().is_some()) && mistake != Mistake::RunWhenBusy
        };
        let effect = self.effects.entry(event).or_default();
        match effect.begin(&begin, is_held, self.now) {
            Begun::Run { fence, .. } => {
                let last = self.fences.insert(event, fence);
                self.broken.fence_back |= last.is_some_and(|last| fence <= last);
                Reply::Run(fence)
            }
            Begun::Done { .. } => Reply::Done,
            Begun::Busy => Reply::Busy,
            Begun::Lost(held) => Reply::Held(held),
        }
    }

    fn end_delivery(
        &mut self,
        name: &Arc<str>,
        position: Position,
        event: Event,
        end: End,
        mistake: Mistake,
    ) -> Settled {
        let (end, action) = self.action(name, position, event, end, mistake);
        let now = self.now;
        let Some(record) = self.records.get_mut(&position) else {
            return Settled::Gone;
        };
        let is_held = record.held_by(name) == Held::Held || mistake == Mistake::RecordFirst;
        if let Action::Ack(Some(effect)) = &action
            && is_held
            && mistake != Mistake::AckFirst
        {
            let of_event = self.effects.entry(event).or_default();
            if !of_event.complete(position, effect, now) {
                return Settled::Taken;
            }
        }
        let holder = match (mistake, record.holder()) {
            (Mistake::AckUnchecked, Some(holder)) if matches!(action, Action::Ack(_)) => {
                Arc::clone(holder)
            }
            _ => Arc::clone(name),
        };
        match record.settle(&holder, &action, now) {
            Err(refused) => return refused,
            Ok(Next::Waits) if mistake == Mistake::RetryLoses && end == End::Retry => {
                self.records.remove(&position);
            }
            Ok(Next::Waits) => {}
            Ok(Next::Settled(_)) => {
                self.records.remove(&position);
            }
            Ok(Next::Dead { .. }) => {
                self.records.remove(&position);
                self.dead.insert(position);
            }
        }
        let seen = self.seen.entry(position).or_default();
        seen.holder = None;
        match end {
            End::Effect(_) | End::Ack => seen.acknowledged = true,
            End::Retry => seen.failures += 1,
            End::GiveBack => seen.deliveries -= 1,
            End::Dead => {}
        }
        Settled::Done
    }

    /// What the consumer decides, and the step that the broker is sent for it.
    fn action(
        &self,
        name: &Arc<str>,
        position: Position,
        event: Event,
        end: End,
        mistake: Mistake,
    ) -> (End, Action) {
        let retry = || Action::Retry {
            after_ms: 0,
            reason: "no".into(),
        };
        let record = self.records.get(&position);
        let last = record.is_some_and(|it| it.deliveries() >= MAX_DELIVERIES);
        match end {
            End::Effect(fence) => {
                let effect = Effect {
                    key: key(event),
                    fence,
                    outcome: format!("{name} {fence}").into(),
                    ttl_ms: KEEP,
                };
                (end, Action::Ack(Some(effect)))
            }
            End::Ack => (end, Action::Ack(None)),
            End::Retry if mistake == Mistake::AckOnError => (End::Ack, Action::Ack(None)),
            End::Retry if last && mistake != Mistake::RetryForever => {
                let reason = "no".into();
                (End::Dead, Action::Dead { reason })
            }
            End::Retry => (end, retry()),
            End::GiveBack if mistake == Mistake::GiveBackCounts => (end, retry()),
            End::GiveBack => (end, Action::GiveBack { after_ms: LEASE }),
            End::Dead => {
                let reason = "spent".into();
                (end, Action::Dead { reason })
            }
        }
    }

    /// Dead letters are due again.
    pub(crate) fn redrive(&mut self) -> Option<()> {
        let position = self.dead.pop_first()?;
        self.records.insert(position, Record::redrive(self.now));
        let acknowledged = self.seen.get(&position).is_some_and(|it| it.acknowledged);
        let seen = Seen {
            acknowledged,
            ..Seen::default()
        };
        self.seen.insert(position, seen);
        Some(())
    }

    /// The outcome that is recorded.
    fn outcome(&self, event: Event) -> Option<Bytes> {
        let begin = Begin {
            position: Position::END,
            key: key(event),
            keep_ms: KEEP,
        };
        let mut record: EffectRecord = self.effects.get(&event)?.clone();
        match record.begin(&begin, |_| true, self.now) {
            Begun::Done { outcome } => Some(outcome),
            _ => None,
        }
    }

    /// What must hold of a step of one consumer about one message.
    fn observe(
        &mut self,
        before: &Self,
        name: &Arc<str>,
        position: Position,
        request: &Request,
        reply: &Reply,
    ) {
        let seen = before.seen.get(&position);
        let is_holder = seen.is_some_and(|it| it.holder.as_ref() == Some(name));
        if !is_holder {
            let kept = (&self.records, &self.dead, &self.effects, &self.log);
            let had = (&before.records, &before.dead, &before.effects, &before.log);
            self.broken.zombie_changed |= kept != had;
            let told = matches!(
                reply,
                Reply::Held(Held::Taken | Held::Gone)
                    | Reply::Settled(Settled::Taken | Settled::Gone)
            );
            self.broken.zombie_not_told |= !told;
        }
        let Request::Settle(_, event, end) = request else {
            return;
        };
        let (had, has) = (before.outcome(*event), self.outcome(*event));
        let acknowledges = matches!(end, End::Effect(_) | End::Ack)
            || self.seen.get(&position).is_some_and(|it| it.acknowledged);
        if is_done(reply) && acknowledges {
            self.broken.acknowledged_without_outcome |= has.is_none();
        }
        self.broken.recorded_apart |= had.is_none() && has.is_some() && !is_done(reply);
        if let Some(outcome) = has {
            let first = self
                .outcomes
                .entry(*event)
                .or_insert_with(|| outcome.clone());
            self.broken.recorded_twice |= *first != outcome;
        }
    }
}

fn key(event: Event) -> Arc<str> {
    event.to_string().into()
}
