//! The service's own errors: as they are.

use tower::{Service, ServiceExt};

use super::call;
use crate::conformance::layer::{Fault, Outcome, Plan, Probe, Readiness, Subject};

/// The service below fails in `poll_ready`: so does the layer, or its next call.
pub(super) async fn an_error_of_readiness_is_passed_on(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    probe.set(Readiness::Broken);
    let error = match service.ready().await {
        Ok(ready) => ready.call(Plan::Answer.into()).await.err(),
        Err(error) => Some(error),
    };
    let seen = error
        .as_ref()
        .and_then(|error| error.downcast_ref::<Fault>());
    ensure!(
        seen == Some(&Fault::Unready),
        "the service below is broken, the caller sees {error:?}"
    );
    Ok(())
}

/// No layer wraps it.
pub(super) async fn an_error_of_the_service_is_passed_on_as_it_is(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let result = call(&mut instance.around(probe.clone()), Plan::Fail).await;
    let seen = result
        .as_ref()
        .err()
        .and_then(|error| error.downcast_ref::<Fault>());
    ensure!(
        seen == Some(&Fault::Refused),
        "the service below failed, the caller sees {result:?}"
    );
    Ok(())
}
