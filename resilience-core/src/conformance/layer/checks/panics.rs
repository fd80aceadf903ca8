//! Panics of the service below: passed on, and nothing is left behind.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::{
    call,
    readiness::{answers, settled},
};
use crate::conformance::layer::{OFFENCES, Outcome, Plan, Planned, Probe, Readiness, Subject};

/// `call` of the service below panics.
pub(super) async fn a_panic_in_the_inner_call_leaks_nothing(subject: Subject) -> Outcome {
    panics(subject, Plan::PanicInCall).await
}

/// The response future of the service below panics.
pub(super) async fn a_panic_in_the_inner_future_leaks_nothing(subject: Subject) -> Outcome {
    panics(subject, Plan::PanicInPoll).await
}

/// `poll_ready` of the service below panics.
pub(super) async fn a_panic_in_the_inner_readiness_leaks_nothing(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    probe.set(Readiness::Panics);
    for _ in 0..OFFENCES {
        is_passed_on(
            AssertUnwindSafe(call(&mut service, Plan::Answer))
                .catch_unwind()
                .await,
        )?;
    }
    probe.set(Readiness::Open);
    answers(&mut service).await?;
    settled(&instance, &probe)
}

async fn panics(subject: Subject, plan: Plan) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    for number in 0..OFFENCES {
        let result = AssertUnwindSafe(call(&mut service, plan))
            .catch_unwind()
            .await;
        is_passed_on(result).map_err(|seen| format!("call {number}: {seen}"))?;
        settled(&instance, &probe)?;
    }
    answers(&mut service).await?;
    settled(&instance, &probe)
}

fn is_passed_on<T: std::fmt::Debug>(result: std::thread::Result<T>) -> Outcome {
    match result {
        Ok(result) => Err(format!("instead of the panic: {result:?}")),
        Err(panic) if panic.is::<Planned>() => Ok(()),
        Err(panic) => Err(super::super::message(panic.as_ref())),
    }
}
