//! One process: makes its calls, several at a time, and says what it is told, a line each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, stdin},
    task::JoinSet,
};

use super::subject::{Client, Subject};

/// Calls under way at once.
const LANES: usize = 4;
/// Keys that are in use at once.
const WINDOW: usize = 20;

/// What a process is told to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) worker: usize,
    /// The first of its calls without a reported outcome.
    pub(super) from: usize,
    /// Its calls in all.
    pub(super) to: usize,
    pub(super) keys: usize,
}

impl Task {
    /// The key of a call: all processes go through the keys at about the same pace, so that they meet.
    pub(super) fn key(&self, call: usize) -> usize {
        let at = call * self.keys / self.to;
        let mut random = fastrand::Rng::with_seed((self.worker * self.to + call) as u64);
        (at + random.usize(..WINDOW)).min(self.keys - 1)
    }
}

pub(super) fn name(key: usize) -> String {
    format!("key-{key:05}")
}

/// Does what the arguments say: `SUBJECT DATABASE REDIS WORKER FROM TO KEYS`. Ends with its input.
///
/// # Panics
/// If the arguments are others.
pub async fn work(arguments: &[String]) {
    let [subject, database, redis, numbers @ ..] = arguments else {
        panic!("SUBJECT DATABASE REDIS WORKER FROM TO KEYS");
    };
    let numbers: Vec<usize> = numbers
        .iter()
        .map(|word| word.parse().expect("a number"))
        .collect();
    let [worker, from, to, keys] = numbers[..] else {
        panic!("WORKER FROM TO KEYS");
    };
    let task = Task {
        worker,
        from,
        to,
        keys,
    };
    let subject: Subject = subject.parse().expect("a subject");
    let client = Arc::new(Client::new(subject, database, redis));
    let hung_up = Arc::new(AtomicU64::new(0));
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (client, hung_up) = (Arc::clone(&client), Arc::clone(&hung_up));
        lanes.spawn(async move {
            for call in (task.from..task.to).filter(|call| call % LANES == lane) {
                call_until_told(&client, task, call, &hung_up).await;
            }
        });
    }
    let (mut ended, mut gone) = (Vec::new(), Vec::new());
    tokio::select! {
        _ = lanes.join_all() => {
            println!("end {}", hung_up.load(Relaxed));
            // Work that goes on although its caller has hung up.
            let _ = stdin().read_to_end(&mut ended).await;
        }
        // The parent process is gone.
        _ = async { stdin().read_to_end(&mut gone).await } => {}
    }
}

async fn call_until_told(client: &Client, task: Task, call: usize, hung_up: &AtomicU64) {
    let key = task.key(call);
    let name = name(key);
    loop {
        let asking = client.ask(&name, task.worker as i32);
        // One in ten is impatient.
        let patience = match fastrand::u8(..10) {
            0 => Duration::from_millis(fastrand::u64(1..60)),
            _ => Duration::from_secs(4),
        };
        match tokio::time::timeout(patience, asking).await {
            Ok(Some(outcome)) => {
                println!("told {call} {key} {outcome}");
                return;
            }
            Ok(None) => tokio::time::sleep(Duration::from_millis(fastrand::u64(1..30))).await,
            Err(_) => {
                hung_up.fetch_add(1, Relaxed);
            }
        }
    }
}
