//! The ends of deliveries, as the broker answers them.

use std::{fmt, mem, sync::atomic::Ordering::Relaxed};

use tower_service::Service;

use super::{Message, driver::Driver, outcomes::ToSettle};
use crate::{
    classify::Classify,
    error::{Pattern, ServiceError},
    stream::{
        broker::StoreError,
        message::Position,
        steps::{Action, Settled},
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
    pub(super) fn on_settled(
        &mut self,
        batch: Vec<ToSettle>,
        answers: Result<Vec<Settled>, StoreError>,
    ) {
        self.settling.clear();
        match answers {
            Ok(answers) => {
                for (settled, answer) in batch.into_iter().zip(answers) {
                    self.held.remove(settled.settlement.position);
                    self.count_settled(&settled, answer);
                }
            }
            Err(error) => {
                let again = batch.into_iter().map(|it| ToSettle {
                    in_doubt: it.in_doubt || error.ambiguous,
                    ..it
                });
                // Those whose leases end meanwhile are dropped.
                let newer = mem::take(&mut self.to_settle);
                self.to_settle = again.chain(newer).collect();
                self.at.settle = Self::pause_after_error();
            }
        }
    }

    fn count_settled(&self, settled: &ToSettle, answer: Settled) {
        let totals = &self.shared.totals;
        let done = answer == Settled::Done || settled.in_doubt && answer == Settled::Gone;
        let total = match &settled.settlement.action {
            _ if !done => &totals.lost,
            Action::Ack(_) => &totals.acknowledged,
            Action::Retry { .. } => &totals.retried,
            Action::GiveBack { .. } => &totals.given_back,
            Action::Dead { reason } => {
                self.tell_dead(settled.settlement.position, reason);
                &totals.dead
            }
        };
        total.fetch_add(1, Relaxed);
    }

    fn tell_dead(&self, position: Position, reason: &str) {
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Stream.as_str(),
            name = &*self.shared.stream,
            group = &*self.shared.group,
            position = %position,
            reason,
            "dead letter"
        );
    }
}
