//! A faster store in front of an inbox.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Settled;
use crate::{
    error::{InvalidConfig, Pattern},
    fleet::{FleetDefaults, FleetOptions, OnOutage, millis},
    idempotency::{
        IdempotencyStore, RecordClient, fresh_owner,
        record::{Claim, Claimed, Completion, Holder, Takeover},
    },
};

/// A store that is asked before the database, and told afterwards what was committed.
#[derive(Clone, Debug)]
pub(super) struct Front {
    client: RecordClient,
    /// The group of its records.
    name: Arc<str>,
}

/// How long a call holds the key in front. Calls that find it held ask the database.
const LEASE_MS: u64 = 10_000;

/// What the front answered.
pub(super) enum Answer {
    /// The work was committed.
    Done { outcome: Bytes, age: Duration },
    /// The front knows nothing, and is to be told.
    Claimed(Holder),
    /// Nothing that counts.
    Nothing,
    /// The front failed, or had no answer within its time budget.
    Failed,
}

impl Front {
    /// A front of the inbox `name`.
    pub(super) fn new(
        name: &str,
        store: Arc<dyn IdempotencyStore>,
        budget: Duration,
    ) -> Result<Self, InvalidConfig> {
        let fleet = FleetOptions::new().budget(budget).resolve(&FleetDefaults {
            budget,
            heartbeat: None,
            no_heartbeat: "",
            on_outage: OnOutage::FailOpen,
            accepts: &[OnOutage::FailOpen],
            rule: "",
        })?;
        // A handle of the same name and store must not take these records for its own.
        let name: Arc<str> = format!("inbox:{name}").into();
        let client = RecordClient::new(store, Pattern::Idempotency, Arc::clone(&name), &fleet);
        Ok(Self { client, name })
    }

    pub(super) fn is_available(&self) -> bool {
        self.client.is_available()
    }

    pub(super) async fn ask(&self, key: &str, fingerprint: &Bytes) -> Answer {
        let claim = Claim {
            owner: fresh_owner(),
            fingerprint: fingerprint.clone(),
            lease_ms: LEASE_MS,
            retention_ms: LEASE_MS,
            takeover: Takeover::Any,
        };
        let was_available = self.is_available();
        let step = self
            .client
            .call(|store| store.claim(&self.name, key, &claim));
        match step.await {
            Ok(Claimed::Done {
                outcome, age_ms, ..
            }) => committed(outcome, age_ms),
            Ok(Claimed::New(grant) | Claimed::Mine(grant)) => {
                Answer::Claimed(Holder::new(&claim, &grant))
            }
            Ok(_) => Answer::Nothing,
            Err(error) if was_available => {
                self.debug(&error, "front of the inbox gives no answer");
                Answer::Failed
            }
            // Known to be unavailable, and not asked.
            Err(_) => Answer::Nothing,
        }
    }

    /// Passes on what was committed, or gives the key back; tried once, since a caller waits, and a failure costs no more than
    /// a call to the database later. False if there was no answer.
    pub(super) async fn tell(&self, key: &str, holder: &Holder, settled: Option<&Settled>) -> bool {
        let (name, completion) = (&self.name, settled.and_then(completion));
        let step = self.client.attempt(|store| match &completion {
            Some(completion) => store.complete(name, key, holder, completion),
            None => store.release(name, key, holder),
        });
        let Err(error) = step.await else {
            return true;
        };
        self.debug(&error, "front of the inbox was not told");
        false
    }

    fn debug(&self, error: &dyn fmt::Display, what: &'static str) {
        tracing::debug!(target: "resilience", pattern = Pattern::Idempotency.as_str(), name = &*self.name, %error, "{what}");
    }
}

/// The outcome with its present age, for no longer than the database keeps it.
fn completion(settled: &Settled) -> Option<Completion> {
    let ttl_ms = millis(settled.expires_in);
    let mut outcome = BytesMut::with_capacity(8 + settled.outcome.len());
    outcome.put_u64(millis(settled.age));
    outcome.put_slice(&settled.outcome);
    (ttl_ms > 0).then(|| Completion {
        outcome: outcome.freeze(),
        ttl_ms,
    })
}

fn committed(mut outcome: Bytes, age_ms: u64) -> Answer {
    // Not written by an inbox.
    if outcome.len() < 8 {
        return Answer::Nothing;
    }
    let age = Duration::from_millis(outcome.get_u64().saturating_add(age_ms));
    Answer::Done { outcome, age }
}
