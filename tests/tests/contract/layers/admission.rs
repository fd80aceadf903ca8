//! The admission layer under policies of a third party.

use std::{future::Future, pin::Pin, sync::Arc};

use resilience_core::conformance::layer::{Instance, Plan, Subject};
use resilience_core::{
    Pattern, Reason, Rejected, Verdict,
    admission::{Admission, AdmissionLayer, Admit, Permit, Refused},
    completion::Guard,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{PLACES, SECOND};

/// Concurrent calls by a semaphore of tokio's.
#[derive(Clone)]
struct Places {
    free: Arc<Semaphore>,
    waits: bool,
}

struct Place(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Guard for Place {
    fn settle(&mut self, _: Verdict) {}
}

impl Permit for Place {}

fn rejected(reason: Reason) -> Rejected {
    Rejected::new(Pattern::custom("places"), reason, "contract")
}

impl<Req> Admit<Req> for Places {
    type Permit = Place;
    type Wait = Pin<Box<dyn Future<Output = Result<Place, Rejected>> + Send>>;

    fn admit(&self, _: &Req) -> Admission<Place, Self::Wait> {
        let free = Arc::clone(&self.free);
        if let Ok(place) = Arc::clone(&free).try_acquire_owned() {
            return Ok(Place(place));
        }
        if !self.waits {
            return Err(Refused::no(rejected(Reason::Full)));
        }
        Err(Refused::wait(Box::pin(async move {
            let place = tokio::time::timeout(10 * SECOND, free.acquire_owned()).await;
            let place = place.map_err(|_| rejected(Reason::QueueTimedOut))?;
            Ok(Place(place.expect("never closed")))
        })))
    }
}

fn subject(name: &'static str, waits: bool) -> Subject {
    let make = move || async move {
        let free = Arc::new(Semaphore::new(PLACES));
        let layer = AdmissionLayer::new(Places {
            free: Arc::clone(&free),
            waits,
        });
        Instance::new(move || layer.clone())
            .held(move || (PLACES - free.available_permits()) as u64)
    };
    Subject::new(name, make).rejects_after(PLACES, Plan::Hang)
}

#[test]
fn a_third_party_policy_that_rejects() {
    subject("third-party policy", false).keeps_every_contract();
}

#[test]
fn a_third_party_policy_that_waits() {
    subject("third-party policy that waits", true).keeps_every_contract();
}
