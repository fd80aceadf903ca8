//! The work through the store of the peer's newest version that asks for no newer compiler.

use std::sync::Arc;

use ::redis::{IntoConnectionInfo, io::tcp::TcpSettings};
use bytes::Bytes;
use idempotent::{
    CachedResponse, IdempotencyEntry, IdempotencyKey, Metadata,
    entry::ExistingEntry,
    fingerprint::{DefaultFingerprintStrategy, Fingerprint, FingerprintStrategy},
    store::{IdempotencyStore, InsertResult, valkey::ValkeyStore},
};

use crate::{KEPT, LEASE, OUTCOME, Records, redis::RedisServer};

#[derive(Clone)]
pub(crate) struct Theirs {
    store: Arc<ValkeyStore>,
    fingerprint: Fingerprint,
}

impl Theirs {
    pub(crate) async fn new(server: &RedisServer, at_once: bool) -> Self {
        let info = server.url().into_connection_info().expect("a good URL");
        let tcp = TcpSettings::default().set_nodelay(at_once);
        let client = ::redis::Client::open(info.set_tcp_settings(tcp)).expect("a good URL");
        let store = ValkeyStore::with_prefix(client, Some("orders")).await;
        Self {
            store: Arc::new(store.expect("the server runs")),
            fingerprint: DefaultFingerprintStrategy.compute("POST /orders", b"an order"),
        }
    }
}

impl Records for Theirs {
    async fn first_call(&self, number: u64) {
        let key = key(number);
        let mut entry = IdempotencyEntry::new(self.fingerprint, LEASE);
        let claimed = self.store.try_insert(&key, entry.clone()).await;
        let Ok(InsertResult::Claimed { fencing_token }) = claimed else {
            panic!("{claimed:?}");
        };
        entry.ttl = KEPT;
        let done = entry.complete(CachedResponse {
            status_code: 200,
            metadata: Metadata::default(),
            body: Bytes::from_static(OUTCOME),
        });
        let kept = self.store.complete(&key, done, fencing_token).await;
        kept.expect("it is kept");
    }

    async fn replay(&self, number: u64) {
        let entry = IdempotencyEntry::new(self.fingerprint, LEASE);
        match self.store.try_insert(&key(number), entry).await {
            Ok(InsertResult::Exists(ExistingEntry::Completed(done))) => {
                assert!(done.fingerprint_matches(self.fingerprint));
                assert_eq!(done.response().body.len(), OUTCOME.len());
            }
            other => panic!("{other:?}"),
        }
    }
}

fn key(number: u64) -> IdempotencyKey {
    IdempotencyKey::new(format!("key-{number}")).expect("a good key")
}
