//! The background task of a fleet breaker: reports, receives views, proposes changes, and brings the verdict of the
//! fleet to the machine.
//!
//! One task per breaker. It holds the breaker weakly and ends with it. No call waits for it. Its memory is one
//! report, the probe leases in progress, and the newest view.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering::AcqRel},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    ledger::{BreakerLedger, LocalState, ViewAge},
    member::{AgentReceiver, FleetMember},
    message::{AgentMessage, ProbeLease},
    policy::Proposal,
    record::{BUCKETS, BreakerView, FleetState},
};
use crate::{
    breaker::{shared::Shared, snapshot::State},
    clock::Moment,
    fleet::{Agent, Pushed, millis, spawn},
};

pub(super) struct BreakerAgent {
    breaker: Weak<Shared>,
    pub(super) member: Arc<FleetMember>,
    receiver: AgentReceiver,
    pub(super) ledger: BreakerLedger,
    started: Instant,
    /// Probes in progress.
    pub(super) leases: HashMap<Arc<str>, ProbeLease>,
    /// End of the time that the dependency asked for, if the fleet may not know it yet.
    asked: Option<Moment>,
    last_report: Instant,
    next_report: Instant,
    /// The next report follows a failure, and does not wait for others to share a command with.
    urgent: bool,
    /// Until when an idle breaker need not report. `None`: it reports at the next tick.
    silent_until: Option<Instant>,
    /// State of the breaker as last reported: an idle breaker reports once more when it has closed.
    reported_state: Option<State>,
    /// Whether the subscription stands: an idle breaker that hears nothing must go on reporting.
    hears: bool,
    /// A report found the store unavailable.
    lost: bool,
}

/// How long an instance counts as live after a report while the membership of its store tells which instances are live.
const LONG_LIFE: Duration = Duration::from_secs(3600);

/// Starts the task of `breaker`.
pub(in crate::breaker) fn start(
    breaker: &Arc<Shared>,
    member: &Arc<FleetMember>,
    receiver: AgentReceiver,
) {
    let now = Instant::now();
    let agent = BreakerAgent {
        breaker: Arc::downgrade(breaker),
        member: Arc::clone(member),
        receiver,
        ledger: BreakerLedger::new(Arc::clone(&member.instance), Arc::clone(&member.voter)),
        started: now,
        leases: HashMap::new(),
        asked: None,
        last_report: now,
        next_report: now,
        urgent: false,
        silent_until: None,
        reported_state: None,
        hears: false,
        lost: false,
    };
    let pushes = member.client.store().subscribe(&member.name);
    let waker = member.waker.clone();
    member.started(spawn(
        agent,
        Some(pushes),
        waker,
        &member.handle,
        member.runtime(),
    ));
}

impl Agent for BreakerAgent {
    type Push = Arc<BreakerView>;

    fn next_due(&self) -> Instant {
        let first = self.leases.values().map(|lease| lease.by).min();
        let first = first.map(|by| self.member.clock.instant(by));
        first.map_or(self.next_report, |first| first.min(self.next_report))
    }

    async fn on_due(&mut self) {
        self.end_late_leases().await;
        if Instant::now() < self.next_report {
            return;
        }
        if self.is_idle() {
            self.plan(false);
        } else {
            self.report().await;
        }
    }

    async fn on_wake(&mut self) {
        while let Ok(message) = self.receiver.0.try_recv() {
            self.read(message).await;
        }
        if self.member.woken.swap(false, AcqRel) {
            // A call failed: report as soon as the alert interval allows.
            let soon = self.last_report + self.member.rules.alert;
            self.report_by(soon.max(Instant::now()));
            self.urgent = true;
        }
        if self.lost && self.member.client.is_available() {
            // At once: each instance learns of the return at a random moment.
            self.lost = false;
            self.silent_until = None;
            self.report_by(Instant::now());
        }
    }

    async fn on_push(&mut self, push: Pushed<Arc<BreakerView>>) {
        self.hears = true;
        match push {
            Pushed::Value(view) => self.see(&view).await,
            Pushed::Missed => self.report_soon(),
            Pushed::None => {}
        }
    }

    /// Gives the probes back, and tells the fleet that this instance leaves.
    async fn on_close(&mut self) {
        while let Ok(message) = self.receiver.0.try_recv() {
            match message {
                AgentMessage::Granted(lease) => drop(self.leases.insert(lease.id.clone(), lease)),
                AgentMessage::Settled { lease, success } => {
                    if let Some(lease) = self.leases.remove(&lease) {
                        self.settle_in_background(lease, success);
                    }
                }
                AgentMessage::GivenUp { lease, ends } => self.give_back(lease, ends),
                AgentMessage::Seen(_) | AgentMessage::CoolDown(_) => {}
            }
        }
        for (_, lease) in std::mem::take(&mut self.leases) {
            self.settle_in_background(lease, None);
        }
        let standing = self.breaker.upgrade().map(|breaker| LocalState {
            failing: false,
            live_ms: 0,
            ..self.standing(&breaker)
        });
        if let Some(report) = self.ledger.last_report(standing.as_ref()) {
            // Without an answer, the instance counts as live for as long as its last report said.
            let _ = self.member.leave(&report).await;
        }
    }
}

impl BreakerAgent {
    async fn read(&mut self, message: AgentMessage) {
        match message {
            AgentMessage::Granted(lease) => {
                self.leases.insert(Arc::clone(&lease.id), lease);
            }
            AgentMessage::Settled { lease, success } => {
                // A lease that ended late has been settled as failed.
                if let Some(lease) = self.leases.remove(&lease) {
                    self.settle(lease, success).await;
                }
            }
            AgentMessage::GivenUp { lease, ends } => self.give_back(lease, ends),
            AgentMessage::Seen(view) => self.see(&view).await,
            AgentMessage::CoolDown(until) => {
                self.asked = self.asked.max(Some(until));
                self.adopt_cool_down().await;
            }
        }
    }

    /// Proposes at once the pause that the dependency asked for. If that fails, the next report does.
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

    /// Whether a report would tell the fleet nothing: the breaker and its record are closed, and were when it reported last, no
    /// call has ended since, and the membership tells that this instance is live.
    fn is_idle(&self) -> bool {
        let silent = self
            .silent_until
            .is_some_and(|until| Instant::now() < until);
        if !silent || !self.hears || !self.member.handle.is_member() {
            return false;
        }
        let known = self.ledger.known();
        self.reported_state == Some(State::Closed)
            && known.state == FleetState::Closed
            && known.active_override.is_none()
            && self.breaker.upgrade().is_some_and(|breaker| {
                self.ledger.has_reported(breaker.fleet_counts())
                    && breaker.state() == State::Closed
                    && !breaker.finds_failing()
            })
    }

    async fn report(&mut self) {
        let Some(breaker) = self.breaker.upgrade() else {
            return;
        };
        let standing = self.standing(&breaker);
        drop(breaker);
        let now = self.now();
        let report = self.ledger.next_report(&standing, now);
        let answer = self.member.report(&report, self.urgent).await;
        self.last_report = Instant::now();
        self.urgent = false;
        match answer {
            Ok(view) => {
                self.ledger.reported();
                self.reported_state = report.state;
                self.silent_until =
                    (report.live_ms == millis(LONG_LIFE)).then(|| self.last_report + LONG_LIFE / 2);
                let busy = report.counts.failure > 0 || report.failing || view.failing > 0;
                self.plan(busy || view.state != FleetState::Closed);
                self.see(&view).await;
            }
            Err(failure) => {
                let now = self.now();
                self.ledger.not_reported(report, failure.ambiguous, now);
                self.silent_until = None;
                let available = self.member.client.is_available();
                self.lost = !available;
                // It may have been one lost packet. Once the store is unavailable, its return wakes this task.
                self.plan(available);
            }
        }
    }

    fn standing(&self, breaker: &Shared) -> LocalState {
        let failing = breaker.finds_failing();
        let life = if !failing && self.member.handle.is_member() {
            LONG_LIFE
        } else {
            // An instance that fails and dies must not count for long.
            self.member.heartbeat * 3
        };
        LocalState {
            totals: breaker.fleet_counts(),
            failing,
            bucket_ms: millis(breaker.window_length()).div_ceil(BUCKETS).max(1),
            live_ms: millis(life),
            state: Some(breaker.state()),
        }
    }

    /// Milliseconds on the ledger's clock.
    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    fn plan(&mut self, busy: bool) {
        self.next_report = if busy {
            self.member.next_tick(self.member.rules.alert)
        } else {
            self.member.next_tick(self.member.heartbeat)
        };
    }

    /// A whole fleet may have been told at the same moment, so not at once.
    fn report_soon(&mut self) {
        self.silent_until = None;
        self.report_by(self.member.next_tick(self.member.rules.alert));
    }

    fn report_by(&mut self, at: Instant) {
        self.next_report = self.next_report.min(at);
    }

    /// Adopts what is newer than what is known, restores what the store has lost, and proposes what is due.
    pub(super) async fn see(&mut self, view: &BreakerView) {
        let mut view = self.member.counted(view.clone());
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
                self.report_by(Instant::now() + self.member.rules.alert);
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
        let answer = member
            .client
            .call(|store| store.change(&member.name, &change));
        let (_, view) = answer.await.ok()?;
        // A newer epoch holds, whether this proposal won or another. An older one: the store has lost the record, and
        // the next report restores it.
        (view.epoch > change.expected).then(|| member.counted(view))
    }

    /// Milliseconds that are left of the pause that the dependency asked for.
    fn still_asked(&self) -> u64 {
        let now = self.member.clock.now();
        self.asked.map_or(0, |until| millis(until.since(now)))
    }

    /// The store knows less than this instance: it was flushed, or failed over to a server that lacks the last writes.
    async fn restore(&mut self) -> Option<BreakerView> {
        let breaker = self.breaker.upgrade()?;
        let known = self.ledger.lost(breaker.fleet_time_left(), self.now());
        drop(breaker);
        let member = &self.member;
        let answer = member
            .client
            .call(|store| store.restore(&member.name, &known));
        let (_, view) = answer.await.ok()?;
        (self.ledger.view_age(&view) != ViewAge::Stale).then(|| member.counted(view))
    }
}
