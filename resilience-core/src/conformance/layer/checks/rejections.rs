//! Rejections of the layer itself. Layers that never reject have nothing to keep here.

use std::time::Duration;

use crate::ServiceError;
use tower::{Service, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit};

use super::{
    call, call_at_once,
    readiness::{answers, settled},
    waiting::{release, saturate},
};
use crate::conformance::layer::{Driven, Outcome, Plan, Probe, Stack, Subject};

/// A [`Rejected`](crate::Rejected) is found in the error.
pub(super) async fn a_rejection_can_be_told_from_a_failure(subject: Subject) -> Outcome {
    let Some(saturation) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let service = instance.around(probe.clone());
    let _holders = saturate(&service, saturation).await;
    let result = service.clone().oneshot(Plan::Answer.into()).await;
    let rejected = result.as_ref().err().and_then(|error| error.as_rejected());
    ensure!(rejected.is_some(), "instead of a rejection: {result:?}");
    Ok(())
}

/// What is rejected is not sent.
pub(super) async fn a_rejection_does_not_reach_the_service(subject: Subject) -> Outcome {
    let Some(saturation) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let service = instance.around(probe.clone());
    let _holders = saturate(&service, saturation).await;
    let before = probe.seen().calls;
    let rejected = call_at_once(&service, [Plan::Answer; 5]).await;
    ensure!(
        rejected.iter().all(Result::is_err),
        "not rejected: {rejected:?}"
    );
    let sent = probe.seen().calls - before;
    ensure!(sent == 0, "{sent} of 5 rejected calls were sent");
    Ok(())
}

/// The service on which a call was rejected is kept, and stays idle; what it had readied below is for others to use.
pub(super) async fn a_rejected_caller_does_not_keep_what_it_readied_below(
    subject: Subject,
) -> Outcome {
    let Some((plan, calls)) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let others = if plan == Plan::Hang { calls } else { 0 };
    let below = ConcurrencyLimit::new(probe.clone(), others + 2);
    let beside = Stack::new(below.clone());
    let service = instance.around(below);
    // One was readied when all was well, the other asks when it no longer is.
    let (mut early, mut late) = (service.clone(), service.clone());
    early.ready().await.map_err(|error| error.to_string())?;
    let _holders = saturate(&service, (plan, calls)).await;
    let mut rejected = Driven::new(early.call(Plan::Answer.into()));
    rejected.run().await;
    ensure!(!matches!(rejected.output(), Some(Ok(_))), "not rejected");
    drop(rejected);
    Driven::new(async { call(&mut late, Plan::Answer).await })
        .run()
        .await;
    let mut free = Vec::new();
    for _ in 0..2 {
        let mut ready = Driven::new(beside.clone().ready_oneshot());
        ensure!(
            ready.run().await,
            "a service on which a call was rejected keeps a place below"
        );
        free.push(ready);
    }
    Ok(())
}

/// An error in `poll_ready` ends a buffer's worker, and with it everybody behind the buffer.
pub(super) async fn a_rejection_does_not_kill_a_buffer_above(subject: Subject) -> Outcome {
    let Some((plan, calls)) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = Stack::new(Buffer::new(instance.around(probe.clone()), calls + 8));
    let holders = saturate(&service, (plan, calls)).await;
    let rejected = call_at_once(&service, [Plan::Answer; 3]).await;
    ensure!(
        rejected.iter().all(Result::is_err),
        "not rejected: {rejected:?}"
    );
    recover(&probe, holders).await?;
    answers(&mut service).await
}

/// What one clone sees, all see, and so do the services of a second `layer()`.
pub(super) async fn the_state_is_shared_by_clones_and_by_layers_of_one_handle(
    subject: Subject,
) -> Outcome {
    let Some(saturation) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let first = instance.around(probe.clone());
    let (clone, second) = (first.clone(), instance.around(probe.clone()));
    let _holders = saturate(&first, saturation).await;
    for (who, service) in [("a clone", clone), ("a second layer of the handle", second)] {
        let result = service.oneshot(Plan::Answer.into()).await;
        let rejected = result.as_ref().err().and_then(|error| error.as_rejected());
        ensure!(
            rejected.is_some(),
            "{who} answers {result:?} when the first service rejects"
        );
    }
    Ok(())
}

/// Once the cause is gone and an hour has passed.
pub(super) async fn it_takes_calls_again_after_rejecting(subject: Subject) -> Outcome {
    let Some(saturation) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    let holders = saturate(&service, saturation).await;
    let rejected = call_at_once(&service, [Plan::Answer; 5]).await;
    ensure!(
        rejected.iter().all(Result::is_err),
        "not rejected: {rejected:?}"
    );
    recover(&probe, holders).await?;
    for _ in 0..20 {
        let result = call(&mut service, Plan::Answer).await;
        ensure!(result.is_ok(), "an hour after: {result:?}");
    }
    settled(&instance, &probe)
}

async fn recover<F: Future>(probe: &Probe, mut holders: Vec<Driven<F>>) -> Outcome {
    release(probe, &mut holders).await?;
    tokio::time::advance(Duration::from_secs(3600)).await;
    Ok(())
}
