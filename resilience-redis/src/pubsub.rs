//! Who listens to which channel, on one connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::connection::{Connection, Push};

/// One sender per channel that somebody here listens to. The newest message replaces one that was not read yet.
#[derive(Debug)]
pub(crate) struct Subscriptions<T> {
    senders: Mutex<HashMap<String, watch::Sender<T>>>,
}

impl<T> Default for Subscriptions<T> {
    fn default() -> Self {
        Self {
            senders: Mutex::default(),
        }
    }
}

impl<T: Send + Sync + 'static> Subscriptions<T> {
    /// Listens to `channel`; what comes is made into a `T` by `read`, on the connection's task.
    pub(crate) fn subscribe(
        &self,
        connection: &Connection,
        channel: &str,
        silence: T,
        read: fn(Push<'_>) -> T,
    ) -> watch::Receiver<T> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        // Listeners that are gone listen no more.
        senders.retain(|other, sender| {
            let heard = other == channel || !sender.is_closed();
            if !heard {
                connection.unsubscribe(other);
            }
            heard
        });
        if let Some(sender) = senders.get(channel) {
            return sender.subscribe();
        }
        let sender = watch::Sender::new(silence);
        let receiver = sender.subscribe();
        senders.insert(channel.to_owned(), sender.clone());
        let tell = move |push: Push<'_>| drop(sender.send_replace(read(push)));
        connection.subscribe(channel, Arc::new(tell));
        receiver
    }
}
