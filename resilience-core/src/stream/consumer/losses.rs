//! What a consumer does about leases, groups and streams that are lost.

use std::{fmt, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;
use tower_service::Service;

use super::{ConsumeError, Message, OnLoss, driver::Driver};
use crate::{
    classify::Classify,
    error::{Pattern, ServiceError},
    stream::{
        message::Position,
        steps::{Held, Joined, JoinedGroup},
    },
};

impl<T, S, C> Driver<T, S, C>
where
    T: Send + Sync + 'static,
    S: Service<Message<T>> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: ServiceError + fmt::Display + Send,
    C: Classify<S::Response, S::Error> + Clone + Send + Sync + 'static,
{
    pub(super) fn on_joined(&mut self, joined: Option<Joined>) {
        let Some(joined) = joined else {
            self.at.join = Some(Self::pause_after_error());
            return;
        };
        self.at.join = None;
        let is_other = self.incarnation != 0 && self.incarnation != joined.incarnation;
        self.on_incarnation(joined.incarnation);
        match joined.group {
            JoinedGroup::Restored(_) | JoinedGroup::Recreated => self.on_loss(joined.group),
            // Another consumer has created it again.
            _ if is_other => self.on_loss(JoinedGroup::Recreated),
            _ => {}
        }
        self.incarnation = joined.incarnation;
    }

    /// Compares the stream with the one that is known.
    pub(super) fn on_incarnation(&mut self, incarnation: u64) {
        if self.incarnation == 0 || self.incarnation == incarnation {
            return;
        }
        // What is held belongs to a stream that is gone.
        self.lanes.take(|_| true);
        self.to_settle.clear();
        self.held.clear();
        self.incarnation = incarnation;
    }

    pub(super) fn on_loss(&mut self, group: JoinedGroup) {
        self.shared.totals.losses.fetch_add(1, Relaxed);
        let from = match group {
            JoinedGroup::Restored(after) => format!("after {after}"),
            _ => "with the oldest message".to_owned(),
        };
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Stream.as_str(),
            name = &*self.shared.stream,
            group = &*self.shared.group,
            resumed = from,
            "group lost"
        );
        if self.shared.settings.on_loss == OnLoss::Stop {
            self.ended = Some(ConsumeError::Lost);
        }
    }

    pub(super) fn on_extended(
        &mut self,
        asked: Instant,
        answers: Vec<(Position, Held)>,
        all: bool,
    ) {
        let lease = self.shared.settings.lease;
        let lost = self.held.extended(answers, asked + lease);
        if !all {
            let again = Instant::now() + (lease / 12).min(Duration::from_secs(1));
            self.at.extend = self.at.extend.min(again);
        }
        // What is being settled is gone because of that.
        let settled: Vec<_> = lost
            .into_iter()
            .filter(|lost| !self.settles(*lost))
            .collect();
        self.on_lost(&settled);
    }

    pub(super) fn settles(&self, position: Position) -> bool {
        let queued = self.to_settle.iter();
        let mut queued = queued.map(|it| it.settlement.position);
        queued.any(|it| it == position) || self.settling.contains(&position)
    }

    pub(super) fn drop_expired(&mut self, now: Instant) {
        let expired = self.held.expire(now);
        if !expired.is_empty() {
            self.to_settle
                .retain(|it| !expired.contains(&it.settlement.position));
            self.on_lost(&expired);
        }
    }

    /// Messages that another consumer has, or soon will have.
    pub(super) fn on_lost(&mut self, lost: &[Position]) {
        if lost.is_empty() {
            return;
        }
        self.lanes.take(|position| lost.contains(&position));
        for position in lost {
            self.held.remove(*position);
        }
        let many = lost.len() as u64;
        self.shared.totals.leases_lost.fetch_add(many, Relaxed);
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Stream.as_str(),
            name = &*self.shared.stream,
            group = &*self.shared.group,
            messages = many,
            "leases lost"
        );
    }
}
