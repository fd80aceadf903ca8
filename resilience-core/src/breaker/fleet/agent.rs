//! The task that speaks for this instance: reports, hears, proposes, and brings the fleet's verdict to the machine.
//!
//! One task per shared breaker. It holds the breaker weakly, and the breaker's end wakes it for its own. No call waits for anything it does; all
//! that it keeps is one report, the leases that are out, and the newest view.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::Ordering::{Relaxed, Release},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    ledger::{BreakerLedger, LocalState, ViewAge},
    member::{AgentMessage, AgentReceiver, Membership, millis},
    policy::Proposal,
    record::{BUCKETS, BreakerView, FleetState},
    store::{Push, Subscription, in_time},
};
use crate::{breaker::shared::Shared, clock::Moment};

pub(in crate::breaker) struct Agent {
    breaker: Weak<Shared>,
    member: Arc<Membership>,
    receiver: AgentReceiver,
    pushes: Subscription,
    ledger: BreakerLedger,
    started: Instant,
    /// Probes out, and when they count as failed.
    leases: HashMap<Arc<str>, (u64, Moment)>,
    /// Times in a row that the store gave no answer.
    unanswered: u32,
    /// Until when the dependency asked to be left alone, if the fleet may not know yet.
    asked: Option<Moment>,
    last_report: Instant,
    next_report: Instant,
}

/// A store that gave no answer so many times in a row is lost; once may be a hiccup.
const LOST: u32 = 2;

impl Agent {
    /// Starts the task. Within a tokio runtime.
    pub(in crate::breaker) fn start(
        breaker: &Arc<Shared>,
        member: &Arc<Membership>,
        receiver: AgentReceiver,
    ) {
        let now = Instant::now();
        let agent = Self {
            breaker: Arc::downgrade(breaker),
            member: Arc::clone(member),
            receiver,
            pushes: member.store.subscribe(&member.name),
            ledger: BreakerLedger::new(Arc::clone(&member.instance), member.voter()),
            started: now,
            leases: HashMap::new(),
            unanswered: 0,
            asked: None,
            last_report: now,
            next_report: now,
        };
        tokio::spawn(agent.run());
    }

    async fn run(mut self) {
        while self.breaker.strong_count() > 0 {
            let due = self.next_report.min(self.next_lease_end());
            tokio::select! {
                () = tokio::time::sleep_until(due) => self.tend().await,
                () = self.member.wake.notified() => self.wake(),
                push = self.pushes.next() => self.hear(push).await,
                Some(message) = self.receiver.0.recv() => self.read(message).await,
            }
        }
    }

    /// What is due by now.
    async fn tend(&mut self) {
        self.end_late_leases().await;
        if Instant::now() >= self.next_report {
            self.report().await;
        }
    }

    /// Something failed here: report as soon as the alert interval allows.
    fn wake(&mut self) {
        self.member.woken.store(false, Release);
        let soon = (self.last_report + self.member.rules.alert).max(Instant::now());
        self.next_report = self.next_report.min(soon);
    }

    async fn hear(&mut self, push: Push) {
        match push {
            Push::View(view) => self.see(&view).await,
            // A moment's grace: a whole fleet may have been told at once.
            Push::Missed => {
                let grace = self.member.rules.alert.mul_f64(fastrand::f64());
                self.next_report = self.next_report.min(Instant::now() + grace);
            }
            Push::None => {}
        }
    }

    async fn read(&mut self, message: AgentMessage) {
        match message {
            AgentMessage::Granted { lease, epoch, by } => {
                self.leases.insert(lease, (epoch, by));
            }
            AgentMessage::Settled {
                lease,
                epoch,
                success,
            } => {
                // One that was already counted as failed is not settled again.
                if self.leases.remove(&lease).is_some() {
                    self.settle(&lease, epoch, success).await;
                }
            }
            AgentMessage::Seen(view) => {
                self.store_answered();
                self.see(&view).await;
            }
            AgentMessage::Failed(reason) => self.store_failed(&reason),
            AgentMessage::CoolDown(until) => {
                self.asked = self.asked.max(Some(until));
                self.adopt_cool_down().await;
            }
        }
    }

    /// Proposes at once what the dependency asked for. Where that fails, the next report does.
    async fn adopt_cool_down(&mut self) {
        let Some(breaker) = self.breaker.upgrade() else {
            return;
        };
        let known = self.ledger.lost(breaker.fleet_time_left(), self.now());
        drop(breaker);
        if let Some(view) = self.propose(&known).await {
            self.see(&view).await;
        }
    }

    async fn settle(&mut self, lease: &str, epoch: u64, success: Option<bool>) {
        let member = Arc::clone(&self.member);
        let answer = member.store.settle(&member.name, lease, epoch, success);
        match in_time(answer).await {
            Ok((_, view)) => {
                self.store_answered();
                self.see(&view).await;
            }
            // The lease expires by itself.
            Err(failure) => self.store_failed(&failure.to_string()),
        }
    }

    fn next_lease_end(&self) -> Instant {
        let first = self.leases.values().map(|(_, by)| *by).min();
        first.map_or_else(
            || Instant::now() + Duration::from_secs(3600),
            |by| self.member.clock.instant(by),
        )
    }

    async fn end_late_leases(&mut self) {
        let now = self.member.clock.now();
        let late: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, (_, by))| *by <= now)
            .map(|(lease, (epoch, _))| (Arc::clone(lease), *epoch))
            .collect();
        for (lease, epoch) in late {
            self.leases.remove(&lease);
            self.settle(&lease, epoch, Some(false)).await;
        }
    }

    async fn report(&mut self) {
        let Some(breaker) = self.breaker.upgrade() else {
            return;
        };
        let standing = self.standing(&breaker);
        drop(breaker);
        let now = self.now();
        let report = self.ledger.next_report(&standing, now);
        let member = Arc::clone(&self.member);
        let answer = in_time(member.store.report(&member.name, &report)).await;
        self.last_report = Instant::now();
        match answer {
            Ok(view) => {
                self.ledger.reported();
                self.store_answered();
                let busy = report.counts.failure > 0 || report.failing || view.failing > 0;
                self.plan(busy || view.state != FleetState::Closed);
                self.see(&view).await;
            }
            Err(failure) => {
                let now = self.now();
                self.ledger.not_reported(report, failure.ambiguous, now);
                self.store_failed(&failure.to_string());
                // The first time, look again soon: it may have been a hiccup.
                self.plan(self.unanswered < LOST);
            }
        }
    }

    fn standing(&self, breaker: &Shared) -> LocalState {
        LocalState {
            totals: breaker.fleet_counts(),
            failing: breaker.finds_failing(),
            bucket_ms: millis(breaker.window_length()).div_ceil(BUCKETS).max(1),
            live_ms: millis(self.member.rules.calm * 3),
        }
    }

    /// Milliseconds on the ledger's clock.
    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    fn plan(&mut self, busy: bool) {
        let rules = &self.member.rules;
        let interval = if busy { rules.alert } else { rules.calm };
        // Instances that started together shall not report together.
        self.next_report = Instant::now() + interval.mul_f64(0.8 + 0.4 * fastrand::f64());
    }

    /// Adopts what is newer than what is known, brings back what the store has lost, and proposes what is due.
    async fn see(&mut self, view: &BreakerView) {
        let mut view = view.clone();
        loop {
            if self.ledger.view_age(&view) == ViewAge::Stale {
                match self.restore().await {
                    Some(restored) => view = restored,
                    None => return,
                }
            }
            self.adopt(&view);
            match self.propose(&view).await {
                Some(changed) => view = changed,
                None => return,
            }
        }
    }

    fn adopt(&mut self, view: &BreakerView) {
        let Some(breaker) = self.breaker.upgrade() else {
            return;
        };
        let local = breaker.local_state();
        let obeys = self.ledger.must_obey(view, local);
        let is_news = self.ledger.view_age(view) == ViewAge::Newer;
        if obeys && !is_news {
            breaker.follow(view, local);
        }
        if is_news {
            if obeys {
                breaker.apply(self.ledger.known(), view);
            }
            if view.state != FleetState::Closed {
                self.next_report = self
                    .next_report
                    .min(Instant::now() + self.member.rules.alert);
            }
        }
        let now = self.now();
        self.ledger.adopt(view, breaker.fleet_counts(), now);
    }

    async fn propose(&mut self, view: &BreakerView) -> Option<BreakerView> {
        let breaker = self.breaker.upgrade()?;
        let asked = self.still_asked();
        let member = Arc::clone(&self.member);
        let lasting = |proposal: &Proposal| match proposal.to {
            FleetState::Open => millis(breaker.open_interval(proposal.trips)).max(asked),
            FleetState::RampUp(_) => millis(member.policy.stage),
            _ => 0,
        };
        let change = match self.ledger.cool_down(&member.policy, view, asked, lasting) {
            Some(change) => change,
            None => {
                if view.active_override.is_none() {
                    // The fleet knows.
                    self.asked = None;
                }
                let local = breaker.local_state();
                self.ledger.propose(&member.policy, view, local, lasting)?
            }
        };
        drop(breaker);
        match in_time(member.store.change(&member.name, &change)).await {
            Ok((_, view)) => {
                self.store_answered();
                // Whoever won, something new holds now; if not, somebody lost the record: the next report will tell.
                (view.epoch > change.expected).then_some(view)
            }
            Err(failure) => {
                self.store_failed(&failure.to_string());
                None
            }
        }
    }

    /// For how many milliseconds the dependency still asks to be left alone.
    fn still_asked(&self) -> u64 {
        let now = self.member.clock.now();
        self.asked.map_or(0, |until| millis(until.since(now)))
    }

    /// The store knows less than we do: it was flushed, or failed over to a server that had not heard.
    async fn restore(&mut self) -> Option<BreakerView> {
        let breaker = self.breaker.upgrade()?;
        let known = self.ledger.lost(breaker.fleet_time_left(), self.now());
        drop(breaker);
        let member = Arc::clone(&self.member);
        match in_time(member.store.restore(&member.name, &known)).await {
            Ok((_, view)) => (self.ledger.view_age(&view) != ViewAge::Stale).then_some(view),
            Err(failure) => {
                self.store_failed(&failure.to_string());
                None
            }
        }
    }

    fn store_answered(&mut self) {
        self.unanswered = 0;
        if self.member.degraded.swap(false, Relaxed) {
            tracing::info!(
                target: "resilience",
                pattern = "circuit_breaker",
                name = &*self.member.name,
                "shared state is back"
            );
        }
    }

    fn store_failed(&mut self, reason: &str) {
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered >= LOST && !self.member.degraded.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                pattern = "circuit_breaker",
                name = &*self.member.name,
                reason,
                "no shared state: going on with the local window"
            );
        }
    }
}
