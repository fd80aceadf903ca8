//! What a test logs, as text.

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

/// This thread's log, until it is dropped.
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
    /// The events of target `resilience` so far, one a line, without time and level.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap();
        let ours = text
            .lines()
            .filter_map(|line| line.split_once(" resilience: "));
        ours.map(|(_, event)| event.to_owned()).collect()
    }
}

/// The events of target `resilience` that `work` leaves on this thread, one a line, without time and level.
pub(crate) fn events_of(work: impl FnOnce()) -> Vec<String> {
    let listening = listen();
    work();
    listening.events()
}

/// Makes this thread's events go to `subscriber`.
///
/// As long as there is a single subscriber in a process, `tracing` asks the thread that meets an event first whether anybody
/// wants it, and remembers the answer for all threads; that thread may be another test's, which does not listen. So there
/// is always a second one here: then it asks all of them.
pub(crate) fn set_default(subscriber: impl Into<Dispatch>) -> DefaultGuard {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    LazyLock::force(&SECOND);
    tracing::dispatcher::set_default(&subscriber.into())
}
