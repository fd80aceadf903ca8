use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::*;

/// Writes down what it does.
struct Diary {
    entries: Arc<Mutex<Vec<String>>>,
    next_due: Instant,
    closing_takes: Duration,
}

impl Diary {
    fn note(&self, entry: impl Into<String>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(entry.into());
    }
}

impl Agent for Diary {
    type Push = u32;

    fn next_due(&self) -> Instant {
        self.next_due
    }

    async fn on_due(&mut self) {
        self.note("due");
        self.next_due += Duration::from_secs(10);
    }

    async fn on_wake(&mut self) {
        self.note("woken");
    }

    async fn on_push(&mut self, push: Pushed<u32>) {
        self.note(format!("{push:?}"));
    }

    async fn on_close(&mut self) {
        tokio::time::sleep(self.closing_takes).await;
        self.note("closed");
    }
}

struct Started {
    handle: AgentHandle,
    waker: Waker,
    entries: Arc<Mutex<Vec<String>>>,
    pushes: watch::Sender<Pushed<u32>>,
    tasks: StoreHandle,
}

fn start(closing_takes: Duration) -> Started {
    let entries = Arc::default();
    let agent = Diary {
        entries: Arc::clone(&entries),
        next_due: Instant::now() + Duration::from_secs(10),
        closing_takes,
    };
    let (pushes, tasks) = (watch::Sender::new(Pushed::None), StoreHandle::new());
    let subscription = Some(Subscription::new(pushes.subscribe()));
    let waker = Waker::new();
    let handle = spawn(
        agent,
        subscription,
        waker.clone(),
        &tasks,
        &Handle::current(),
    );
    Started {
        handle,
        waker,
        entries,
        pushes,
        tasks,
    }
}

impl Started {
    async fn entries_after(&self, time: Duration) -> Vec<String> {
        tokio::time::sleep(time).await;
        std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

const SOON: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn it_does_what_is_due_what_it_is_woken_for_and_what_is_pushed() {
    let started = start(Duration::ZERO);
    started.waker.wake();
    started.waker.wake();
    assert_eq!(started.entries_after(SOON).await, ["woken"]);
    started.pushes.send_replace(Pushed::Value(7));
    assert_eq!(started.entries_after(SOON).await, ["Value(7)"]);
    assert_eq!(
        started.entries_after(Duration::from_secs(21)).await,
        ["due", "due"]
    );
}

#[tokio::test(start_paused = true)]
async fn dropping_the_handle_ends_the_agent_after_its_last_writes() {
    let started = start(Duration::ZERO);
    let Started {
        handle,
        entries,
        tasks,
        ..
    } = started;
    drop(handle);
    tokio::time::sleep(SOON).await;
    assert_eq!(*entries.lock().unwrap(), ["closed"]);
    assert!(tasks.shutdown(Duration::ZERO).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_of_the_store_waits_for_every_agent_and_no_longer_than_it_may() {
    let (one, tasks) = {
        let started = start(Duration::from_secs(3));
        let tasks = started.tasks.clone();
        (started, tasks)
    };
    assert_eq!(
        tasks
            .shutdown(Duration::from_secs(1))
            .await
            .unwrap_err()
            .tasks,
        1
    );
    tasks.shutdown(Duration::from_secs(3)).await.unwrap();
    assert_eq!(*one.entries.lock().unwrap(), ["closed"]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_of_one_handle_leaves_the_others_of_its_store_alone() {
    let one = start(Duration::ZERO);
    let other = {
        let agent = Diary {
            entries: Arc::default(),
            next_due: Instant::now() + Duration::from_secs(10),
            closing_takes: Duration::ZERO,
        };
        spawn(agent, None, Waker::new(), &one.tasks, &Handle::current())
    };
    one.handle.shutdown(Duration::from_secs(1)).await.unwrap();
    assert!(!other.tasks().is_closing());
    assert_eq!(*one.entries.lock().unwrap(), ["closed"]);
}
