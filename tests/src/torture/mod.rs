//! Processes that ask for the same work at the same time, while they are killed, stopped and cut off, and client retries
//! go on; and a database that tells what was done.
//!
//! Each of a few processes makes thousands of calls, each with one of a few keys, many of them the same key at the same
//! moment. A call is repeated until it is told an outcome; some hang up half-way, and ask again. The work of a key is
//! one row in a table without any constraint that would keep out a second one. At the end there must be exactly one row
//! for each key that anybody was told of, and it must be the one they were told of.

mod checker;
mod clock;
mod deploys;
mod failover;
mod fleet;
mod hang_ups;
mod mixed;
mod outages;
mod outbox;
mod shards;
mod subject;
mod switch;
mod upgrade;
mod worker;
mod write_behind;

use std::{path::Path, time::Duration};

pub use checker::Findings;
pub use clock::{ClockSteps, clock_steps_under_load};
pub use deploys::{Deploys, deploys, serve};
pub use failover::{DISTANCE, Loss, failover};
pub use fleet::Faults;
pub use hang_ups::{HungUp, hang_ups_on_postgres, hang_ups_on_sqlite};
pub use mixed::{Mixed, mixed};
pub use outages::{Outages, outages};
pub use outbox::{OutboxPlan, OutboxReport, outbox, relay};
pub use shards::{Healthy, Shards, one_master_frozen};
pub use subject::Subject;
pub use switch::{How, Overrun, PLACES, Switch, switch, switches};
pub use upgrade::{Former, Rollout, Upgrade, upgrade};
pub use worker::work;
pub use write_behind::{
    WRITE_BEHIND, WriteBehindPlan, WriteBehindReport, write_behind, write_behind_process,
};

use crate::{postgres::Postgres, redis::RedisServer};

/// What is to be endured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Whose promise is held to.
    pub subject: Subject,
    /// Processes.
    pub workers: usize,
    /// Different keys.
    pub keys: usize,
    /// Calls in all.
    pub operations: usize,
    /// Time from one fault to the next.
    pub calm: Duration,
    /// For the order of faults.
    pub seed: u64,
    /// After this it has failed.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The books.
    pub books: Findings,
    /// What the processes went through.
    pub faults: Faults,
    /// How long it took.
    pub took: Duration,
}

/// Runs the plan with servers of its own. `program` is the binary `torture`.
///
/// # Panics
/// If the servers do not start, or it takes longer than the limit.
pub async fn run(plan: &Plan, program: &Path) -> Report {
    let began = tokio::time::Instant::now();
    let postgres = Postgres::start();
    let redis = RedisServer::start();
    let (books, faults) =
        tokio::time::timeout(plan.limit, fleet::run(plan, program, &postgres, &redis))
            .await
            .unwrap_or_else(|_| panic!("not done within {:?}", plan.limit));
    Report {
        books,
        faults,
        took: began.elapsed(),
    }
}
