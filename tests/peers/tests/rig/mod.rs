//! One server, and this toolkit connected to it.

use std::time::Duration;

use bytes::Bytes;
use resilience_core::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Completion, Holder, Takeover, WriteOutcome},
};
use resilience_redis::{Redis, RedisIdempotency};

use crate::{HOUR, NAME, SOON, redis::RedisServer, until::eventually};

/// How long a call waits that will not be answered.
const BUDGET: Duration = Duration::from_millis(300);

pub(crate) struct Rig {
    pub(crate) server: RedisServer,
    pub(crate) ours: RedisIdempotency,
}

impl Rig {
    /// Connected, and the scripts known: a server that does not know a script does nothing.
    pub(crate) async fn new() -> Self {
        let server = RedisServer::start();
        let redis = Redis::builder(&server.url()).budget(BUDGET).connect();
        let redis = redis.expect("good settings");
        redis.ready(SOON).await.expect("the server runs");
        let rig = Self {
            server,
            ours: redis.idempotency(),
        };
        let holder = rig.claim("warm", "a", HOUR).await;
        let kept = rig.ours.complete(NAME, "warm", &holder, &outcome()).await;
        assert_eq!(kept, Ok(WriteOutcome::Kept));
        rig
    }

    /// A claim on a free key.
    pub(crate) async fn claim(&self, key: &str, owner: &str, lease: Duration) -> Holder {
        let claim = claim(owner, lease);
        match self.ours.claim(NAME, key, &claim).await {
            Ok(Claimed::New(grant)) => Holder::new(&claim, &grant),
            other => panic!("{other:?}"),
        }
    }

    /// What a call finds that comes afterwards.
    pub(crate) async fn next(&self, key: &str) -> &'static str {
        match self.ours.claim(NAME, key, &claim("next", HOUR)).await {
            Ok(Claimed::Done { .. }) => "replayed",
            Ok(Claimed::New(_)) => "done again",
            Ok(Claimed::Busy { .. }) => "refused: in flight",
            other => panic!("{other:?}"),
        }
    }

    /// Does `call` while the server hangs, and lets the server go on when the caller has given up.
    pub(crate) async fn unheard<T>(&self, call: impl Future<Output = T>) {
        let before = self.scripts();
        self.server.pause();
        let _ = tokio::time::timeout(BUDGET * 2, call).await;
        self.server.unpause();
        eventually("it is done all the same", SOON, || async {
            self.scripts() > before
        })
        .await;
    }

    /// How many scripts the server has run.
    fn scripts(&self) -> u64 {
        let stats = self.server.command("INFO commandstats");
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        let calls = line.and_then(|line| line.split(',').next()?.parse().ok());
        calls.expect("scripts were called")
    }
}

pub(crate) fn claim(owner: &str, lease: Duration) -> Claim {
    Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms: lease.as_millis() as u64,
        retention_ms: HOUR.as_millis() as u64,
        takeover: Takeover::Ended,
    }
}

pub(crate) fn outcome() -> Completion {
    Completion {
        outcome: Bytes::from_static(b"7"),
        ttl_ms: HOUR.as_millis() as u64,
    }
}
