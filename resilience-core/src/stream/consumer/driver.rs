//! The loop of a consumer: one task that owns all of its state. Steps of the broker and handlers run in tasks of their own, and
//! come back as [`Outcome`]s; so that none waits for another, and a handler that blocks its thread keeps no lease from being
//! renewed.

use std::{
    collections::HashMap,
    fmt,
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
    fleet::{jittered, retry_delays},
    stream::{
        broker::StreamBroker,
        message::{Position, RawMessage},
    },
    sync::Mutex,
};

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
    pub(super) announce: Instant,
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
                announce: now,
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

    pub(super) fn room(&self) -> usize {
        let held = self.lanes.len() + self.running.len() + self.beginning;
        self.shared.settings.prefetch().saturating_sub(held)
    }

    pub(super) fn may_read(&self) -> bool {
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
