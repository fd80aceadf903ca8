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
    /// A `watch::Sender<Pushed<T>>`, for the `T` of the channel's messages.
    sender: Box<dyn Any + Send + Sync>,
    guard: Weak<Unsubscribe>,
}

/// Held by all receivers of a channel; dropping the last clone unsubscribes.
#[derive(Debug)]
struct Unsubscribe {
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
        let mut channels = self.lock();
        if let Some(known) = channels.get(channel)
            && let Some(sender) = known.sender.downcast_ref::<watch::Sender<Pushed<T>>>()
            && let Some(guard) = known.guard.upgrade()
        {
            return Subscription::new(sender.subscribe()).with_guard(guard);
        }
        let sender = watch::Sender::new(Pushed::None);
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
        let on_push = move |push: Push<'_>| {
            sender.send_replace(match push {
                Push::Message(message) => read(message).map_or(Pushed::Missed, Pushed::Value),
                Push::Restored => Pushed::Missed,
            });
        };
        connection.subscribe(channel, Arc::new(on_push));
        Subscription::new(receiver).with_guard(guard)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;

    use super::*;
    use crate::{connection::Settings, url::Endpoint};

    /// Nothing has to answer: what is subscribed to is decided here.
    fn connection() -> Arc<Connection> {
        let short = Duration::from_millis(10);
        let endpoint = Endpoint::parse("redis://127.0.0.1:1").unwrap();
        Arc::new(Connection::start(
            endpoint,
            Settings::all_within(short),
            Handle::current(),
        ))
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
