//! The loop of a consumer: one task that owns all of its state. Steps of the broker and handlers run in tasks of their own, and
//! come back as [`Outcome`]s; so that none waits for another, and a handler that blocks its thread keeps no lease from being
//! renewed.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, Id, JoinSet},
    time::{Instant, sleep_until},
};
use tower_service::Service;
use tracing::instrument::Instrument;

use super::{
    ConsumeError, Shared,
    handling::{Handling, Limits},
    held::HeldMessages,
    lanes::Lanes,
    message::{About, Begun, Message},
    outcomes::{Outcome, Step, ToSettle},
};
use crate::{
    classify::Classify,
    codec::Codec,
    error::ServiceError,
    fleet::{jittered, millis, retry_delays},
    stream::{
        broker::{StreamBroker, validate::MAX_BATCH},
        message::{Position, RawMessage},
        steps::{Begin, Claim, Delivery, Join, Read, Resume},
    },
    sync::Mutex,
};

/// Longest wait of one read: a shutdown waits for its end.
const BLOCK: Duration = Duration::from_secs(1);

pub(super) struct Driver<T, S, C> {
    pub(super) shared: Arc<Shared>,
    handling: Handling<T, S, C>,
    pub(super) tasks: JoinSet<Outcome>,
    /// The tasks that handle messages.
    pub(super) running: HashMap<Id, Running>,
    /// The steps in progress.
    pub(super) steps: HashMap<Id, Step>,
    pub(super) lanes: Lanes<Waiting>,
    pub(super) held: HeldMessages,
    pub(super) to_settle: Vec<ToSettle>,
    /// What is being settled.
    pub(super) settling: Vec<Position>,
    /// Messages whose effect is being begun.
    pub(super) beginning: usize,
    pub(super) incarnation: u64,
    pub(super) at: Times,
    /// No messages are started until then, since one was rejected.
    pub(super) paused_until: Option<Instant>,
    /// An operator has paused the group.
    pub(super) group_paused: bool,
    pub(super) ended: Option<ConsumeError>,
}

/// When what is to be done next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) join: Option<Instant>,
    pub(super) read: Instant,
    pub(super) claim: Instant,
    pub(super) extend: Instant,
    pub(super) settle: Instant,
}

/// A message that is being handled.
pub(super) struct Running {
    pub(super) position: Position,
    pub(super) key: Option<Arc<str>>,
    pub(super) about: Arc<About>,
    abort: AbortHandle,
}

/// A message that waits in this process.
pub(super) struct Waiting {
    pub(super) deliveries: u32,
    pub(super) message: RawMessage,
    pub(super) effect: Option<Begun>,
}

impl<T, S, C> Driver<T, S, C>
where
    T: Send + Sync + 'static,
    S: Service<Message<T>> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: ServiceError + fmt::Display + Send,
    C: Classify<S::Response, S::Error> + Clone + Send + Sync + 'static,
{
    pub(super) fn new(
        shared: Arc<Shared>,
        codec: Arc<dyn Codec<T>>,
        classifier: C,
        service: S,
    ) -> Self {
        let now = Instant::now();
        Self {
            at: Times {
                join: Some(now),
                read: now,
                claim: now,
                extend: now + jittered(shared.settings.lease / 3),
                settle: now,
            },
            shared,
            handling: Handling {
                codec,
                classifier,
                service,
            },
            tasks: JoinSet::new(),
            running: HashMap::new(),
            steps: HashMap::new(),
            lanes: Lanes::new(),
            held: HeldMessages::default(),
            to_settle: Vec::new(),
            settling: Vec::new(),
            beginning: 0,
            incarnation: 0,
            paused_until: None,
            group_paused: false,
            ended: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), ConsumeError> {
        let shared = Arc::clone(&self.shared);
        while !shared.tasks.is_closing() && self.ended.is_none() {
            self.turn();
            tokio::select! {
                () = shared.tasks.closing() => {}
                () = shared.look.woken() => self.at.claim = Instant::now(),
                () = sleep_until(self.next_due()) => {}
                Some(ended) = self.tasks.join_next_with_id() => self.on(ended),
            }
        }
        self.drain().await;
        self.ended.take().map_or(Ok(()), Err)
    }

    /// What was prefetched goes back; what runs ends, and is settled.
    async fn drain(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut overdue = false;
        loop {
            self.drop_expired(Instant::now());
            self.give_back_waiting();
            self.settle();
            self.renew();
            self.count();
            let only_steps = self.running.is_empty() && self.to_settle.is_empty();
            if only_steps && self.steps.is_empty() {
                break;
            }
            tokio::select! {
                () = shared.tasks.overdue(), if !overdue => {
                    overdue = true;
                    self.running.values().for_each(|it| it.abort.abort());
                }
                () = sleep_until(self.at.settle), if !self.to_settle.is_empty() && !self.does(Step::Settle) => {}
                () = sleep_until(self.at.extend), if !self.held.is_empty() => {}
                Some(ended) = self.tasks.join_next_with_id() => self.on(ended),
            }
            if overdue && shared.client.unavailable_for() > Duration::ZERO {
                // What cannot be told is found out when the leases end.
                self.to_settle.clear();
            }
        }
        let leave =
            |broker| StreamBroker::leave(broker, &shared.stream, &shared.group, &shared.consumer);
        // Otherwise it is known for longer than it lives, and holds nothing.
        let _ = shared.client.call(leave).await;
    }

    /// Starts whatever can be started.
    fn turn(&mut self) {
        let now = Instant::now();
        self.drop_expired(now);
        self.start_handlers(now);
        self.settle();
        self.renew();
        self.join(now);
        if self.incarnation != 0 {
            self.claim(now);
            self.read(now);
        }
        self.count();
    }

    fn next_due(&self) -> Instant {
        let joined = self.incarnation != 0;
        let times = [
            self.at.join.filter(|_| !self.does(Step::Join)),
            Some(self.at.extend).filter(|_| !self.does(Step::Extend)),
            Some(self.at.claim).filter(|_| joined && !self.does(Step::Claim)),
            Some(self.at.read).filter(|_| joined && !self.does(Step::Read) && self.may_read()),
            Some(self.at.settle).filter(|_| !self.to_settle.is_empty() && !self.does(Step::Settle)),
            self.paused_until,
        ];
        let latest = Instant::now() + Duration::from_secs(60);
        times.into_iter().flatten().fold(latest, Instant::min)
    }

    pub(super) fn does(&self, step: Step) -> bool {
        self.steps.values().any(|it| *it == step)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.group_paused || self.paused_until.is_some()
    }

    fn room(&self) -> usize {
        let held = self.lanes.len() + self.running.len() + self.beginning;
        self.shared.settings.prefetch().saturating_sub(held)
    }

    fn may_read(&self) -> bool {
        !self.is_paused() && self.room() > 0
    }

    fn start_handlers(&mut self, now: Instant) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        while !self.is_paused() && self.running.len() < self.shared.settings.concurrency {
            let Some((position, key, waiting)) = self.lanes.pop() else {
                return;
            };
            match self.held.start(position, now) {
                Some(lost) => self.start(position, key, waiting, lost),
                None => self.lanes.done(key.as_ref()),
            }
        }
    }

    fn start(
        &mut self,
        position: Position,
        key: Option<Arc<str>>,
        waiting: Waiting,
        lost: super::held::LostFlag,
    ) {
        let about = Arc::new(About {
            stream: Arc::clone(&self.shared.stream),
            position,
            deliveries: waiting.deliveries,
            envelope: waiting.message.envelope.clone(),
            lost,
            effect: waiting.effect,
            outcome: Mutex::default(),
        });
        let limits = Limits::of(&self.shared.settings);
        let handling = self.handling.clone();
        let handled = handling.handle(waiting.message, Arc::clone(&about), limits);
        let abort = self
            .tasks
            .spawn(async move { Outcome::Handled(handled.await) }.in_current_span());
        let running = Running {
            position,
            key,
            about,
            abort: abort.clone(),
        };
        self.running.insert(abort.id(), running);
    }

    fn begin_step(&mut self, step: Step, outcome: impl Future<Output = Outcome> + Send + 'static) {
        let id = self.tasks.spawn(outcome).id();
        self.steps.insert(id, step);
    }

    fn join(&mut self, now: Instant) {
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
        self.begin_step(Step::Join, async move {
            let step = |broker| StreamBroker::join(broker, &shared.stream, &shared.group, &join);
            Outcome::Joined(shared.client.call(step).await)
        });
    }

    fn read(&mut self, now: Instant) {
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

    fn claim(&mut self, now: Instant) {
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
    fn renew(&mut self) {
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
    fn settle(&mut self) {
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

    /// The pause after a step that failed.
    pub(super) fn pause_after_error() -> Instant {
        let wait = retry_delays().nth(2).unwrap_or(Duration::from_secs(1));
        Instant::now() + wait
    }

    fn count(&self) {
        let totals = &self.shared.totals;
        totals.running.store(self.running.len() as u64, Relaxed);
        let waiting = self.lanes.len() + self.beginning;
        totals.buffered.store(waiting as u64, Relaxed);
        self.shared.paused.store(self.is_paused(), Relaxed);
    }
}

impl<T, S, C> Drop for Driver<T, S, C> {
    fn drop(&mut self) {
        self.shared.totals.running.store(0, Relaxed);
        self.shared.totals.buffered.store(0, Relaxed);
    }
}
