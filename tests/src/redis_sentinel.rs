//! A master with replicas, watched by three sentinels.

use std::time::Duration;

use tokio::time::Instant;

use crate::redis::{Flavour, RedisServer};

/// A running group. All processes end when it is dropped.
#[derive(Debug)]
pub struct RedisSentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Name of the group.
pub const SERVICE: &str = "main";

impl RedisSentinels {
    /// Starts one master, two replicas and three sentinels; a second and a half of silence counts as a failure.
    #[must_use]
    pub fn start() -> Self {
        Self::start_flavour(Flavour::Redis)
    }

    /// Starts a group of servers and sentinels of one program.
    #[must_use]
    pub fn start_flavour(flavour: Flavour) -> Self {
        let diskless = ["--repl-diskless-sync-delay", "0"];
        let master = RedisServer::start_flavour(flavour, &diskless);
        let port = master.port().to_string();
        let replica = [&diskless[..], &["--replicaof", "127.0.0.1", &port]].concat();
        let replicas = [(); 2].map(|()| RedisServer::start_flavour(flavour, &replica));
        // A sentinel sends its first PING to a new master after the lesser of this time and a second. At a second or less the
        // answer comes too late if the machine is busy, and the new master is failed over in its turn.
        let config = format!(
            "sentinel monitor {SERVICE} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {SERVICE} 1500\n\
             sentinel failover-timeout {SERVICE} 3000\n\
             sentinel parallel-syncs {SERVICE} 2\n"
        );
        let group = Self {
            servers: [master].into_iter().chain(replicas).collect(),
            sentinels: (0..3)
                .map(|_| RedisServer::start_sentinel(flavour, &config))
                .collect(),
        };
        group.wait_until("every sentinel knows all servers and sentinels", |group| {
            group.sentinels.iter().all(|sentinel| {
                sentinel.try_command("INFO sentinel").is_ok_and(|answer| {
                    answer.contains("status=ok") && answer.contains("slaves=2,sentinels=3")
                })
            })
        });
        group
    }

    /// `redis-sentinel://host:port,../main`
    #[must_use]
    pub fn url(&self) -> String {
        let all: Vec<_> = self.sentinels.iter().map(RedisServer::addr).collect();
        format!("redis-sentinel://{}/{SERVICE}", all.join(","))
    }

    /// The number of the server that is the current master, according to the sentinels.
    ///
    /// # Panics
    ///
    /// When no sentinel answers.
    #[must_use]
    pub fn master(&self) -> usize {
        let said = self.sentinels.iter().find_map(|sentinel| {
            let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
            sentinel.try_words(&question).ok()
        });
        let addr = said.expect("a sentinel answers").replace('\n', ":");
        let found = self.servers.iter().position(|server| server.addr() == addr);
        found.expect("one of our servers")
    }

    /// The server with this number.
    #[must_use]
    pub fn server(&self, number: usize) -> &RedisServer {
        &self.servers[number]
    }

    /// The server with this number.
    pub fn server_mut(&mut self, number: usize) -> &mut RedisServer {
        &mut self.servers[number]
    }

    /// The sentinel with this number.
    #[must_use]
    pub fn sentinel(&self, number: usize) -> &RedisServer {
        &self.sentinels[number]
    }

    /// The sentinel with this number.
    pub fn sentinel_mut(&mut self, number: usize) -> &mut RedisServer {
        &mut self.sentinels[number]
    }

    /// Makes the sentinels choose another master, although the current one is healthy. Returns when the failover has begun.
    ///
    /// # Panics
    ///
    /// When they refuse for a minute.
    pub fn fail_over(&self) {
        self.wait_until("a failover begins", |group| {
            group.sentinels[0]
                .try_words(&["SENTINEL", "FAILOVER", SERVICE])
                .is_ok_and(|answer| answer == "OK")
        });
    }

    /// Whether a server other than `former` says that it is a master.
    #[must_use]
    pub fn has_promoted(&self, former: usize) -> bool {
        let mut others = self.servers.iter().enumerate();
        others.any(|(number, server)| {
            let role = server.try_command("ROLE");
            number != former && role.is_ok_and(|role| role.starts_with("master"))
        })
    }

    /// Waits until the sentinels name another master than `former`, and that server confirms it.
    ///
    /// # Panics
    ///
    /// When they do not for a minute.
    pub fn has_another_master(&self, former: usize) {
        self.wait_until("another master", |group| {
            let master = group.master();
            let is_master = || {
                group.servers[master]
                    .try_command("INFO replication")
                    .is_ok_and(|answer| answer.contains("role:master"))
            };
            master != former && is_master()
        });
    }

    fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "not within {PATIENCE:?}: {what}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
