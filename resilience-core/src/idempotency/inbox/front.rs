//! A faster store in front of an inbox.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::timeout;

use super::Settled;
use crate::{
    error::Pattern,
    idempotency::{
        record::{Claim, Claimed, Completion, Holder, Takeover},
        store::IdempotencyStore,
    },
};

/// A store that is asked before the database is, and told afterwards.
#[derive(Clone, Debug)]
pub(super) struct Front {
    pub(super) store: Arc<dyn IdempotencyStore>,
    pub(super) budget: Duration,
}

/// For how long a call keeps the place in front. Nobody waits for it: who finds it taken asks the database.
const LEASE_MS: u64 = 10_000;

/// What the front says.
pub(super) enum Asked {
    /// It was committed.
    Done { outcome: Bytes, age: Duration },
    /// It knows nothing, and is to be told.
    Tell(Holder),
    /// Nothing that counts.
    Nothing,
    /// Nothing at all, within the budget.
    NoAnswer,
}

impl Front {
    pub(super) async fn ask(&self, name: &str, key: &str, fingerprint: &Bytes) -> Asked {
        let claim = Claim {
            owner: format!("{:032x}", fastrand::u128(..)).into(),
            fingerprint: fingerprint.clone(),
            lease_ms: LEASE_MS,
            retention_ms: LEASE_MS,
            takeover: Takeover::Any,
        };
        let name = in_front(name);
        match timeout(self.budget, self.store.claim(&name, key, &claim)).await {
            Ok(Ok(Claimed::Done {
                outcome, age_ms, ..
            })) => committed(outcome, age_ms),
            Ok(Ok(Claimed::New(grant) | Claimed::Mine(grant))) => {
                Asked::Tell(Holder::new(&claim, &grant))
            }
            Ok(Ok(_)) => Asked::Nothing,
            Ok(Err(error)) => no_answer(&name, &error),
            Err(late) => no_answer(&name, &late),
        }
    }

    /// Passes on what is committed, or gives the place back; whether there was an answer. What goes wrong here costs a
    /// call to the database later.
    pub(super) async fn tell(
        &self,
        name: &str,
        key: &str,
        holder: &Holder,
        settled: Option<&Settled>,
    ) -> bool {
        let name = in_front(name);
        let told = async {
            match settled.and_then(completion) {
                Some(completion) => self.store.complete(&name, key, holder, &completion).await,
                None => self.store.release(&name, key, holder).await,
            }
        };
        let answer = timeout(self.budget, told).await;
        let error: &dyn fmt::Display = match &answer {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) => error,
            Err(late) => late,
        };
        tracing::debug!(target: "resilience", pattern = Pattern::Idempotency.as_str(), name = &*name, %error, "front of the inbox was not told");
        false
    }
}

fn no_answer(name: &str, error: &dyn fmt::Display) -> Asked {
    tracing::debug!(target: "resilience", pattern = Pattern::Idempotency.as_str(), name, %error, "front of the inbox gives no answer");
    Asked::NoAnswer
}

/// So that a handle of the same name and store does not take these records for its own.
fn in_front(name: &str) -> String {
    format!("inbox:{name}")
}

/// Not kept for longer than the database keeps it, and with the age that it has by now.
fn completion(settled: &Settled) -> Option<Completion> {
    let ttl_ms = settled.expires_in.as_millis() as u64;
    let mut outcome = BytesMut::with_capacity(8 + settled.outcome.len());
    outcome.put_u64(settled.age.as_millis() as u64);
    outcome.put_slice(&settled.outcome);
    (ttl_ms > 0).then(|| Completion {
        outcome: outcome.freeze(),
        ttl_ms,
    })
}

fn committed(mut outcome: Bytes, age_ms: u64) -> Asked {
    // Whoever wrote this was no inbox.
    if outcome.len() < 8 {
        return Asked::Nothing;
    }
    let age = Duration::from_millis(outcome.get_u64().saturating_add(age_ms));
    Asked::Done { outcome, age }
}
