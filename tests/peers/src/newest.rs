//! The work through the store of the peer's newest version.

use ::redis::{IntoConnectionInfo, io::tcp::TcpSettings};
use bytes::Bytes;
use newest::{
    CachedResponse, FencedOutcome, IdempotencyEntry, IdempotencyKey, IdempotencyStore,
    InsertResult, Metadata,
    entry::ExistingEntry,
    fingerprint::{DefaultFingerprintStrategy, Fingerprint, FingerprintStrategy},
    valkey::ValkeyStore,
};

use crate::{KEPT, LEASE, OUTCOME, Records, redis::RedisServer};

#[derive(Clone)]
pub(crate) struct Newest {
    store: ValkeyStore,
    fingerprint: Fingerprint,
}

impl Newest {
    pub(crate) async fn new(server: &RedisServer, at_once: bool) -> Self {
        let info = server.url().into_connection_info().expect("a good URL");
        let tcp = TcpSettings::default().set_nodelay(at_once);
        let client = ::redis::Client::open(info.set_tcp_settings(tcp)).expect("a good URL");
        let store = ValkeyStore::with_client(client).prefix("orders");
        Self {
            store: store.try_build().await.expect("the server runs"),
            fingerprint: DefaultFingerprintStrategy.compute(&"POST /orders".into(), b"an order"),
        }
    }
}

impl Records for Newest {
    async fn first_call(&self, number: u64) {
        let key = key(number);
        let entry = IdempotencyEntry::new(self.fingerprint, LEASE);
        let claimed = self.store.try_insert(&key, entry.clone()).await;
        let Ok(InsertResult::Claimed { fencing_token }) = claimed else {
            panic!("{claimed:?}");
        };
        let body = Bytes::from_static(OUTCOME);
        let done = entry.complete(CachedResponse::new(200, Metadata::default(), body), KEPT);
        let kept = self.store.complete(&key, done, fencing_token).await;
        assert_eq!(kept.expect("an answer"), FencedOutcome::Applied);
    }

    async fn replay(&self, number: u64) {
        let entry = IdempotencyEntry::new(self.fingerprint, LEASE);
        match self.store.try_insert(&key(number), entry).await {
            Ok(InsertResult::Exists(ExistingEntry::Completed(done))) => {
                assert_eq!(done.fingerprint, self.fingerprint);
                assert_eq!(done.response().body.len(), OUTCOME.len());
            }
            other => panic!("{other:?}"),
        }
    }
}

fn key(number: u64) -> IdempotencyKey {
    IdempotencyKey::new(format!("key-{number}")).expect("a good key")
}
