//! The life of a connection: while nothing is sent, when the login changes, and after the end of its runtime.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_redis::{CommandError, Credentials, Redis, Status};
use resilience_tests::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
    redis_scene::SOON,
    redis_sentinel::RedisSentinels,
    until::eventually,
};
use tokio::{runtime::Runtime, task::spawn_blocking};

const KEEPALIVE: Duration = Duration::from_millis(100);

async fn behind(line: &Proxy) -> Redis {
    let builder = Redis::builder(&format!("redis://{}", line.address())).keepalive(KEEPALIVE);
    let redis = builder.connect().expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis
}

fn pings(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats");
    let pings = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_ping:calls="));
    let pings = pings.and_then(|pings| pings.split(',').next());
    pings.map_or(0, |pings| pings.parse().expect("a number"))
}

/// A gateway forgets a connection that is idle for a second. The first call after a pause would find it dead.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_after_a_pause_is_answered_behind_a_gateway_that_forgets_idle_connections() {
    let server = RedisServer::start();
    let mut line = Proxy::to(server.addr().parse().expect("an address"))
        .await
        .expect("a port");
    line.set(Weather::ForgetIdle(10 * KEEPALIVE)).await;
    let redis = behind(&line).await;
    let status = redis.watch_status();
    eventually("a pause of more than a second", SOON, async || {
        pings(&server) >= 15
    })
    .await;
    assert_eq!(redis.ping().await, Ok(()));
    assert_eq!(
        status.has_changed().ok(),
        Some(false),
        "it is the same connection"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_forgotten_while_idle_is_remade_before_it_is_needed() {
    let server = RedisServer::start();
    let mut line = Proxy::to(server.addr().parse().expect("an address"))
        .await
        .expect("a port");
    let redis = behind(&line).await;
    let is_down = || matches!(redis.status(), Status::Down(_));
    line.set(Weather::ForgetIdle(Duration::ZERO)).await;
    eventually("it is noticed without a call", SOON, async || is_down()).await;
    line.set(Weather::Fine).await;
    redis
        .ready(SOON)
        .await
        .expect("it is remade without a call");
    assert_eq!(redis.ping().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_with_a_login_of_their_own_are_asked() {
    let group = spawn_blocking(RedisSentinels::start).await.expect("starts");
    for sentinel in 0..3 {
        let login = "ACL SETUSER default resetpass >watch/word";
        assert_eq!(group.sentinel(sentinel).command(login), "OK");
    }
    let url = group.url();
    let refused = Redis::connect(&url).expect("a good URL");
    let Err(Status::Down(why)) = refused.ready(Duration::from_secs(1)).await else {
        panic!("must not connect")
    };
    assert!(why.contains("no majority"), "{why}");
    let credentials = Credentials::password("watch/word");
    let builder = Redis::builder(&url).sentinel_credentials(credentials);
    let by_builder = builder.connect().expect("good settings");
    let by_url = Redis::connect(&format!("{url}?sentinel_password=watch%2Fword"));
    for redis in [by_builder, by_url.expect("a good URL")] {
        redis.ready(SOON).await.expect("connects");
        assert_eq!(redis.ping().await, Ok(()));
    }
}

/// A source of passwords that are rotated, and the times it was asked.
#[derive(Clone, Default)]
struct Vault {
    password: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Vault {
    fn rotate(&self, server: &RedisServer, password: &str) {
        let user = format!("ACL SETUSER app on resetpass >{password} ~* &* +@all");
        assert_eq!(server.command(&user), "OK");
        password.clone_into(&mut self.password.lock().unwrap());
    }

    async fn connect(&self, server: &RedisServer, life: Duration) -> Redis {
        let vault = self.clone();
        let builder = Redis::builder(&server.url()).credentials(move || {
            vault.asked.fetch_add(1, Relaxed);
            let password = vault.password.lock().unwrap().clone();
            let credentials = Credentials::new("app", password).renew_after(life);
            async { Ok::<_, std::io::Error>(credentials) }
        });
        let redis = builder.connect().expect("good settings");
        redis.ready(SOON).await.expect("connects");
        redis
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_rotated_is_asked_for_with_the_next_connection() {
    let (server, vault) = (RedisServer::start(), Vault::default());
    vault.rotate(&server, "first");
    let redis = vault.connect(&server, Duration::from_secs(3600)).await;
    assert!(server.command("CLIENT LIST").contains("user=app"));
    vault.rotate(&server, "second");
    let _killed = server.command("CLIENT KILL USER app");
    eventually("it is asked again", SOON, async || {
        vault.asked.load(Relaxed) == 2
    })
    .await;
    eventually("it logs in", SOON, async || redis.ping().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_remade_before_its_token_ends_and_no_call_notices() {
    let (server, vault) = (RedisServer::start(), Vault::default());
    vault.rotate(&server, "token");
    let redis = vault.connect(&server, Duration::from_millis(50)).await;
    let connections = || {
        let stats = server.command("INFO stats");
        let made = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        made.map_or(0, |made| made.trim().parse::<u64>().expect("a number"))
    };
    // One of each pair is the one that asks.
    let before = connections();
    let mut asked = 0;
    while vault.asked.load(Relaxed) < 6 {
        asked += 1;
        assert_eq!(redis.ping().await, Ok(()));
    }
    assert!(asked > 0 && connections() >= before + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_credentials_is_told_of_in_the_status() {
    let server = RedisServer::start();
    let redis = Redis::builder(&server.url())
        .credentials(|| async { Err::<Credentials, _>("the vault is sealed") })
        .connect()
        .expect("good settings");
    let Err(Status::Down(why)) = redis.ready(Duration::from_millis(500)).await else {
        panic!("must not connect")
    };
    assert!(why.contains("the vault is sealed"), "{why}");
}

#[test]
fn after_its_runtime_has_stopped_a_connection_is_down() {
    let server = RedisServer::start();
    let runtime = Runtime::new().expect("a runtime");
    let redis = runtime.block_on(async {
        let redis = Redis::connect(&server.url()).expect("a good URL");
        redis.ready(SOON).await.expect("connects");
        redis
    });
    runtime.shutdown_timeout(SOON);
    assert_eq!(
        redis.status(),
        Status::Down("its runtime has stopped".into())
    );
    let another = Runtime::new().expect("a runtime");
    assert_eq!(another.block_on(redis.ping()), Err(CommandError::Down));
}
