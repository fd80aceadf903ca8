//! What all processes call: takes effects by key, counts the calls that a bulkhead lets in, and is well or not.
//!
//! A connection sends a line, and is answered by one: `effect KEY` by the number of effects under the key so far, `call` by `ok`
//! or `bad`, `enter` and then `leave` by `ok`.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::{PLACES, lock};

pub(super) struct Dependency {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_away: AtomicBool,
    effects: Mutex<HashMap<usize, usize>>,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    now: usize,
    peak: usize,
    above: Duration,
    since: Option<Instant>,
}

impl Dependency {
    pub(super) async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::<Shared>::default();
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Self { address, shared }
    }

    pub(super) fn set_well(&self, well: bool) {
        self.shared.is_away.store(!well, Relaxed);
    }

    pub(super) fn effects(&self) -> HashMap<usize, usize> {
        lock(&self.shared.effects).clone()
    }

    /// Most calls in the bulkhead at once, and for how long there were more than places.
    pub(super) fn places(&self) -> (usize, Duration) {
        let places = lock(&self.shared.places);
        (places.peak, places.above)
    }
}

impl Places {
    fn become_(&mut self, now: usize) {
        if let Some(since) = self.since.take() {
            self.above += since.elapsed();
        }
        (self.now, self.peak) = (now, self.peak.max(now));
        self.since = (now > PLACES).then(Instant::now);
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut stream = BufReader::new(stream);
    let mut is_inside = false;
    let mut line = String::new();
    while stream
        .read_line(&mut line)
        .await
        .is_ok_and(|bytes| bytes > 0)
    {
        let words = line.trim();
        let (word, key) = words.split_once(' ').unwrap_or((words, ""));
        let answer = match word {
            "effect" => {
                let mut effects = lock(&shared.effects);
                let number = effects.entry(key.parse().expect("a key")).or_default();
                *number += 1;
                format!("{number}\n")
            }
            "call" if shared.is_away.load(Relaxed) => "bad\n".to_owned(),
            "enter" | "leave" => {
                is_inside = word == "enter";
                shared.moved(is_inside);
                "ok\n".to_owned()
            }
            _ => "ok\n".to_owned(),
        };
        line.clear();
        // The caller may be gone.
        let _ = stream.write_all(answer.as_bytes()).await;
    }
    if is_inside {
        shared.moved(false);
    }
}

impl Shared {
    fn moved(&self, inside: bool) {
        let mut places = lock(&self.places);
        let now = if inside {
            places.now + 1
        } else {
            places.now - 1
        };
        places.become_(now);
    }
}
