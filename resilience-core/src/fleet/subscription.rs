//! Messages from a store.

use std::{any::Any, fmt, sync::Arc};

use tokio::sync::watch;

/// The latest message of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pushed<T> {
    /// No message so far.
    #[default]
    None,
    /// A message.
    Value(T),
    /// The subscription was interrupted: messages may have been lost, so the record should be read.
    Missed,
}

/// The messages of one channel, for one receiver. A newer message replaces one that was not read yet, so nothing
/// accumulates. Dropping the last clone unsubscribes.
pub struct Subscription<T> {
    receiver: watch::Receiver<Pushed<T>>,
    /// Ends what the store does for the subscription.
    guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl<T> Clone for Subscription<T> {
    fn clone(&self) -> Self {
        Self {
            receiver: self.receiver.clone(),
            guard: self.guard.clone(),
        }
    }
}

impl<T> Subscription<T> {
    /// A subscription to what the other end of `receiver` sends.
    #[must_use]
    pub const fn new(receiver: watch::Receiver<Pushed<T>>) -> Self {
        Self {
            receiver,
            guard: None,
        }
    }

    /// Drops `guard` with the last clone of the subscription, so that a store can unsubscribe.
    #[must_use]
    pub fn with_guard(mut self, guard: Arc<dyn Any + Send + Sync>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Waits for the next message; forever, once the store is gone. Cancel safe: a message is not lost when the future
    /// is dropped.
    pub async fn next(&mut self) -> Pushed<T>
    where
        T: Clone,
    {
        self.changed().await;
        self.receiver.borrow_and_update().clone()
    }

    /// Waits until a message arrives that satisfies `wanted`, or messages may have been lost.
    pub async fn wait_for(&mut self, wanted: impl Fn(&T) -> bool) {
        loop {
            self.changed().await;
            match &*self.receiver.borrow_and_update() {
                Pushed::Missed => return,
                Pushed::Value(value) if wanted(value) => return,
                Pushed::Value(_) | Pushed::None => {}
            }
        }
    }

    /// Ignores what was sent so far.
    pub fn catch_up(&mut self) {
        self.receiver.mark_unchanged();
    }

    async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription")
            .field(&*self.receiver.borrow())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[test]
    fn the_latest_value_wins_and_a_lost_connection_is_told() {
        let sender = watch::Sender::new(Pushed::None);
        let mut subscription = Subscription::new(sender.subscribe());
        sender.send_replace(Pushed::Value(1));
        sender.send_replace(Pushed::Value(2));
        let next = |subscription: &mut Subscription<i32>| {
            let mut next = task::spawn(subscription.next());
            assert_ready!(next.poll())
        };
        assert_eq!(next(&mut subscription), Pushed::Value(2));
        sender.send_replace(Pushed::Missed);
        assert_eq!(next(&mut subscription), Pushed::Missed);
        drop(sender);
        let mut forever = task::spawn(subscription.next());
        assert_pending!(forever.poll());
    }

    #[test]
    fn a_wait_ends_by_what_it_wants_or_when_that_may_have_been_lost() {
        let sender = watch::Sender::new(Pushed::None);
        let mut subscription = Subscription::new(sender.subscribe());
        for end in [Pushed::Value(7), Pushed::Missed] {
            let mut wait = task::spawn(subscription.wait_for(|value| *value == 7));
            assert_pending!(wait.poll());
            sender.send_replace(Pushed::Value(1));
            assert_pending!(wait.poll());
            sender.send_replace(end);
            assert_ready!(wait.poll());
        }
    }

    #[test]
    fn the_last_clone_unsubscribes() {
        let (sender, guard) = (watch::Sender::new(Pushed::<()>::None), Arc::new(()));
        let gone = Arc::downgrade(&guard);
        let one = Subscription::new(sender.subscribe()).with_guard(guard);
        let other = one.clone();
        drop(one);
        assert!(gone.upgrade().is_some());
        drop(other);
        assert!(gone.upgrade().is_none());
    }
}
