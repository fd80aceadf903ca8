//! Live instances of a fleet.
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:members}` | zset | instance, live until (ms, the server's clock) | until the last of them is no longer live |
//!
//! One heartbeat is one script, one round trip. After the server's clock was set back, an instance that leaves without
//! saying so is counted for its time to live plus that step; a clock set forward makes instances count as gone until their
//! next heartbeat.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::Value;
use resilience_core::fleet::{MemberStore, StoreFuture};

use crate::{connection::Connection, error::CommandError, keys, script::Script};

static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("heartbeat.lua")));

/// The live instances of one Redis and prefix.
pub(crate) struct RedisMembers {
    connection: Arc<Connection>,
    key: String,
}

impl RedisMembers {
    pub(crate) fn new(connection: Arc<Connection>, prefix: &str) -> Self {
        let key = keys::family(prefix, "members");
        Self { connection, key }
    }
}

impl fmt::Debug for RedisMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisMembers")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl MemberStore for RedisMembers {
    fn heartbeat<'a>(&'a self, instance: &'a str, ttl: Duration) -> StoreFuture<'a, u64> {
        Box::pin(async move { Ok(heartbeat(&self.connection, &self.key, instance, ttl).await?) })
    }
}

/// Notes in the zset `key` that `instance` is live for `ttl`; zero: it leaves. Returns the number of live instances.
pub(crate) async fn heartbeat(
    connection: &Connection,
    key: &str,
    instance: &str,
    ttl: Duration,
) -> Result<u64, CommandError> {
    let ttl = ttl.as_millis().to_string();
    let args = [instance.as_bytes(), ttl.as_bytes()];
    match HEARTBEAT.run(connection, &[key], &args).await? {
        Value::Int(live) if live >= 0 => Ok(live.unsigned_abs()),
        answer => Err(CommandError::Unexpected(format!("{answer:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use resilience_tests::{redis::RedisServer, until::eventually};

    use super::*;
    use crate::{connection::Settings, url::Endpoint};

    const SOON: Duration = Duration::from_secs(20);
    const HOUR: Duration = Duration::from_secs(3600);
    const KEY: &str = "{resilience:members}";

    async fn members(server: &RedisServer) -> RedisMembers {
        let endpoint = Endpoint::parse(&server.url()).unwrap();
        let connection = Connection::start(endpoint, Settings::all_within(SOON));
        connection.ready(SOON).await.unwrap();
        RedisMembers::new(Arc::new(connection), "resilience")
    }

    #[tokio::test]
    async fn instances_count_until_they_leave_or_their_time_is_over() {
        let server = RedisServer::start();
        let members = members(&server).await;
        let brief = Duration::from_millis(1);
        assert_eq!(members.heartbeat("one", HOUR).await, Ok(1));
        assert_eq!(members.heartbeat("two", HOUR).await, Ok(2));
        assert_eq!(members.heartbeat("one", HOUR).await, Ok(2));
        assert_eq!(members.heartbeat("two", Duration::ZERO).await, Ok(1));
        assert!(members.heartbeat("three", brief).await.is_ok());
        eventually("the third is over", SOON, || async {
            members.heartbeat("one", HOUR).await == Ok(1)
        })
        .await;
        assert_eq!(members.heartbeat("one", Duration::ZERO).await, Ok(0));
        assert_eq!(server.command("KEYS *"), "");
    }

    #[tokio::test]
    async fn an_instance_noted_before_the_clock_was_set_back_is_corrected_by_its_next_heartbeat() {
        let server = RedisServer::start();
        let members = members(&server).await;
        // As noted by a clock that was years ahead.
        assert_eq!(
            server.command(&format!("ZADD {KEY} 4000000000000 one")),
            "1"
        );
        assert_eq!(members.heartbeat("one", HOUR).await, Ok(1));
        let left: u64 = server.command(&format!("PTTL {KEY}")).parse().unwrap();
        assert!(left <= 3_600_000, "{left}");
    }
}
