//! The subscriptions of a process: one per channel, however many receivers it has.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use resilience_core::fleet::{Pushed, Subscription};
use tokio::sync::watch;

use crate::connection::{Connection, Push};

/// The channels that this process is subscribed to. One for all stores that are made from a connection.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    channels: Mutex<HashMap<String, Channel>>,
}

#[derive(Debug)]
struct Channel {
    /// A `watch::Sender<M>`, `M` being what the channel's receivers take.
    sender: Box<dyn Any + Send + Sync>,
    guard: Weak<Unsubscribe>,
}

/// Held by all receivers of a channel; dropping the last clone unsubscribes.
#[derive(Debug)]
pub(crate) struct Unsubscribe {
    channel: String,
    subscriptions: Arc<Subscriptions>,
    connection: Arc<Connection>,
}

impl Subscriptions {
    /// See [`StoreContext::subscribe`](crate::store::StoreContext::subscribe).
    pub(crate) fn subscribe<T: Send + Sync + 'static>(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        channel: &str,
        read: fn(&[u8]) -> Option<T>,
    ) -> Subscription<T> {
        let read = move |push: Push<'_>| match push {
            Push::Message(message) => read(message).map_or(Pushed::Missed, Pushed::Value),
            Push::Restored => Pushed::Missed,
        };
        let (receiver, guard) = self.listen(connection, channel, Pushed::None, read);
        Subscription::new(receiver).with_guard(guard)
    }

    /// Subscribes to `channel`, unless this process is: `read` turns what is pushed into the value of the receiver, which is
    /// `initial` until then.
    pub(crate) fn listen<M: Send + Sync + 'static>(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        channel: &str,
        initial: M,
        read: impl Fn(Push<'_>) -> M + Send + Sync + 'static,
    ) -> (watch::Receiver<M>, Arc<Unsubscribe>) {
        let mut channels = self.lock();
        if let Some(known) = channels.get(channel)
            && let Some(sender) = known.sender.downcast_ref::<watch::Sender<M>>()
            && let Some(guard) = known.guard.upgrade()
        {
            return (sender.subscribe(), guard);
        }
        let sender = watch::Sender::new(initial);
        let receiver = sender.subscribe();
        let guard = Arc::new(Unsubscribe {
            channel: channel.to_owned(),
            subscriptions: Arc::clone(self),
            connection: Arc::clone(connection),
        });
        let entry = Channel {
            sender: Box::new(sender.clone()),
            guard: Arc::downgrade(&guard),
        };
        channels.insert(channel.to_owned(), entry);
        let on_push = move |push: Push<'_>| drop(sender.send_replace(read(push)));
        connection.subscribe(channel, Arc::new(on_push));
        (receiver, guard)
    }

    /// Whether this process is subscribed to a channel.
    pub(crate) fn contains(&self, channel: impl FnOnce() -> String) -> bool {
        let channels = self.lock();
        // Mostly there are none, and the name of the channel need not be composed.
        !channels.is_empty() && channels.contains_key(&channel())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unsubscribe {
    fn drop(&mut self) {
        let mut channels = self.subscriptions.lock();
        // A new subscription may have replaced this one in the meantime.
        let is_unused = channels
            .get(&self.channel)
            .is_some_and(|known| known.guard.strong_count() == 0);
        if is_unused {
            channels.remove(&self.channel);
            self.connection.unsubscribe(&self.channel);
        }
    }
}

/// Subscriptions that are ended when the next one begins: for receivers that cannot hold an [`Unsubscribe`]. Goes with the
/// last of them.
#[derive(Debug)]
pub(crate) struct LazySubscriptions<M> {
    senders: Mutex<HashMap<String, watch::Sender<M>>>,
}

impl<M> Default for LazySubscriptions<M> {
    fn default() -> Self {
        Self {
            senders: Mutex::default(),
        }
    }
}

impl<M: Send + Sync + 'static> LazySubscriptions<M> {
    pub(crate) fn subscribe(
        &self,
        connection: &Connection,
        channel: &str,
        initial: M,
        read: fn(Push<'_>) -> M,
    ) -> watch::Receiver<M> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.retain(|other, sender| {
            let is_used = other == channel || !sender.is_closed();
            if !is_used {
                connection.unsubscribe(other);
            }
            is_used
        });
        if let Some(sender) = senders.get(channel) {
            return sender.subscribe();
        }
        let sender = watch::Sender::new(initial);
        let receiver = sender.subscribe();
        senders.insert(channel.to_owned(), sender.clone());
        let on_push = move |push: Push<'_>| drop(sender.send_replace(read(push)));
        connection.subscribe(channel, Arc::new(on_push));
        receiver
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{transport::Timeouts, url::Endpoint};

    /// Nothing has to answer: what is subscribed to is decided here.
    fn connection() -> Arc<Connection> {
        let short = Duration::from_millis(10);
        let timeouts = Timeouts {
            connect: short,
            unacknowledged: short,
        };
        let endpoint = Endpoint::parse("redis://127.0.0.1:1").unwrap();
        Arc::new(Connection::start(endpoint, short, timeouts, None))
    }

    fn text(message: &[u8]) -> Option<String> {
        String::from_utf8(message.to_vec()).ok()
    }

    #[tokio::test]
    async fn a_channel_is_left_with_its_last_receiver_and_entered_again_by_the_next() {
        let (connection, subscriptions) = (connection(), Arc::new(Subscriptions::default()));
        let subscribe = || subscriptions.subscribe(&connection, "channel", text);
        let known = || subscriptions.contains(|| "channel".into());
        for _ in 0..2 {
            assert!(!known());
            let (one, other) = (subscribe(), subscribe());
            drop(one.clone());
            drop(one);
            assert!(known());
            drop(other);
        }
        assert!(!known());
        assert!(subscriptions.lock().is_empty());
    }

    #[tokio::test]
    async fn all_receivers_get_what_is_pushed_and_what_cannot_be_read_is_missed() {
        let (connection, subscriptions) = (connection(), Arc::new(Subscriptions::default()));
        let mut receivers = [(); 2].map(|()| subscriptions.subscribe(&connection, "channel", text));
        for (push, expected) in [
            (Push::Message(b"text"), Pushed::Value("text".to_owned())),
            (Push::Message(b"\xff"), Pushed::Missed),
            (Push::Restored, Pushed::Missed),
        ] {
            connection.push("channel", push);
            for receiver in &mut receivers {
                assert_eq!(receiver.next().await, expected);
            }
        }
    }
}
