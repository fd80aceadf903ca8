//! The newest version that asks for no newer compiler. It tells a refusal as an error.

use std::{error::Error, time::Duration};

use ::redis::{ErrorKind, RedisError, ServerErrorKind};
use bytes::Bytes;
use idempotent::{
    CachedResponse, IdempotencyEntry, IdempotencyKey, Metadata,
    entry::{ExistingEntry, FencingToken, Processing},
    fingerprint::{DefaultFingerprintStrategy, FingerprintStrategy},
    store::{
        IdempotencyStore, InsertResult,
        valkey::{ValkeyError, ValkeyStore},
    },
};

use super::{Answer, Claim, GIVEN_BACK, KEPT, Peer};
use crate::{HOUR, redis::RedisServer};

pub(crate) struct Theirs(ValkeyStore);

impl Peer for Theirs {
    const NAME: &'static str = "idempotent 0.3";
    type Entry = IdempotencyEntry<Processing>;
    type Token = FencingToken;
    type Error = ValkeyError;

    async fn connect(server: &RedisServer) -> Self {
        let client = ::redis::Client::open(server.url()).expect("a good URL");
        let store = ValkeyStore::with_prefix(client, Some(Self::NAME)).await;
        Self(store.expect("the server runs"))
    }

    fn entry(lease: Duration) -> Self::Entry {
        IdempotencyEntry::new(DefaultFingerprintStrategy.compute("work", b""), lease)
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
        let mut entry = claim.entry.clone();
        entry.ttl = HOUR;
        let done = entry.complete(CachedResponse {
            status_code: 200,
            metadata: Metadata::default(),
            body: Bytes::from_static(b"7"),
        });
        told(self.0.complete(&key(name), done, claim.token).await, KEPT)
    }

    /// For every caller, since it takes no token.
    async fn remove(&self, name: &str, _claim: &Claim<Self>) -> Result<String, ValkeyError> {
        told(self.0.remove(&key(name)).await, GIVEN_BACK)
    }
}

fn told(ended: Result<(), ValkeyError>, well: &str) -> Result<String, ValkeyError> {
    let Err(error) = ended else {
        return Ok(well.to_owned());
    };
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    // What a script answers, and not a connection that failed.
    let refusal = ErrorKind::Server(ServerErrorKind::ResponseError);
    match cause.filter(|cause: &&RedisError| cause.kind() == refusal) {
        Some(cause) => Ok(format!("refused ({cause})")),
        None => Err(error),
    }
}

fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey::new(name).expect("a good key")
}
