//! The newest version of all. It tells a refusal as an outcome, and wants the token to give a claim back.

use std::time::Duration;

use bytes::Bytes;
use newest::{
    CachedResponse, FencedOutcome, FencingToken, IdempotencyEntry, IdempotencyKey,
    IdempotencyStore, InsertResult, Metadata,
    entry::{ExistingEntry, Processing},
    fingerprint::{DefaultFingerprintStrategy, FingerprintStrategy},
    valkey::{ValkeyError, ValkeyStore},
};

use super::{Answer, Claim, GIVEN_BACK, KEPT, Peer};
use crate::{HOUR, redis::RedisServer};

pub(crate) struct Newest(ValkeyStore);

impl Peer for Newest {
    const NAME: &'static str = "idempotent 2.0";
    type Entry = IdempotencyEntry<Processing>;
    type Token = FencingToken;
    type Error = ValkeyError;

    async fn connect(server: &RedisServer) -> Self {
        let store = ValkeyStore::with_url(server.url()).prefix(Self::NAME);
        Self(store.try_build().await.expect("the server runs"))
    }

    fn entry(lease: Duration) -> Self::Entry {
        let fingerprint = DefaultFingerprintStrategy.compute(&"work".into(), b"");
        IdempotencyEntry::new(fingerprint, lease)
    }

    async fn insert(
        &self,
        name: &str,
        entry: Self::Entry,
    ) -> Result<Answer<FencingToken>, ValkeyError> {
        let found = self.0.try_insert(&key(name), entry).await?;
        Ok(match found {
            InsertResult::Claimed { fencing_token } => Answer::Granted(fencing_token),
            InsertResult::Exists(ExistingEntry::Processing(_)) => Answer::InFlight,
            InsertResult::Exists(ExistingEntry::Completed(_)) => Answer::Completed,
        })
    }

    async fn complete(&self, name: &str, claim: &Claim<Self>) -> Result<String, ValkeyError> {
        let body = Bytes::from_static(b"7");
        let response = CachedResponse::new(200, Metadata::default(), body);
        let done = claim.entry.clone().complete(response, HOUR);
        told(self.0.complete(&key(name), done, claim.token).await, KEPT)
    }

    async fn remove(&self, name: &str, claim: &Claim<Self>) -> Result<String, ValkeyError> {
        told(self.0.remove(&key(name), claim.token).await, GIVEN_BACK)
    }
}

fn told(ended: Result<FencedOutcome, ValkeyError>, well: &str) -> Result<String, ValkeyError> {
    Ok(match ended? {
        FencedOutcome::Applied => well.to_owned(),
        FencedOutcome::Rejected(why) => format!("refused ({why:?})"),
    })
}

fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey::new(name).expect("a good key")
}
