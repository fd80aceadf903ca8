//! How the agent settles the probes of this instance.

use std::sync::Arc;

use super::{
    agent::BreakerAgent,
    message::{AgentMessage, ProbeLease},
};
use crate::clock::Moment;

impl BreakerAgent {
    /// One attempt here, so that the views of several probes come in order; more in the background.
    pub(super) async fn settle(&mut self, lease: ProbeLease, success: Option<bool>) {
        let member = Arc::clone(&self.member);
        if member.client.is_available() {
            let answer = member
                .client
                .attempt(|store| store.settle(&member.name, &lease.id, lease.epoch, success));
            if let Ok((_, view)) = answer.await {
                self.see(&view).await;
                return;
            }
        }
        self.settle_in_background(lease, success);
    }

    /// Until the lease ends by itself.
    pub(super) fn settle_in_background(&self, lease: ProbeLease, success: Option<bool>) {
        let member = Arc::clone(&self.member);
        self.member.spawn(async move {
            let until = member.clock.instant(lease.ends);
            let (name, id) = (&member.name, &lease.id);
            let settled = member
                .client
                .call_until(until, |store| store.settle(name, id, lease.epoch, success));
            if let Ok((_, view)) = settled.await {
                member.send(AgentMessage::Seen(Box::new(view)));
            }
        });
    }

    /// Gives back a probe that may have been granted, in the background, until its lease ends by itself.
    pub(super) fn give_back(&self, lease: Arc<str>, ends: Moment) {
        let (member, mut epoch) = (Arc::clone(&self.member), self.ledger.known().epoch);
        self.member.spawn(async move {
            let until = member.clock.instant(ends);
            let (name, lease) = (&member.name, &lease);
            // The request may have begun an epoch that was not known here.
            for _ in 0..2 {
                let settled = member
                    .client
                    .call_until(until, |store| store.settle(name, lease, epoch, None));
                let Ok((given_back, view)) = settled.await else {
                    return;
                };
                let is_newer = view.epoch > epoch;
                epoch = view.epoch;
                member.send(AgentMessage::Seen(Box::new(view)));
                if given_back || !is_newer {
                    return;
                }
            }
        });
    }

    pub(super) async fn end_late_leases(&mut self) {
        let now = self.member.clock.now();
        let late: Vec<_> = self
            .leases
            .extract_if(|_, lease| lease.by <= now)
            .map(|(_, lease)| lease)
            .collect();
        for lease in late {
            self.settle(lease, Some(false)).await;
        }
    }
}
