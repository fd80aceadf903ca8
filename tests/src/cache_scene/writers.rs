//! Keys that are read by several instances while they change, and connections are cut: whether one stays stale.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::Cache;
use resilience_redis::RedisCache;
use tokio::{
    task::{JoinSet, spawn_blocking, yield_now},
    time::{Instant, sleep},
};

use super::{
    SOON, builder,
    raced_keys::{RacedKeys, held},
    store, told, until,
};
use crate::redis::RedisServer;

const NAME: &str = "raced";
const READERS: usize = 4;
const LANES: usize = 8;
/// Of each key.
const CHANGES: u64 = 10;
/// Between cuts.
const CALM: Duration = Duration::from_millis(400);
/// How long an instance may serve an old value when all is quiet.
const GRACE: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raced {
    /// Keys whose value is not the last one when all is quiet, at any reader.
    pub stale: usize,
    /// Reads while the keys changed.
    pub reads: usize,
    /// Reads that a reader answered by itself.
    pub held: u64,
    /// Times that all connections were cut.
    pub cuts: usize,
}

/// One writer, four readers, programs that delete keys or everything, and cuts of all connections.
///
/// # Panics
///
/// If it never becomes quiet.
pub async fn race(keys: usize) -> Raced {
    let scene = Arc::new(Scene::new(keys).await);
    let over = Arc::new(AtomicBool::new(false));
    let cutting = tokio::spawn(cut(Arc::clone(&scene.server), Arc::clone(&over)));
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let scene = Arc::clone(&scene);
        lanes.spawn(async move {
            for key in (lane..keys).step_by(LANES) {
                scene.race(key).await;
            }
        });
    }
    lanes.join_all().await;
    over.store(true, Relaxed);
    let cuts = cutting.await.expect("no panic");
    scene.quiet().await;
    Raced {
        stale: scene.truth.stale(&scene.readers, GRACE).await,
        reads: scene.reads.load(Relaxed),
        held: held(&scene.readers),
        cuts,
    }
}

struct Scene {
    server: Arc<RedisServer>,
    /// Knows the names of keys, for the programs that do not use the cache.
    store: RedisCache,
    writer: Cache<usize, u64>,
    readers: Vec<Cache<usize, u64>>,
    truth: RacedKeys,
    reads: AtomicUsize,
}

impl Scene {
    async fn new(keys: usize) -> Self {
        let server = RedisServer::start();
        let url = server.url();
        let make = || told(builder(NAME), &url);
        Self {
            store: store(&url).await,
            writer: make().await,
            readers: join_all((0..READERS).map(|_| make())).await,
            truth: RacedKeys::new(keys),
            reads: AtomicUsize::new(0),
            server: Arc::new(server),
        }
    }

    async fn race(&self, key: usize) {
        let over = AtomicBool::new(false);
        let changing = async {
            for number in 1..=CHANGES {
                self.change(key, number).await;
                yield_now().await;
            }
            over.store(true, Relaxed);
        };
        let reading = async |reader| {
            while !over.load(Relaxed) {
                self.read(reader, key).await;
                yield_now().await;
            }
        };
        tokio::join!(changing, join_all(self.readers.iter().map(reading)));
    }

    async fn read(&self, reader: &Cache<usize, u64>, key: usize) -> u64 {
        self.reads.fetch_add(1, Relaxed);
        self.truth.read(reader, key).await
    }

    /// Changes the truth, then tells of it, in one of the ways in which a value goes.
    async fn change(&self, key: usize, number: u64) {
        let save = || self.truth.set(key, number);
        match fastrand::u32(..100) {
            0..50 => {
                save();
                // Without an answer, it is repeated.
                let _ = self.writer.invalidate(&key).await;
            }
            50..80 => {
                let saved = || async {
                    save();
                    Ok::<_, Infallible>(())
                };
                self.writer.write(&key, number, saved).await.expect("saved");
            }
            80..99 => {
                save();
                self.outside(format!("DEL {}", self.store.key(NAME, &key.to_string())))
                    .await;
            }
            _ => {
                save();
                self.outside("FLUSHALL".to_owned()).await;
            }
        }
    }

    /// A command of another program, repeated until it is answered.
    async fn outside(&self, command: String) {
        let server = Arc::clone(&self.server);
        let sent = spawn_blocking(move || {
            let start = Instant::now();
            while server.try_command(&command).is_err() {
                assert!(start.elapsed() < SOON, "no answer to {command}");
            }
        });
        sent.await.expect("an answer");
    }

    /// Waits until the store has all invalidations, and every reader hears of changes.
    async fn quiet(&self) {
        let is_told = |it: &Cache<usize, u64>| it.snapshot().coherent;
        until("it is quiet", || {
            self.writer.snapshot().pending_invalidations == 0 && self.readers.iter().all(is_told)
        })
        .await;
        for cache in self.readers.iter().chain([&self.writer]) {
            cache.shutdown(SOON).await.expect("nothing is in progress");
        }
    }
}

/// Cuts all connections again and again: those for commands, and those that changes are told on.
async fn cut(server: Arc<RedisServer>, over: Arc<AtomicBool>) -> usize {
    let mut cuts = 0;
    while !over.load(Relaxed) {
        sleep(CALM).await;
        for kind in ["normal", "pubsub"] {
            let server = Arc::clone(&server);
            let command = format!("CLIENT KILL TYPE {kind} SKIPME yes");
            let cut = spawn_blocking(move || server.try_command(&command).is_ok());
            cuts += usize::from(cut.await.expect("no panic") && kind == "pubsub");
        }
    }
    cuts
}
