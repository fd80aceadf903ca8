//! A server whose clock is set: how much too long things last, and what is granted twice.

use std::time::Duration;

use resilience_core::{
    bulkhead::fleet::{Admission, BulkheadStore},
    idempotency::{
        IdempotencyStore,
        record::{Claimed, Holder, WriteOutcome},
    },
};
use resilience_redis::Redis;

use crate::{
    lasting::{LONG_MS, Lasting, SHORT, claim, place},
    redis_clock::Clock,
};

const HOUR: Duration = Duration::from_secs(3600);
const ROUNDS: u32 = 5;
const FORWARD: usize = 5;
const PREFIX: &str = "steps";

/// By how much anything lasts too long when the clock is set back at some time, or a replica takes over whose clock is behind.
///
/// # Panics
/// If the servers do not start.
pub async fn longest_overrun() -> Duration {
    let mut longest = 0.0_f64;
    for round in 0..ROUNDS {
        longest = longest.max(set_back(SHORT * round / ROUNDS).await);
    }
    Duration::from_secs_f64(longest.max(failed_over().await))
}

/// A connection whose keys begin with `prefix`.
///
/// # Panics
/// If there is no Redis.
pub async fn connect(url: &str, prefix: &str) -> Redis {
    let budget = Duration::from_secs(2);
    let redis = Redis::builder(url).budget(budget).prefix(prefix).connect();
    let redis = redis.expect("good settings");
    redis.ready(budget * 10).await.expect("it connects");
    redis
}

/// Sets the clock back by an hour some time after everything has begun. The longest overrun in seconds.
async fn set_back(after: Duration) -> f64 {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let lasting = Lasting::begin(connect(&server.url(), PREFIX).await).await;
    let step = async {
        tokio::time::sleep(after).await;
        clock.set_back(HOUR);
    };
    let (overruns, ()) = tokio::join!(lasting.overruns(), step);
    overruns.iter().map(|(_, over)| *over).fold(0.0, f64::max)
}

/// A replica takes over whose clock is an hour behind. The longest overrun in seconds.
async fn failed_over() -> f64 {
    let (clock, behind) = (Clock::new(), Clock::new());
    behind.set_back(HOUR);
    let master = clock.start(&["--repl-diskless-sync-delay", "0"]);
    let replica = behind.start(&["--replicaof", &format!("127.0.0.1 {}", master.port())]);
    while !master.command("INFO replication").contains("state=online")
        || master.command("SET linked yes") != "OK"
        || !replica
            .try_command("GET linked")
            .is_ok_and(|it| it == "yes")
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lasting = Lasting::begin(connect(&master.url(), PREFIX).await).await;
    assert_eq!(master.command("WAIT 1 5000"), "1");
    drop(master);
    assert_eq!(replica.command("REPLICAOF NO ONE"), "OK");
    let lasting = lasting.by(connect(&replica.url(), PREFIX).await);
    let overruns = lasting.overruns().await;
    overruns.iter().map(|(_, over)| *over).fold(0.0, f64::max)
}

/// Sets the clock forward and back: a place may be granted once more, a key with each step forward, under a higher fence, and
/// the former holder changes nothing. Counts what is not so.
///
/// # Panics
/// If there is no Redis.
pub async fn granted_twice() -> usize {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let redis = connect(&server.url(), PREFIX).await;
    let (bulkheads, keys) = (redis.bulkheads(), redis.idempotency());
    let (mut places, mut holders) = (Vec::new(), Vec::<Holder>::new());
    let mut wrong = 0;
    for step in 0..2 * FORWARD {
        let owner = format!("owner {step}");
        let asked = bulkheads.acquire("n", &place(&owner, LONG_MS)).await;
        if let Ok(Admission::Granted { fence }) = asked {
            places.push(fence);
        }
        let claim = claim(&owner, LONG_MS, 86_400_000);
        if let Ok(Claimed::New(grant)) = keys.claim("n", "key", &claim).await {
            if let Some(former) = holders.last() {
                let told = keys.extend("n", "key", former, LONG_MS).await;
                wrong += usize::from(!matches!(told, Ok(WriteOutcome::Lost(_))));
            }
            holders.push(Holder::new(&claim, &grant));
        }
        if step % 2 == 0 {
            clock.set_ahead(HOUR);
        } else {
            clock.set_back(Duration::ZERO);
        }
    }
    wrong += places.len().saturating_sub(2) + holders.len().saturating_sub(1 + FORWARD);
    wrong += usize::from(!places.is_sorted_by(|old, new| old < new));
    wrong + usize::from(!holders.is_sorted_by(|old, new| old.fence < new.fence))
}
