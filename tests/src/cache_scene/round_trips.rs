//! The commands that a call sends, by the server's own count.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use resilience_core::Cache;
use tokio::time::timeout;

use super::{SOON, builder, told};
use crate::redis::RedisServer;

const NAME: &str = "trips";

/// Commands per call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrips {
    /// A value that the store holds.
    pub hit: f64,
    /// A value that is loaded, the fill included.
    pub miss: f64,
    /// Those of a miss whose answer the caller waits for.
    pub miss_waited: f64,
    /// A hundred values that the store holds, asked for together.
    pub many: f64,
}

type Loads = Result<HashMap<u64, u64>, Infallible>;

/// Counts them, over `calls` calls of each kind.
///
/// # Panics
///
/// If a call does not get what it asks for.
pub async fn round_trips(calls: u64) -> RoundTrips {
    let scene = Scene::new().await;
    let (writer, reader) = (&scene.writer, &scene.reader);
    let miss = scene
        .count(calls, async |key| load(writer, key).await)
        .await;
    let hit = scene
        .count(calls, async |key| load(reader, key).await)
        .await;
    let keys: Vec<u64> = (1 << 32..).take(100).collect();
    for key in &keys {
        writer.put(key, *key).await.expect("an answer");
    }
    let all = async |_| {
        let loads = |_| async { panic!("the store holds all of them") };
        let found = reader.get_or_load_many::<_, Loads, _>(&keys, loads);
        assert_eq!(found.await.values.len(), keys.len());
    };
    RoundTrips {
        hit,
        miss,
        many: scene.count(calls, all).await,
        miss_waited: scene.waited().await,
    }
}

struct Scene {
    server: Arc<RedisServer>,
    writer: Cache<u64, u64>,
    /// Holds nothing by itself.
    reader: Cache<u64, u64>,
}

impl Scene {
    async fn new() -> Self {
        let server = Arc::new(RedisServer::start());
        let writer = told(builder(NAME), &server.url()).await;
        let reader = told(builder(NAME).without_local(), &server.url()).await;
        // The server knows the scripts and the name of the cache from here on; the handles, the generation of all values.
        for (cache, key) in [(&writer, u64::MAX), (&reader, u64::MAX - 1)] {
            load(cache, key).await;
            load(cache, key).await;
        }
        Self {
            server,
            writer,
            reader,
        }
    }

    async fn count(&self, calls: u64, call: impl AsyncFn(u64)) -> f64 {
        self.idle().await;
        let before = commands(&self.server);
        for number in 0..calls {
            call(number).await;
        }
        self.idle().await;
        (commands(&self.server) - before) as f64 / calls as f64
    }

    async fn idle(&self) {
        for cache in [&self.writer, &self.reader] {
            cache.shutdown(SOON).await.expect("nothing is in progress");
        }
    }

    /// The server stands still from the load on: what is sent then is not waited for, or the call would not end.
    async fn waited(&self) -> f64 {
        self.idle().await;
        let before = commands(&self.server);
        let (server, sent) = (Arc::clone(&self.server), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&sent);
        let load = move || async move {
            counted.store(commands(&server) - before, SeqCst);
            server.pause();
            Ok::<_, Infallible>(7)
        };
        let call = timeout(SOON, self.writer.get_or_load(&(1 << 40), load)).await;
        self.server.unpause();
        let got = call.expect("the answer to the fill is not waited for");
        assert_eq!(got.expect("loaded").as_deref(), Some(&7));
        self.idle().await;
        sent.load(SeqCst) as f64
    }
}

async fn load(cache: &Cache<u64, u64>, key: u64) {
    let load = move || async move { Ok::<_, Infallible>(key) };
    let got = cache.get_or_load(&key, load).await;
    assert_eq!(got.expect("loaded").as_deref(), Some(&key));
}

/// Reads and scripts.
fn commands(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats");
    let calls = |name: &str| -> u64 {
        let name = format!("cmdstat_{name}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&*name));
        let calls = line.and_then(|line| line.split(',').next());
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    };
    ["get", "mget", "evalsha", "eval"].map(calls).iter().sum()
}
