//! What the cases ask of the peer. Its versions have much the same words, but types of their own.

mod newest;
mod theirs;

use std::{fmt::Debug, time::Duration};

pub(crate) use self::{newest::Newest, theirs::Theirs};
use crate::{HOUR, redis::RedisServer};

/// One version of the peer.
pub(crate) trait Peer: Sized {
    /// As it stands in the table.
    const NAME: &'static str;
    /// What a claim sends; the same again is the same claim.
    type Entry: Clone;
    /// What the holder of a claim shows later on.
    type Token: Copy + Debug;
    /// No answer. A refusal is one.
    type Error: Debug;

    async fn connect(server: &RedisServer) -> Self;

    fn entry(lease: Duration) -> Self::Entry;

    async fn insert(
        &self,
        key: &str,
        entry: Self::Entry,
    ) -> Result<Answer<Self::Token>, Self::Error>;

    /// How a completion ended, in words.
    async fn complete(&self, key: &str, claim: &Claim<Self>) -> Result<String, Self::Error>;

    /// How it ended to give a claim back, in words.
    async fn remove(&self, key: &str, claim: &Claim<Self>) -> Result<String, Self::Error>;

    /// Connected, and its scripts known: a server that does not know a script does nothing.
    async fn ready(server: &RedisServer) -> Self {
        let peer = Self::connect(server).await;
        let claim = peer.claim("warm", HOUR).await;
        let told = peer.complete("warm", &claim).await;
        assert_eq!(told.expect("an answer"), KEPT);
        peer
    }

    /// A claim on a free key.
    async fn claim(&self, key: &str, lease: Duration) -> Claim<Self> {
        let entry = Self::entry(lease);
        match self.insert(key, entry.clone()).await {
            Ok(Answer::Granted(token)) => Claim { entry, token },
            other => panic!("{other:?}"),
        }
    }

    /// What a call finds that comes afterwards.
    async fn next(&self, key: &str) -> &'static str {
        match self.insert(key, Self::entry(HOUR)).await {
            Ok(Answer::Granted(_)) => "done again",
            Ok(Answer::Completed) => "replayed",
            Ok(Answer::InFlight) => IN_FLIGHT,
            Err(error) => panic!("{error:?}"),
        }
    }
}

pub(crate) const IN_FLIGHT: &str = "refused: in flight";
const KEPT: &str = "kept";
const GIVEN_BACK: &str = "given back";

/// What a claim is answered.
#[derive(Debug)]
pub(crate) enum Answer<Token> {
    Granted(Token),
    InFlight,
    Completed,
}

/// A claim that was granted.
pub(crate) struct Claim<P: Peer> {
    entry: P::Entry,
    token: P::Token,
}
