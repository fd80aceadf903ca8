//! The work through this toolkit's store.

use std::time::Duration;

use resilience_core::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Completion, Holder, Takeover, WriteOutcome},
};
use resilience_redis::{Redis, RedisIdempotency};

use crate::{KEPT, LEASE, OUTCOME, Records, redis::RedisServer};

const NAME: &str = "orders";

#[derive(Clone)]
pub(crate) struct Ours(RedisIdempotency);

impl Ours {
    pub(crate) async fn new(server: &RedisServer) -> Self {
        let redis = Redis::connect(&server.url()).expect("a good URL");
        let ready = redis.ready(Duration::from_secs(10)).await;
        ready.expect("the server runs");
        Self(redis.idempotency())
    }
}

impl Records for Ours {
    async fn first_call(&self, number: u64) {
        let (key, claim) = (format!("key-{number}"), claim(number));
        let claimed = self.0.claim(NAME, &key, &claim).await;
        let Ok(Claimed::New(grant)) = claimed else {
            panic!("{claimed:?}");
        };
        let done = Completion {
            outcome: OUTCOME.into(),
            ttl_ms: KEPT.as_millis() as u64,
        };
        let holder = Holder::new(&claim, &grant);
        let kept = self.0.complete(NAME, &key, &holder, &done).await;
        assert_eq!(kept, Ok(WriteOutcome::Kept));
    }

    async fn replay(&self, number: u64) {
        let (key, claim) = (format!("key-{number}"), claim(u64::MAX));
        match self.0.claim(NAME, &key, &claim).await {
            Ok(Claimed::Done { outcome, .. }) => assert_eq!(outcome.len(), OUTCOME.len()),
            other => panic!("{other:?}"),
        }
    }
}

fn claim(number: u64) -> Claim {
    Claim {
        owner: format!("instance-7-{number}").into(),
        fingerprint: vec![7; 32].into(),
        lease_ms: LEASE.as_millis() as u64,
        retention_ms: KEPT.as_millis() as u64,
        takeover: Takeover::Ended,
    }
}
