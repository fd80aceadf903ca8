//! Keeps the connection subscribed to what somebody listens to.

use std::{collections::HashSet, convert::Infallible, sync::atomic::Ordering::Relaxed};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Push, Shared};
use crate::error::StoreError;

impl Shared {
    /// Subscribes and unsubscribes as channels come and go, for as long as the connection lives. One task does it all:
    /// two would overtake each other.
    pub(super) async fn keep_subscribed(&self, mut subscribed: HashSet<String>) -> Infallible {
        loop {
            self.wanted.notified().await;
            while self.match_subscriptions(&mut subscribed).await.is_err() {
                // What has no answer may have been done: it is asked for again.
                tokio::time::sleep(self.budget.limit()).await;
            }
        }
    }

    /// Brings what the connection is `subscribed` to in line with what is wanted.
    pub(super) async fn match_subscriptions(
        &self,
        subscribed: &mut HashSet<String>,
    ) -> Result<(), StoreError> {
        let (new, gone): (Vec<String>, Vec<String>) = {
            let wanted = self.lock_subscribers();
            let new = wanted
                .keys()
                .filter(|&channel| !subscribed.contains(channel));
            let gone = subscribed
                .iter()
                .filter(|&channel| !wanted.contains_key(channel));
            (new.cloned().collect(), gone.cloned().collect())
        };
        let subscribing = new.iter().map(|channel| self.subscribe_or_poll(channel));
        let unsubscribing = gone.iter().map(|channel| self.unsubscribe_now(channel));
        let (new_answers, gone_answers) =
            futures_util::future::join(join_all(subscribing), join_all(unsubscribing)).await;
        let mut outcome = Ok(());
        for (channel, answer) in gone.iter().zip(gone_answers) {
            match answer {
                Ok(()) => drop(subscribed.remove(channel)),
                Err(error) => outcome = Err(error),
            }
        }
        for (channel, answer) in new.into_iter().zip(new_answers) {
            match answer {
                Ok(()) => drop(subscribed.insert(channel)),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Without pushes the store is still of use: what they tell is asked for, somewhat later.
    async fn subscribe_or_poll(&self, channel: &str) -> Result<(), StoreError> {
        match self.subscribe_now(channel).await {
            Err(StoreError::Refused(_)) if self.without_pushes.swap(true, Relaxed) => Ok(()),
            Err(StoreError::Refused(reason)) => {
                tracing::warn!(target: "resilience", redis = ?self.target, channel, reason, "no pushes from Redis");
                Ok(())
            }
            answer => answer,
        }
    }

    async fn subscribe_now(&self, channel: &str) -> Result<(), StoreError> {
        let live = self.current.load_full().ok_or(StoreError::Down)?;
        match timeout(
            self.budget.limit().max(self.patience.connect),
            live.conn.clone().subscribe(channel),
        )
        .await
        {
            Ok(Ok(())) => self.push(channel, Push::Restored),
            Ok(Err(error)) => return Err(StoreError::from_redis(&error)),
            Err(_) => return Err(StoreError::TimedOut),
        }
        Ok(())
    }

    async fn unsubscribe_now(&self, channel: &str) -> Result<(), StoreError> {
        let live = self.current.load_full().ok_or(StoreError::Down)?;
        let patience = self.budget.limit().max(self.patience.connect);
        match timeout(patience, live.conn.clone().unsubscribe(channel)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => match StoreError::from_redis(&error) {
                // Without the right to listen there is nothing to end.
                StoreError::Refused(_) => Ok(()),
                error => Err(error),
            },
            Err(_) => Err(StoreError::TimedOut),
        }
    }
}
