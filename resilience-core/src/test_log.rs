//! The log of a test, as text.

use std::{
    io,
    sync::{Arc, LazyLock, Mutex},
};

use tracing::{
    Dispatch,
    subscriber::{DefaultGuard, NoSubscriber},
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Records this thread's log until dropped.
pub(crate) struct Listening {
    log: Log,
    _default: DefaultGuard,
}

pub(crate) fn listen() -> Listening {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    Listening {
        log,
        _default: set_default(subscriber),
    }
}

impl Listening {
    /// The events of target `resilience` so far, one per line, without time and level.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap();
        let ours = text
            .lines()
            .filter_map(|line| line.split_once(" resilience: "));
        ours.map(|(_, event)| event.to_owned()).collect()
    }
}

/// The events of target `resilience` that `work` emits on this thread, one per line, without time and level.
pub(crate) fn events_of(work: impl FnOnce()) -> Vec<String> {
    let listening = listen();
    work();
    listening.events()
}

/// Sends this thread's events to `subscriber`.
///
/// With a single subscriber in the process, `tracing` decides at the first occurrence of an event whether it is enabled,
/// on the thread that emits it, for all threads; that thread may run another test, without a subscriber. A second
/// subscriber in the process makes it ask all of them.
pub(crate) fn set_default(subscriber: impl Into<Dispatch>) -> DefaultGuard {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    LazyLock::force(&SECOND);
    tracing::dispatcher::set_default(&subscriber.into())
}
