//! Cached values: a hit beside a bare GET, and what each script costs the server.

use std::sync::Arc;

use resilience_core::cache::{
    CacheStore,
    record::{Fill, Lease, Leased, TagGeneration, Token},
};
use resilience_redis::RedisCache;

use crate::{
    bare::{connection, per_second},
    fleet::connect,
    redis::RedisServer,
    report::{Target, figure, quantile},
};

const NAME: &str = "products";
const HOUR: u64 = 3_600_000;

pub(crate) async fn run() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.cache();
    hits(&server, &store).await;
    scripts(&server, &store).await;
    memory(&server, &store);
}

/// A value of 200 bytes with the tag that all values have.
fn value(fresh_ms: u64) -> Fill {
    Fill {
        body: Some(vec![b'v'; 200].into()),
        fresh_ms,
        keep_ms: 2 * HOUR,
        load_ms: 7,
        tags: [TagGeneration {
            tag: "".into(),
            generation: 1_700_000_000_000_000,
        }]
        .into(),
    }
}

fn lease() -> Lease {
    Lease {
        token: Token::random(),
        lease_ms: HOUR,
        renew: None,
    }
}

/// Hits of the store beside GETs of as many bytes, sent by the client crate on a connection with the same settings: as many at
/// once, in turns.
async fn hits(server: &RedisServer, store: &RedisCache) {
    const TURNS: usize = 15;
    const TASKS: usize = 64;
    let fresh = value(HOUR);
    let put = store.put(NAME, "apple-0001", Token::random(), &fresh);
    put.await.expect("an answer");
    let conn = connection(server).await;
    let key: Arc<str> = store.key(NAME, "apple-0001").into();
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (conn, key) = (conn.clone(), Arc::clone(&key));
        bare.push(
            per_second(TASKS, move || {
                let (mut conn, key) = (conn.clone(), Arc::clone(&key));
                async move {
                    let mut get = ::redis::cmd("GET");
                    let got: Vec<u8> = get.arg(&*key).query_async(&mut conn).await.expect("bytes");
                    assert!(got.len() > 200);
                }
            })
            .await,
        );
        let store = store.clone();
        whole.push(
            per_second(TASKS, move || {
                let store = store.clone();
                async move {
                    let got = store.get(NAME, &["apple-0001"]).await.expect("an answer");
                    assert!(got[0].as_ref().is_some_and(|entry| entry.is_fresh()));
                }
            })
            .await,
        );
    }
    // Neighbours in time are compared: the machine is not equally busy all the time.
    let mut shares: Vec<f64> = whole.iter().zip(&bare).map(|(it, get)| it / get).collect();
    let (get, hit) = (quantile(&mut bare, 0.5), quantile(&mut whole, 0.5));
    figure("cache_bare_gets_per_second", get, "gets/s", Target::Open);
    figure("cache_store_hits_per_second", hit, "hits/s", Target::Open);
    let least = Target::AtLeast(0.85);
    let share = quantile(&mut shares, 0.5);
    figure("cache_store_hit_of_get", share, "share", least);
}

/// Microseconds of the server, by its own count.
async fn scripts(server: &RedisServer, store: &RedisCache) {
    let costs = Costs { server };
    let (fresh, old, asked) = (&value(HOUR), &value(0), &lease());
    let token = asked.token;
    let key = |prefix: &str, number: u64| format!("{prefix}-{number:04}");
    let put = async |key: &str, fill: &Fill| {
        let put = store.put(NAME, key, Token::random(), fill).await;
        put.expect("an answer");
    };
    let leased =
        async |key: String, lease: &Lease| store.lease(NAME, &key, lease).await.expect("an answer");
    costs
        .of("put", async |n| put(&key("put", n), fresh).await)
        .await;
    costs
        .of("put_over_a_value", async |n| put(&key("put", n), old).await)
        .await;
    let get = async |n| drop(store.get(NAME, &[&key("put", n)]).await);
    costs.of_command("get", "hit", get).await;
    let granted = async |n| {
        let answer = leased(key("miss", n), asked).await;
        assert_eq!(answer, Leased::Granted { stale: None });
    };
    costs.of("lease_of_a_miss", granted).await;
    let held = async |n| drop(leased(key("miss", n), &lease()).await);
    costs.of("lease_held", held).await;
    let filled = async |n| drop(store.fill(NAME, &key("miss", n), token, fresh).await);
    costs.of("fill", filled).await;
    let is_fresh = async |n| {
        let answer = leased(key("miss", n), &lease()).await;
        assert!(matches!(answer, Leased::Fresh(_)));
    };
    costs.of("lease_fresh", is_fresh).await;
    let is_stale = async |n| {
        let answer = leased(key("put", n), asked).await;
        assert!(matches!(answer, Leased::Granted { stale: Some(_) }));
    };
    costs.of("lease_stale", is_stale).await;
    let refused = async |n| {
        drop(
            store
                .fill(NAME, &key("put", n), Token::random(), fresh)
                .await,
        )
    };
    costs.of("fill_refused", refused).await;
    let released = async |n| drop(store.release(NAME, &key("put", n), token).await);
    costs.of("release", released).await;
    let invalidated = async |n| drop(store.invalidate(NAME, &key("put", n), 2_000).await);
    costs.of("invalidate", invalidated).await;
    let begun = async |n| drop(store.begin_write(NAME, &key("write", n), token, HOUR).await);
    costs.of("begin_write", begun).await;
    let ended = async |n| {
        let key = key("write", n);
        let ended = store.end_write(NAME, &key, token, Some(fresh), 2_000);
        drop(ended.await);
    };
    costs.of("end_write", ended).await;
    let one = async |_: u64| drop(store.generations(NAME, &[""], HOUR).await);
    costs.of("generations_of_1_tag", one).await;
    let tags = ["", "a", "b", "c", "d", "e", "f", "g"];
    let eight = async |_: u64| drop(store.generations(NAME, &tags, HOUR).await);
    costs.of("generations_of_8_tags", eight).await;
    let tag = async |_: u64| drop(store.invalidate_tag(NAME, "a", HOUR).await);
    costs.of("invalidate_tag", tag).await;
}

struct Costs<'a> {
    server: &'a RedisServer,
}

impl Costs<'_> {
    /// Of scripts.
    async fn of(&self, name: &str, call: impl AsyncFn(u64)) {
        self.of_command("evalsha", name, call).await;
    }

    async fn of_command(&self, command: &str, name: &str, call: impl AsyncFn(u64)) {
        const CALLS: u64 = 2_000;
        // The server knows the script from here on.
        call(CALLS).await;
        let before = self.micros(command);
        for number in 0..CALLS {
            call(number).await;
        }
        let micros = (self.micros(command) - before) / CALLS as f64;
        let unit = "us of the server per call, with a value of 200 bytes";
        figure(&format!("cache_us_{name}"), micros, unit, Target::Open);
    }

    fn micros(&self, command: &str) -> f64 {
        let stats = self.server.command("INFO commandstats");
        let name = format!("cmdstat_{command}:");
        let line = stats.lines().find_map(|line| line.strip_prefix(&*name));
        let usec = line.and_then(|it| it.split(',').find_map(|it| it.strip_prefix("usec=")));
        usec.map_or(0.0, |usec| usec.parse().expect("a number"))
    }
}

/// What a value of 200 bytes takes, by the server's own count.
fn memory(server: &RedisServer, store: &RedisCache) {
    let answer = server.command(&format!("MEMORY USAGE {}", store.key(NAME, "apple-0001")));
    let bytes: f64 = answer.trim().parse().expect("a key");
    let unit = "bytes, of which 200 are the value";
    figure("cache_memory", bytes, unit, Target::Open);
}
