//! The membership heartbeat: one for all handles that use one store handle.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

use super::{
    agent::{Agent, Waker, run},
    handle::StoreHandle,
    membership::Membership,
    time::jittered,
};

/// An instance is no longer live when nothing was heard of it for this many intervals.
const INTERVALS: u32 = 3;

/// Starts the heartbeat of `handle`, unless it runs already; the settings are those of the first call. Whether there is
/// one.
pub(crate) fn join(
    handle: &StoreHandle,
    runtime: &Handle,
    budget: Duration,
    interval: Duration,
) -> bool {
    let Some(membership) = handle.membership() else {
        return false;
    };
    if membership.start() {
        let heartbeat = Heartbeat {
            membership: Arc::clone(membership),
            budget,
            interval,
            next: Instant::now(),
        };
        let tasks = handle.of_handle();
        tasks.spawn(runtime, run(heartbeat, None, Waker::new(), tasks.clone()));
    }
    true
}

/// Tells the store that this instance is live, and that it leaves.
struct Heartbeat {
    membership: Arc<Membership>,
    budget: Duration,
    interval: Duration,
    next: Instant,
}

impl Heartbeat {
    /// What fails is not repeated: the next heartbeat follows, and an instance that left without a word is forgotten.
    async fn send(&self, ttl: Duration) {
        let members = self.membership.members();
        let answer = members.heartbeat(self.membership.instance(), ttl);
        match timeout(self.budget, answer).await {
            Ok(Ok(live)) => self.membership.saw(live),
            _ => self.membership.missed(),
        }
    }
}

impl Agent for Heartbeat {
    type Push = ();

    fn next_due(&self) -> Instant {
        self.next
    }

    async fn on_due(&mut self) {
        self.send(self.interval * INTERVALS).await;
        self.next = Instant::now() + jittered(self.interval);
    }

    async fn on_close(&mut self) {
        self.send(Duration::ZERO).await;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        collections::HashMap,
        future::ready,
        sync::{Mutex, PoisonError},
    };

    use tokio::{runtime::Handle, time::sleep};

    use super::*;
    use crate::fleet::{MemberStore, StoreFuture};

    #[derive(Debug, Default)]
    struct Members(Mutex<HashMap<String, Instant>>);

    impl MemberStore for Members {
        fn heartbeat<'a>(&'a self, instance: &'a str, ttl: Duration) -> StoreFuture<'a, u64> {
            let (now, mut members) = (
                Instant::now(),
                self.0.lock().unwrap_or_else(PoisonError::into_inner),
            );
            members.insert(instance.to_owned(), now + ttl);
            members.retain(|_, until| *until > now);
            Box::pin(ready(Ok(members.len() as u64)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_handles_of_a_store_are_two_instances_and_many_users_of_one_handle_are_one() {
        let members = Arc::new(Members::default());
        let handle = || StoreHandle::with_members(Arc::clone(&members) as _);
        let (one, other) = (handle(), handle());
        assert_eq!(one.live_instances(), None);
        let second = Duration::from_secs(1);
        for _ in 0..100 {
            assert!(join(&one, &Handle::current(), second, second));
        }
        sleep(second * 5).await;
        assert_eq!(one.live_instances(), Some(1));
        join(&other, &Handle::current(), second, second);
        sleep(second * 5).await;
        assert_eq!(
            (one.live_instances(), other.live_instances()),
            (Some(2), Some(2))
        );
        other.shutdown(second).await.unwrap();
        sleep(second * 2).await;
        assert_eq!(one.live_instances(), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_without_members_has_no_heartbeat() {
        let handle = StoreHandle::new();
        assert!(!join(
            &handle,
            &Handle::current(),
            Duration::from_secs(1),
            Duration::from_secs(1)
        ));
        assert_eq!(handle.live_instances(), None);
    }
}
