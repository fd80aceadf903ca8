//! Live instances of a fleet.
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:members}` | zset | instance, live until | until the last of them is no longer live |
//! | `{prefix:members}:clock` | hash | time of the record, lead, format | the same |
//!
//! One heartbeat is one script, one round trip. Moments are in milliseconds of the record's own time
//! ([`RecordClock`](resilience_core::fleet::RecordClock)): the server's, or ahead of it after that was set back. A clock set
//! forward makes instances count as gone until their next heartbeat.
//!
//! # Time of the fleet
//! The time of this record is the latest that any instance knows of: each sends what it knows along, so it survives the loss of
//! the record as long as one instance lives. It is the floor of fences, and of the time of records that are lost. With each
//! heartbeat the process notices whether the server's clock was set, and emits an event.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::Value;
use resilience_core::fleet::{MemberStore, StoreFuture};
use tokio::time::Instant;

use crate::{connection::Connection, error::CommandError, keys, script::Script};

static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("shown.lua"),
        include_str!("record_time.lua"),
        include_str!("heartbeat.lua")
    ))
});

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
        Box::pin(async move {
            let sent = Instant::now();
            let noted = heartbeat(&self.connection, &self.key, instance, ttl).await?;
            self.connection.shown(sent, noted.shown);
            self.connection.clock().fleet_shows(noted.now);
            Ok(noted.live)
        })
    }
}

/// The answer to a heartbeat.
pub(crate) struct Noted {
    /// Number of live instances.
    pub(crate) live: u64,
    /// What the server's clock showed, in microseconds.
    shown: u64,
    /// The time of the record, in microseconds.
    now: u64,
}

/// Notes in the zset `key` that `instance` is live for `ttl`; zero: it leaves.
pub(crate) async fn heartbeat(
    connection: &Connection,
    key: &str,
    instance: &str,
    ttl: Duration,
) -> Result<Noted, CommandError> {
    let clock = format!("{key}:clock");
    let (ttl, floor) = (ttl.as_millis(), connection.clock().floor() / 1000);
    let (ttl, floor) = (ttl.to_string(), floor.to_string());
    let args = [instance.as_bytes(), ttl.as_bytes(), floor.as_bytes()];
    let answer = HEARTBEAT.run(connection, &[key, &clock], &args).await?;
    noted(&answer).ok_or_else(|| CommandError::Unexpected(format!("{answer:?}")))
}

fn noted(answer: &Value) -> Option<Noted> {
    let Value::Array(items) = answer else {
        return None;
    };
    let [
        Value::Int(live),
        Value::BulkString(shown),
        Value::BulkString(now),
    ] = &items[..]
    else {
        return None;
    };
    let micros = |millis: &[u8]| {
        let millis: u64 = std::str::from_utf8(millis).ok()?.parse().ok()?;
        millis.checked_mul(1000)
    };
    Some(Noted {
        live: u64::try_from(*live).ok()?,
        shown: micros(shown)?,
        now: micros(now)?,
    })
}

#[cfg(test)]
mod tests {
    use resilience_tests::{redis::RedisServer, until::eventually};

    use tokio::runtime::Handle;

    use super::*;
    use crate::{connection::Settings, url::Endpoint};

    const SOON: Duration = Duration::from_secs(20);
    const HOUR: Duration = Duration::from_secs(3600);
    const KEY: &str = "{resilience:members}";

    async fn members(server: &RedisServer) -> RedisMembers {
        let endpoint = Endpoint::parse(&server.url()).unwrap();
        let connection = Connection::start(endpoint, Settings::all_within(SOON), Handle::current());
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
