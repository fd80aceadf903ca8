//! The loop of a relay: waits for the lease, works while it has it, gives it back at the end.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use ::sqlx::Error;
use tokio::time::{Instant, timeout};

use super::{
    PATTERN, Shared,
    builder::Settings,
    leading::{Context, LONGEST_PAUSE, Next, Term},
    steps::Database,
};
use crate::{
    backoff::Delays,
    fleet::{Agent, jittered},
    sql::outbox::{dialect::Dialect, lease::Watch},
    stream::broker::StreamBroker,
};

pub(super) struct Work<DB: Dialect> {
    context: Context<DB>,
    /// Name of this relay; no other one has it.
    holder: Arc<str>,
    role: Role,
    due: Instant,
    /// A wake does not shorten a pause.
    pausing: bool,
    /// There was nothing to publish: to be looked at first.
    idle: bool,
    /// Fence of a lease that was given back, because others may do better.
    given_back: Option<i64>,
    measure_at: Instant,
    trim_at: Instant,
    announce_at: Instant,
    database_delays: Delays,
}

enum Role {
    /// Waits for the lease.
    Standby(Watch),
    Leading(Box<Term>),
}

const MEASURE_INTERVAL: Duration = Duration::from_secs(2);
const TRIM_INTERVAL: Duration = Duration::from_secs(5);
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3_600);

impl<DB: Dialect> Work<DB> {
    pub(super) fn new(
        database: Database<DB>,
        shared: Arc<Shared>,
        settings: Settings,
        holder: &Arc<str>,
    ) -> Self {
        let now = Instant::now();
        Self {
            database_delays: settings.backoff.delays(),
            context: Context {
                database,
                shared,
                settings,
            },
            holder: Arc::clone(holder),
            role: Role::Standby(Watch::default()),
            due: now,
            pausing: false,
            idle: false,
            given_back: None,
            measure_at: now,
            trim_at: now,
            announce_at: now,
        }
    }

    /// Looks at the lease, and takes it if it may.
    async fn seek(&mut self) -> Result<(), Error> {
        let Self {
            context:
                Context {
                    database,
                    settings,
                    shared,
                },
            role,
            holder,
            given_back,
            ..
        } = self;
        let Role::Standby(watch) = role else {
            return Ok(());
        };
        let Some(found) = database.look().await? else {
            self.due = Instant::now();
            return database.enter().await;
        };
        let lease = settings.lease;
        self.due = Instant::now() + jittered(lease / 4);
        // Its own: the answer to the take was lost.
        let own = found.holder.as_deref() == Some(&**holder);
        if !own && !watch.may_take(&found, Instant::now(), lease) {
            return Ok(());
        }
        let sent = Instant::now();
        if database.take(holder, &found).await? {
            let term = Term::new(found.fence + 1, sent, settings);
            shared.totals.takeovers.fetch_add(1, Relaxed);
            shared.leads(true);
            // Not told again when no other relay wanted it.
            if given_back.take() != Some(found.fence) {
                tracing::info!(target: "resilience", pattern = PATTERN, name = &*shared.name, fence = term.fence(), "outbox relay leads");
            }
            *role = Role::Leading(Box::new(term));
            (self.due, self.pausing, self.idle) = (sent, false, false);
        }
        Ok(())
    }

    async fn lead(&mut self) -> Result<(), Error> {
        let Self { context, role, .. } = self;
        let Role::Leading(term) = role else {
            return Ok(());
        };
        if Instant::now() >= term.renew_at && !term.renew(context).await? {
            self.lost();
            return Ok(());
        }
        if Instant::now() < self.due {
            return Ok(());
        }
        let poll = context.settings.poll;
        if self.idle {
            self.measure_at = Instant::now() + MEASURE_INTERVAL;
            let waiting = context.database.waiting().await?;
            context.shared.note_waiting(waiting);
            if waiting.rows == 0 {
                self.due = Instant::now() + poll;
                return Ok(());
            }
        }
        let next = term.work(context).await?;
        self.idle = matches!(next, Next::Idle(_));
        self.pausing = matches!(next, Next::Pause(_));
        let now = Instant::now();
        match next {
            Next::Now => self.due = now,
            Next::Pause(pause) => self.due = now + pause,
            Next::Idle(again) => {
                self.due = again.map_or(now + poll, |again| again.min(now + poll));
                self.measure_at = now;
            }
            Next::Lost => self.lost(),
            Next::Unreadable(format) => {
                let shared = &context.shared;
                tracing::warn!(target: "resilience", pattern = PATTERN, name = &*shared.name, format, "the outbox has events of a later version");
                self.stand_down().await?;
            }
            Next::CutOff => self.stand_down().await?,
        }
        Ok(())
    }

    fn lost(&mut self) {
        let shared = &self.context.shared;
        shared.totals.leases_lost.fetch_add(1, Relaxed);
        shared.leads(false);
        tracing::warn!(target: "resilience", pattern = PATTERN, name = &*shared.name, "outbox relay lost its lease");
        self.role = Role::Standby(Watch::default());
        self.due = Instant::now();
    }

    /// Leaves the lease to other relays: of a later version, or that reach the broker. Takes it again if none of them does.
    async fn stand_down(&mut self) -> Result<(), Error> {
        self.context.shared.leads(false);
        let former = std::mem::replace(&mut self.role, Role::Standby(Watch::default()));
        self.due = Instant::now() + jittered(self.context.settings.lease);
        let Role::Leading(mut term) = former else {
            return Ok(());
        };
        self.given_back = Some(term.fence());
        tracing::debug!(target: "resilience", pattern = PATTERN, name = &*self.context.shared.name, "outbox relay gives its lease back");
        term.leave(&self.context).await
    }

    /// Counts what waits.
    async fn measure(&mut self) -> Result<(), Error> {
        self.measure_at = Instant::now() + MEASURE_INTERVAL;
        let waiting = self.context.database.waiting().await?;
        self.context.shared.note_waiting(waiting);
        Ok(())
    }

    /// What is done for the stream now and then; what fails is done at the next turn.
    async fn keep_stream(&mut self) {
        let (now, client) = (Instant::now(), &self.context.shared.client);
        let stream = &*self.context.database.outbox.stream;
        if now >= self.trim_at {
            self.trim_at = now + jittered(TRIM_INTERVAL);
            let retention = &self.context.settings.retention;
            let step = |broker| StreamBroker::trim(broker, stream, retention);
            // Refused at once while the broker is unavailable.
            let _ = client.call(step).await;
        }
        if now >= self.announce_at {
            self.announce_at = now + jittered(ANNOUNCE_INTERVAL);
            if let Some(announced) = client.store().announce(stream) {
                let _ = timeout(client.budget(), announced).await;
            }
        }
    }

    fn is_leading(&self) -> bool {
        matches!(self.role, Role::Leading(_))
    }

    async fn step(&mut self) -> Result<(), Error> {
        match self.role {
            Role::Standby(_) => self.seek().await,
            Role::Leading(_) => self.lead().await,
        }?;
        if self.is_leading() && Instant::now() >= self.measure_at {
            self.measure().await?;
        }
        Ok(())
    }
}

impl<DB: Dialect> Agent for Work<DB> {
    type Push = ();

    fn next_due(&self) -> Instant {
        match &self.role {
            Role::Standby(_) => self.due,
            Role::Leading(term) => self.due.min(term.renew_at).min(self.trim_at),
        }
    }

    async fn on_due(&mut self) {
        let done = self.step().await;
        self.context.shared.note_database(done.as_ref().err());
        match done {
            Ok(()) => self.database_delays = self.context.settings.backoff.delays(),
            Err(error) => {
                tracing::debug!(target: "resilience", pattern = PATTERN, name = &*self.context.shared.name, %error, "a step of the outbox failed");
                let pause = self.database_delays.next().unwrap_or(LONGEST_PAUSE);
                let again = Instant::now() + pause;
                (self.due, self.pausing) = (again, true);
                if let Role::Leading(term) = &mut self.role {
                    term.renew_at = again;
                }
            }
        }
        if self.is_leading() {
            self.keep_stream().await;
        }
    }

    async fn on_wake(&mut self) {
        if self.is_leading() && !self.pausing {
            (self.due, self.idle) = (Instant::now(), false);
        }
    }

    async fn on_close(&mut self) {
        if let Role::Leading(term) = &mut self.role {
            self.context.shared.leads(false);
            // Otherwise the lease ends by itself.
            let _ = term.leave(&self.context).await;
        }
    }
}
