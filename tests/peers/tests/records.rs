//! What records do when it matters, ours beside the peer's, on one real server. Ours is held to the answer; what each
//! version of the peer does is printed as it is:
//!
//! ```text
//! cargo test --ignore-rust-version -p resilience-peers -- --nocapture
//! ```

#[path = "../../src/child_process.rs"]
#[allow(dead_code, unreachable_pub)]
mod child_process;
mod peer;
#[path = "../../src/redis.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis;
#[path = "../../src/redis_connection.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis_connection;
mod rig;
#[path = "../../src/until.rs"]
#[allow(unreachable_pub)]
mod until;

use std::{fmt::Display, time::Duration};

use resilience_core::idempotency::{
    IdempotencyStore,
    record::{Claimed, Loss, WriteOutcome},
};

use crate::{
    peer::{Answer, IN_FLIGHT, Newest, Peer, Theirs},
    rig::{Rig, claim, outcome},
    until::eventually,
};

const OURS: &str = "this toolkit";
const NAME: &str = "peers";
const SOON: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);
/// A lease that ends.
const BRIEF: Duration = Duration::from_millis(30);

/// Does the same with each version of the peer, on the server that ours was tried on.
macro_rules! with_each_peer {
    ($row:ident, $rig:ident, $case:ident) => {
        let peer = Theirs::ready(&$rig.server).await;
        say($row, Theirs::NAME, $case(&$rig, &peer).await);
        let peer = Newest::ready(&$rig.server).await;
        say($row, Newest::NAME, $case(&$rig, &peer).await);
    };
}

fn say(row: &str, who: &str, what: impl Display) {
    println!("| {row} | {who} | {what} |");
}

/// How a step of the peer ended, and what a call finds afterwards.
async fn and_then<P: Peer>(peer: &P, told: Result<String, P::Error>) -> String {
    let told = told.expect("an answer");
    format!("{told}; {}", peer.next("key").await)
}

/// Waits until a lease has ended that was brief.
async fn lease_ends() {
    tokio::time::sleep(BRIEF * 2).await;
}

#[tokio::test]
async fn a_claim_is_repeated_whose_answer_was_lost() {
    let row = "the same claim again, after its answer was lost";
    let rig = Rig::new().await;
    let ours = claim("a", HOUR);
    rig.unheard(rig.ours.claim(NAME, "key", &ours)).await;
    eventually("ours is granted again", SOON, || async {
        match rig.ours.claim(NAME, "key", &ours).await {
            Ok(Claimed::Mine(_)) => true,
            Ok(other) => panic!("{other:?}"),
            // The connection may not be back yet.
            Err(_) => false,
        }
    })
    .await;
    say(row, OURS, "granted, as before");
    with_each_peer!(row, rig, repeated_claim);
}

async fn repeated_claim<P: Peer>(rig: &Rig, peer: &P) -> &'static str {
    let entry = P::entry(HOUR);
    rig.unheard(peer.insert("key", entry.clone())).await;
    match peer.insert("key", entry).await {
        Ok(Answer::Granted(_)) => "granted, as before",
        Ok(Answer::InFlight) => IN_FLIGHT,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_completion_is_repeated_whose_answer_was_lost() {
    let row = "the same completion again, after its answer was lost";
    let rig = Rig::new().await;
    let (holder, outcome) = (rig.claim("key", "a", HOUR).await, outcome());
    rig.unheard(rig.ours.complete(NAME, "key", &holder, &outcome))
        .await;
    eventually("ours is kept", SOON, || async {
        match rig.ours.complete(NAME, "key", &holder, &outcome).await {
            Ok(kept) => kept == WriteOutcome::Kept || panic!("{kept:?}"),
            Err(_) => false,
        }
    })
    .await;
    say(row, OURS, "kept");
    with_each_peer!(row, rig, repeated_completion);
}

async fn repeated_completion<P: Peer>(rig: &Rig, peer: &P) -> String {
    let claim = peer.claim("key", HOUR).await;
    rig.unheard(peer.complete("key", &claim)).await;
    // Whatever it is told: the server has it.
    assert_eq!(peer.next("key").await, "replayed");
    peer.complete("key", &claim).await.expect("an answer")
}

#[tokio::test]
async fn a_holder_completes_after_its_lease_and_somebody_has_taken_over() {
    let row = "a completion after the lease, when another caller has taken over; a call afterwards";
    let rig = Rig::new().await;
    let zombie = rig.claim("key", "a", BRIEF).await;
    lease_ends().await;
    let holder = rig.claim("key", "b", HOUR).await;
    assert!(holder.fence > zombie.fence, "{holder:?} after {zombie:?}");
    let kept = rig.ours.complete(NAME, "key", &zombie, &outcome()).await;
    assert_eq!(kept, Ok(WriteOutcome::Lost(Loss::Taken)));
    let next = rig.next("key").await;
    assert_eq!(next, "refused: in flight");
    say(row, OURS, format!("refused (Taken); {next}"));
    with_each_peer!(row, rig, completion_of_a_zombie);
}

async fn completion_of_a_zombie<P: Peer>(_: &Rig, peer: &P) -> String {
    let zombie = peer.claim("key", BRIEF).await;
    lease_ends().await;
    peer.claim("key", HOUR).await;
    let told = peer.complete("key", &zombie).await;
    and_then(peer, told).await
}

#[tokio::test]
async fn a_holder_completes_after_its_lease_and_nobody_has_taken_over() {
    let row =
        "a completion after the lease, when no other caller has taken over; a call afterwards";
    let rig = Rig::new().await;
    let late = rig.claim("key", "a", BRIEF).await;
    lease_ends().await;
    let kept = rig.ours.complete(NAME, "key", &late, &outcome()).await;
    assert_eq!(kept, Ok(WriteOutcome::Kept));
    let next = rig.next("key").await;
    assert_eq!(next, "replayed");
    say(row, OURS, format!("kept; {next}"));
    with_each_peer!(row, rig, late_completion);
}

async fn late_completion<P: Peer>(_: &Rig, peer: &P) -> String {
    let late = peer.claim("key", BRIEF).await;
    lease_ends().await;
    let told = peer.complete("key", &late).await;
    and_then(peer, told).await
}

#[tokio::test]
async fn a_zombie_gives_back_what_somebody_else_holds() {
    let row = "a claim is given back after its lease, when another caller has taken over; a call afterwards";
    let rig = Rig::new().await;
    let zombie = rig.claim("key", "a", BRIEF).await;
    lease_ends().await;
    rig.claim("key", "b", HOUR).await;
    let kept = rig.ours.release(NAME, "key", &zombie).await;
    assert_eq!(kept, Ok(WriteOutcome::Lost(Loss::Taken)));
    let next = rig.next("key").await;
    assert_eq!(next, "refused: in flight");
    say(row, OURS, format!("refused (Taken); {next}"));
    with_each_peer!(row, rig, removal_by_a_zombie);
}

async fn removal_by_a_zombie<P: Peer>(_: &Rig, peer: &P) -> String {
    let zombie = peer.claim("key", BRIEF).await;
    lease_ends().await;
    peer.claim("key", HOUR).await;
    let told = peer.remove("key", &zombie).await;
    and_then(peer, told).await
}

#[tokio::test]
async fn a_holder_completes_what_the_server_has_forgotten() {
    let row = "a completion after the server lost the record; a call afterwards";
    let rig = Rig::new().await;
    let holder = rig.claim("key", "a", HOUR).await;
    assert_eq!(rig.server.command("FLUSHALL"), "OK");
    let kept = rig.ours.complete(NAME, "key", &holder, &outcome()).await;
    assert_eq!(kept, Ok(WriteOutcome::Restored));
    let next = rig.next("key").await;
    assert_eq!(next, "replayed");
    say(row, OURS, format!("kept; {next}"));
    with_each_peer!(row, rig, completion_of_what_was_lost);
}

async fn completion_of_what_was_lost<P: Peer>(rig: &Rig, peer: &P) -> String {
    let claim = peer.claim("key", HOUR).await;
    assert_eq!(rig.server.command("FLUSHALL"), "OK");
    let told = peer.complete("key", &claim).await;
    and_then(peer, told).await
}
