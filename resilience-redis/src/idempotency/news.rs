//! Subscriptions to records: one per connection and record that callers wait for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use resilience_core::fleet::{Pushed, Subscription};
use tokio::sync::watch;

use crate::connection::{Connection, Push};

/// The channels that this process is subscribed to; one for all stores that are made from a connection.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// By channel.
    heard: Mutex<HashMap<String, Heard>>,
}

#[derive(Debug)]
struct Heard {
    sender: watch::Sender<Pushed<()>>,
    listening: Weak<Listening>,
}

/// Held by all receivers of a channel; dropping the last clone unsubscribes.
#[derive(Debug)]
struct Listening {
    channel: String,
    waiting: Arc<Waiting>,
    connection: Arc<Connection>,
}

impl Waiting {
    /// Subscribes to `channel`, unless this process is.
    pub(super) fn listen(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        channel: String,
    ) -> Subscription<()> {
        let mut heard = self.lock();
        if let Some(one) = heard.get(&channel)
            && let Some(listening) = one.listening.upgrade()
        {
            return Subscription::new(one.sender.subscribe()).with_guard(listening);
        }
        let sender = watch::Sender::new(Pushed::None);
        let listening = Arc::new(Listening {
            channel: channel.clone(),
            waiting: Arc::clone(self),
            connection: Arc::clone(connection),
        });
        let changes = Subscription::new(sender.subscribe()).with_guard(Arc::clone(&listening) as _);
        let teller = sender.clone();
        // A new or restored subscription counts as a message: the record may have changed before.
        connection.subscribe(
            &channel,
            Arc::new(move |push: Push<'_>| {
                teller.send_replace(match push {
                    Push::Message(_) => Pushed::Value(()),
                    Push::Restored => Pushed::Missed,
                });
            }),
        );
        let listening = Arc::downgrade(&listening);
        heard.insert(channel, Heard { sender, listening });
        changes
    }

    /// Whether this process is subscribed to the channel.
    pub(super) fn listens(&self, channel: impl FnOnce() -> String) -> bool {
        // Usually there are no subscriptions.
        let heard = self.lock();
        !heard.is_empty() && heard.contains_key(&channel())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut heard = self.waiting.lock();
        // Another receiver may have subscribed in the meantime.
        let is_ours = heard
            .get(&self.channel)
            .is_some_and(|one| one.listening.strong_count() == 0);
        if is_ours {
            heard.remove(&self.channel);
            self.connection.unsubscribe(&self.channel);
        }
    }
}
