//! What records do when it matters, ours beside the peer's, on one real server. Ours is held to the answer; the peer's
//! is printed as it is:
//!
//! ```text
//! cargo test -p resilience-peers -- --nocapture
//! ```

#[path = "../../src/keeper.rs"]
#[allow(dead_code, unreachable_pub)]
mod keeper;
#[path = "../../src/redis.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis;
#[path = "../../src/until.rs"]
#[allow(unreachable_pub)]
mod until;

use std::{fmt::Display, time::Duration};

use bytes::Bytes;
use idempotent::{
    CachedResponse, Fingerprint, IdempotencyEntry, IdempotencyKey, Metadata,
    entry::{Completed, ExistingEntry, FencingToken, Processing},
    fingerprint::{DefaultFingerprintStrategy, FingerprintStrategy},
    store::{IdempotencyStore as _, InsertResult, valkey::ValkeyStore},
};
use resilience_core::idempotency::{
    IdempotencyStore as _,
    record::{Claim, Claimed, Completion, Holder, Kept, Loss, Takeover},
};
use resilience_redis::{Redis, RedisIdempotency};

use crate::{redis::RedisServer, until::eventually};

const PEER: &str = "idempotent 0.3";
const NAME: &str = "peers";
const SOON: Duration = Duration::from_secs(20);
/// How long a call waits that will not be answered.
const BUDGET: Duration = Duration::from_millis(300);
const HOUR: Duration = Duration::from_secs(3600);
/// A lease that ends.
const BRIEF: Duration = Duration::from_millis(30);

struct Pair {
    server: RedisServer,
    ours: RedisIdempotency,
    theirs: ValkeyStore,
}

impl Pair {
    /// Both connected, and their scripts known: a server that does not know a script does nothing.
    async fn new() -> Self {
        let server = RedisServer::start();
        let redis = Redis::builder(&server.url()).budget(BUDGET).connect();
        let redis = redis.expect("good settings");
        redis.ready(SOON).await.expect("the server runs");
        let client = ::redis::Client::open(server.url()).expect("a good URL");
        let theirs = ValkeyStore::new(client).await.expect("the server runs");
        let pair = Self {
            server,
            ours: redis.idempotency(),
            theirs,
        };
        let holder = pair.our_claim("warm", "a", HOUR).await;
        let outcome = our_outcome();
        let kept = pair.ours.complete(NAME, "warm", &holder, &outcome).await;
        assert_eq!(kept, Ok(Kept::Kept));
        let (entry, token) = pair.their_claim("warm", HOUR).await;
        let done = their_outcome(entry);
        let kept = pair.theirs.complete(&key("warm"), done, token).await;
        kept.expect("it is kept");
        pair
    }

    async fn our_claim(&self, key: &str, owner: &str, lease: Duration) -> Holder {
        let claim = claim(owner, lease);
        match self.ours.claim(NAME, key, &claim).await {
            Ok(Claimed::New(grant)) => Holder::new(&claim, &grant),
            other => panic!("{other:?}"),
        }
    }

    async fn their_claim(
        &self,
        name: &str,
        lease: Duration,
    ) -> (IdempotencyEntry<Processing>, FencingToken) {
        let entry = IdempotencyEntry::new(fingerprint(), lease);
        match self.theirs.try_insert(&key(name), entry.clone()).await {
            Ok(InsertResult::Claimed { fencing_token }) => (entry, fencing_token),
            other => panic!("{other:?}"),
        }
    }

    /// What a call finds that comes afterwards.
    async fn our_next(&self, key: &str) -> &'static str {
        match self.ours.claim(NAME, key, &claim("next", HOUR)).await {
            Ok(Claimed::Done { .. }) => "replayed",
            Ok(Claimed::New(_)) => "done again",
            Ok(Claimed::Busy { .. }) => "refused: in flight",
            other => panic!("{other:?}"),
        }
    }

    async fn their_next(&self, name: &str) -> &'static str {
        let entry = IdempotencyEntry::new(fingerprint(), HOUR);
        match self.theirs.try_insert(&key(name), entry).await {
            Ok(InsertResult::Exists(ExistingEntry::Completed(_))) => "replayed",
            Ok(InsertResult::Exists(ExistingEntry::Processing(_))) => "refused: in flight",
            Ok(InsertResult::Claimed { .. }) => "done again",
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Does `call` while the server hangs, and lets the server go on when the caller has given up.
    async fn unheard<T>(&self, call: impl Future<Output = T>) {
        let scripts = || {
            let stats = self.server.command("INFO commandstats");
            let line = stats
                .lines()
                .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
            let calls = line.and_then(|line| line.split(',').next()?.parse::<u64>().ok());
            calls.expect("scripts were called")
        };
        let before = scripts();
        self.server.pause();
        let _ = tokio::time::timeout(BUDGET * 2, call).await;
        self.server.unpause();
        eventually("it is done all the same", SOON, || async {
            scripts() > before
        })
        .await;
    }
}

fn claim(owner: &str, lease: Duration) -> Claim {
    Claim {
        owner: owner.into(),
        fingerprint: Bytes::from_static(b"work"),
        lease_ms: lease.as_millis() as u64,
        retention_ms: HOUR.as_millis() as u64,
        takeover: Takeover::Ended,
    }
}

fn our_outcome() -> Completion {
    Completion {
        outcome: Bytes::from_static(b"7"),
        ttl_ms: HOUR.as_millis() as u64,
    }
}

fn their_outcome(mut entry: IdempotencyEntry<Processing>) -> IdempotencyEntry<Completed> {
    entry.ttl = HOUR;
    entry.complete(CachedResponse {
        status_code: 200,
        metadata: Metadata::default(),
        body: Bytes::from_static(b"7"),
    })
}

fn fingerprint() -> Fingerprint {
    DefaultFingerprintStrategy.compute("work", b"")
}

fn key(key: &str) -> IdempotencyKey {
    IdempotencyKey::new(key).expect("a good key")
}

fn say(row: &str, who: &str, what: impl Display) {
    println!("| {row} | {who} | {what} |");
}

/// How a step of the peer's holder ended.
fn told<E: std::error::Error>(kept: Result<(), E>) -> String {
    match kept {
        Ok(()) => "kept".to_owned(),
        Err(error) => {
            let cause = error.source().map(ToString::to_string);
            format!("refused ({})", cause.unwrap_or_default())
        }
    }
}

#[tokio::test]
async fn a_claim_is_repeated_whose_answer_was_lost() {
    let row = "the same claim again, after its answer was lost";
    let pair = Pair::new().await;
    let ours = claim("a", HOUR);
    pair.unheard(pair.ours.claim(NAME, "lost", &ours)).await;
    eventually("ours is granted again", SOON, || async {
        match pair.ours.claim(NAME, "lost", &ours).await {
            Ok(Claimed::Mine(_)) => true,
            Ok(other) => panic!("{other:?}"),
            // The connection may not be back yet.
            Err(_) => false,
        }
    })
    .await;
    say(row, "this toolkit", "granted, as before");

    let entry = IdempotencyEntry::new(fingerprint(), HOUR);
    let lost = key("their-lost");
    pair.unheard(pair.theirs.try_insert(&lost, entry.clone()))
        .await;
    let their = match pair.theirs.try_insert(&lost, entry).await {
        Ok(InsertResult::Claimed { .. }) => "granted, as before",
        Ok(InsertResult::Exists(ExistingEntry::Processing(_))) => "refused: in flight",
        other => panic!("{other:?}"),
    };
    say(row, PEER, their);
}

#[tokio::test]
async fn a_completion_is_repeated_whose_answer_was_lost() {
    let row = "the same completion again, after its answer was lost";
    let pair = Pair::new().await;
    let (holder, outcome) = (pair.our_claim("lost", "a", HOUR).await, our_outcome());
    pair.unheard(pair.ours.complete(NAME, "lost", &holder, &outcome))
        .await;
    eventually("ours is kept", SOON, || async {
        match pair.ours.complete(NAME, "lost", &holder, &outcome).await {
            Ok(kept) => kept == Kept::Kept || panic!("{kept:?}"),
            Err(_) => false,
        }
    })
    .await;
    say(row, "this toolkit", "kept");

    let (entry, token) = pair.their_claim("their-lost", HOUR).await;
    let lost = key("their-lost");
    let done = their_outcome(entry);
    pair.unheard(pair.theirs.complete(&lost, done.clone(), token))
        .await;
    let their = pair.theirs.complete(&lost, done, token).await;
    say(row, PEER, told(their));
}

/// Claims for a moment, on both sides.
async fn late(pair: &Pair) -> (Holder, (IdempotencyEntry<Processing>, FencingToken)) {
    let ours = pair.our_claim("key", "a", BRIEF).await;
    let theirs = pair.their_claim("their-key", BRIEF).await;
    tokio::time::sleep(BRIEF * 2).await;
    (ours, theirs)
}

#[tokio::test]
async fn a_holder_completes_after_its_lease_and_somebody_has_taken_over() {
    let row = "a completion after the lease, when somebody else has taken over; a call afterwards";
    let pair = Pair::new().await;
    let (zombie, (entry, token)) = late(&pair).await;
    let holder = pair.our_claim("key", "b", HOUR).await;
    assert!(holder.fence > zombie.fence, "{holder:?} after {zombie:?}");
    let kept = pair
        .ours
        .complete(NAME, "key", &zombie, &our_outcome())
        .await;
    assert_eq!(kept, Ok(Kept::Lost(Loss::Taken)));
    let next = pair.our_next("key").await;
    assert_eq!(next, "refused: in flight");
    say(row, "this toolkit", format!("refused (Taken); {next}"));

    let _holder = pair.their_claim("their-key", HOUR).await;
    let kept = pair
        .theirs
        .complete(&key("their-key"), their_outcome(entry), token)
        .await;
    let next = pair.their_next("their-key").await;
    say(row, PEER, format!("{}; {next}", told(kept)));
}

#[tokio::test]
async fn a_holder_completes_after_its_lease_and_nobody_has_taken_over() {
    let row = "a completion after the lease, when nobody has taken over; a call afterwards";
    let pair = Pair::new().await;
    let (late, (entry, token)) = late(&pair).await;
    let kept = pair.ours.complete(NAME, "key", &late, &our_outcome()).await;
    assert_eq!(kept, Ok(Kept::Kept));
    let next = pair.our_next("key").await;
    assert_eq!(next, "replayed");
    say(row, "this toolkit", format!("kept; {next}"));

    let kept = pair
        .theirs
        .complete(&key("their-key"), their_outcome(entry), token)
        .await;
    let next = pair.their_next("their-key").await;
    say(row, PEER, format!("{}; {next}", told(kept)));
}

#[tokio::test]
async fn a_zombie_gives_back_what_somebody_else_holds() {
    let row = "a claim is given back after its lease, when somebody else has taken over; a call afterwards";
    let pair = Pair::new().await;
    let (zombie, _) = late(&pair).await;
    let _holder = pair.our_claim("key", "b", HOUR).await;
    let kept = pair.ours.release(NAME, "key", &zombie).await;
    assert_eq!(kept, Ok(Kept::Lost(Loss::Taken)));
    let next = pair.our_next("key").await;
    assert_eq!(next, "refused: in flight");
    say(row, "this toolkit", format!("refused (Taken); {next}"));

    let _holder = pair.their_claim("their-key", HOUR).await;
    let kept = pair.theirs.remove(&key("their-key")).await;
    let next = pair.their_next("their-key").await;
    say(row, PEER, format!("{}; {next}", told(kept)));
}

#[tokio::test]
async fn a_holder_completes_what_the_server_has_forgotten() {
    let row = "a completion after the server lost the record; a call afterwards";
    let pair = Pair::new().await;
    let holder = pair.our_claim("key", "a", HOUR).await;
    let (entry, token) = pair.their_claim("their-key", HOUR).await;
    assert_eq!(pair.server.command("FLUSHALL"), "OK");
    let kept = pair
        .ours
        .complete(NAME, "key", &holder, &our_outcome())
        .await;
    assert_eq!(kept, Ok(Kept::Restored));
    let next = pair.our_next("key").await;
    assert_eq!(next, "replayed");
    say(row, "this toolkit", format!("kept; {next}"));

    let kept = pair
        .theirs
        .complete(&key("their-key"), their_outcome(entry), token)
        .await;
    let next = pair.their_next("their-key").await;
    say(row, PEER, format!("{}; {next}", told(kept)));
}
