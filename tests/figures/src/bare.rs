//! Bare commands, to compare with: sent by the client crate on a connection with the settings that the stores use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ::redis::{
    AsyncConnectionConfig, Cmd, IntoConnectionInfo, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};

use crate::redis::RedisServer;

/// As the stores connect: RESP3, packets go out at once, and no command has a timer of its own.
pub(crate) async fn connection(server: &RedisServer) -> MultiplexedConnection {
    // Without TCP_NODELAY, busy connections send larger batches, and idle ones can wait for 40 ms on a real network.
    let info = format!("{}/?protocol=resp3", server.url()).into_connection_info();
    let tcp = TcpSettings::default().set_nodelay(true);
    let info = info.expect("a good URL").set_tcp_settings(tcp);
    let client = ::redis::Client::open(info).expect("a good URL");
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let conn = client.get_multiplexed_async_connection_with_config(&config);
    conn.await.expect("the server runs")
}

/// The digest of a script, which the server knows from here on.
pub(crate) async fn load(conn: &mut MultiplexedConnection, script: &str) -> String {
    let mut load = ::redis::cmd("SCRIPT");
    let load = load.arg("LOAD").arg(script);
    load.query_async(conn).await.expect("a good script")
}

pub(crate) fn evalsha(digest: &str, key: &str, args: &[&[u8]]) -> Cmd {
    let mut command = ::redis::cmd("EVALSHA");
    command.arg(digest).arg(1).arg(key).arg(args);
    command
}

/// Calls per second of `call` by `tasks` tasks.
pub(crate) async fn per_second<F: Future<Output = ()> + Send>(
    tasks: usize,
    call: impl Fn() -> F + Clone + Send + 'static,
) -> f64 {
    const LASTING: Duration = Duration::from_millis(700);
    let (done, over) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let start = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (call, done, over) = (call.clone(), Arc::clone(&done), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(Relaxed) {
                    call().await;
                    done.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(LASTING).await;
    over.store(true, Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }
    done.load(Relaxed) as f64 / start.elapsed().as_secs_f64()
}
