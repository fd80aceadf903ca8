//! What handlers write to: an effect per event, with a fence; a write with a lower fence than one before is refused.
//!
//! A connection sends lines `EVENT FENCE PROCESS`, each of which is answered by `done` or `fenced`.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub(super) struct Ledger {
    pub(super) address: SocketAddr,
    entries: Arc<Mutex<Entries>>,
    serving: JoinHandle<()>,
}

#[derive(Clone, Default)]
pub(super) struct Entries {
    /// The fences and processes of the writes of an event that were accepted, in order.
    pub(super) writes: HashMap<u64, Vec<(u64, u32)>>,
    /// The events, in the order of their first writes.
    pub(super) order: Vec<u64>,
    /// Number of writes that were refused.
    pub(super) fenced: usize,
}

impl Ledger {
    pub(super) async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let entries = Arc::<Mutex<Entries>>::default();
        let all = Arc::clone(&entries);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Self {
            address,
            entries,
            serving,
        }
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        lock(&self.entries)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entries {
    fn write(&mut self, event: u64, fence: u64, process: u32) -> bool {
        let writes = self.writes.entry(event).or_default();
        if writes.last().is_some_and(|(highest, _)| *highest > fence) {
            self.fenced += 1;
            return false;
        }
        if writes.is_empty() {
            self.order.push(event);
        }
        writes.push((fence, process));
        true
    }
}

async fn serve(stream: TcpStream, entries: Arc<Mutex<Entries>>) {
    let _ = stream.set_nodelay(true);
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines
        .read_line(&mut line)
        .await
        .is_ok_and(|bytes| bytes > 0)
    {
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let mut word = || words.next().expect("three words").expect("a number");
        let (event, fence, process) = (word(), word(), word());
        line.clear();
        let process = u32::try_from(process).expect("a process");
        let is_done = lock(&entries).write(event, fence, process);
        let answer = if is_done { "done\n" } else { "fenced\n" };
        // The process may be gone.
        let _ = lines.write_all(answer.as_bytes()).await;
    }
}
