//! Who is polled ready, who is called, and who holds what in between.

use std::time::Duration;

use tower::{Service, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit};

use super::{call, call_at_once, is_expected};
use crate::conformance::layer::{
    Driven, OFFENCES, Outcome, Plan, Probe, Readiness, Stack, Subject, rest,
};

/// Calls on one service, on clones of a service that is ready, at once from many tasks, with further attempts: the
/// probe below panics at any call that is not its turn.
pub(super) async fn calls_only_the_clone_that_was_polled_ready(subject: Subject) -> Outcome {
    for readiness in [Readiness::Open, Readiness::Late] {
        let (instance, probe) = (subject.instance().await, Probe::default());
        probe.set(readiness);
        let mut service = instance.around(probe.clone());
        for plan in [
            Plan::Answer,
            Plan::FailFirst(1),
            Plan::Answer,
            Plan::FailFirst(2),
        ] {
            let result = call(&mut service, plan).await;
            ensure!(is_expected(&result), "{plan:?} ended in {result:?}");
        }
        service.ready().await.map_err(|error| error.to_string())?;
        let mut clone = service.clone();
        let answers = [
            service.call(Plan::Answer.into()).await,
            call(&mut clone, Plan::Answer).await,
        ];
        // A load shedder rejects where others wait.
        let waits = readiness == Readiness::Late;
        let expected = |result| {
            if waits {
                is_expected(result)
            } else {
                result.is_ok()
            }
        };
        ensure!(
            answers.iter().all(expected),
            "a ready service and its clone answered {answers:?}"
        );
        for result in call_at_once(&service, mixed(50)).await {
            ensure!(is_expected(&result), "one of many ended in {result:?}");
        }
        let unready = probe.seen().unready_calls;
        ensure!(
            unready == 0,
            "{unready} calls on a clone that was not polled ready"
        );
        settled(&instance, &probe)?;
    }
    Ok(())
}

/// The limit reserves its only place in `poll_ready`: a layer that readies twice, or keeps what it readied, stops here.
pub(super) async fn works_over_a_concurrency_limit_of_one(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let service = instance.around(ConcurrencyLimit::new(probe.clone(), 1));
    serves(&service, &probe).await?;
    settled(&instance, &probe)
}

/// A buffer is ready while what it feeds is not, and fails for good when its worker is lost.
pub(super) async fn works_over_a_buffer(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let limited = ConcurrencyLimit::new(probe.clone(), 1);
    let service = instance.around(Buffer::new(limited, 4));
    serves(&service, &probe).await?;
    settled(&instance, &probe)
}

/// One worker readies and calls for everybody.
pub(super) async fn works_under_a_buffer(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let limited = ConcurrencyLimit::new(probe.clone(), 1);
    let service = Stack::new(Buffer::new(instance.around(limited), 4));
    serves(&service, &probe).await?;
    settled(&instance, &probe)
}

/// Clones that were polled ready and are kept, but never called.
pub(super) async fn idle_clones_hold_nothing(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    let mut idle = Vec::new();
    for number in 0..OFFENCES {
        let mut clone = service.clone();
        let mut ready = Driven::new(async move { clone.ready().await.map(|_| ()).map(|()| clone) });
        ensure!(
            ready.run().await,
            "with {number} idle clones, the next does not become ready"
        );
        idle.push(ready);
    }
    let mut one = Driven::new(async { call(&mut service, Plan::Answer).await });
    ensure!(one.run().await, "a call waits for idle clones");
    ensure!(
        matches!(one.output(), Some(Ok(_))),
        "a call beside idle clones ended in {:?}",
        one.output()
    );
    drop(one);
    drop(idle);
    settled(&instance, &probe)
}

/// Readied clones that are dropped, below a limit that reserves when it is polled.
pub(super) async fn a_readied_clone_that_is_dropped_frees_what_is_below(
    subject: Subject,
) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(ConcurrencyLimit::new(probe.clone(), 1));
    for _ in 0..OFFENCES {
        let mut clone = service.clone();
        let mut ready = Driven::new(async { clone.ready().await.map(|_| ()) });
        ensure!(
            ready.run().await,
            "the place of a dropped clone was not given back"
        );
        drop(ready);
        drop(clone);
    }
    answers(&mut service).await?;
    // The service that has just been called, and is idle now, holds nothing either.
    answers(&mut service.clone()).await?;
    settled(&instance, &probe)
}

/// `join_all` and its like keep futures that have finished.
pub(super) async fn a_finished_call_holds_nothing_while_its_future_lives(
    subject: Subject,
) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    let mut finished = Vec::new();
    for number in 0..OFFENCES {
        service.ready().await.map_err(|error| error.to_string())?;
        let mut call = Driven::new(service.call(Plan::Answer.into()));
        ensure!(
            call.run().await,
            "after {number} finished calls, the next waits"
        );
        ensure!(
            matches!(call.output(), Some(Ok(_))),
            "after {number} finished calls: {:?}",
            call.output()
        );
        finished.push(call);
    }
    let held = (instance.held)();
    ensure!(held == 0, "{held} still held by calls that have finished");
    Ok(())
}

/// Time spent between `poll_ready` and `call` counts for no call.
pub(super) async fn readiness_keeps_for_an_hour(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    service.ready().await.map_err(|error| error.to_string())?;
    tokio::time::advance(Duration::from_secs(3600)).await;
    let result = service
        .call(Plan::Take(Duration::from_millis(1)).into())
        .await;
    ensure!(result.is_ok(), "an hour after it was ready: {result:?}");
    settled(&instance, &probe)
}

/// All is as before the first call.
pub(super) fn settled(instance: &super::super::Instance, probe: &Probe) -> Outcome {
    let (held, in_flight) = ((instance.held)(), probe.seen().in_flight);
    ensure!(held == 0, "{held} still held when all calls were over");
    ensure!(
        in_flight == 0,
        "{in_flight} futures of the service below still alive"
    );
    Ok(())
}

/// Makes one call, which must be answered without the clock moving on.
pub(super) async fn answers(service: &mut Stack) -> Outcome {
    let mut one = Driven::new(async { call(service, Plan::Answer).await });
    ensure!(
        one.run().await,
        "a call that should be answered at once waits"
    );
    ensure!(
        matches!(one.output(), Some(Ok(_))),
        "a call that should be answered ended in {:?}",
        one.output()
    );
    Ok(())
}

/// Calls one after the other, then many at once; then nothing is left behind.
async fn serves(service: &Stack, probe: &Probe) -> Outcome {
    let mut one = service.clone();
    for number in 0..30 {
        let result = call(&mut one, Plan::Answer).await;
        ensure!(result.is_ok(), "call {number} ended in {result:?}");
    }
    drop(one);
    let results = call_at_once(service, mixed(30)).await;
    let unexpected: Vec<_> = results
        .iter()
        .filter(|result| !is_expected(result))
        .collect();
    ensure!(unexpected.is_empty(), "at once: {unexpected:?}");
    ensure!(
        results.iter().any(Result::is_ok),
        "none of many calls at once was answered"
    );
    let most = probe.seen().most_in_flight;
    ensure!(most == 1, "{most} in flight below a limit of one");
    rest().await;
    answers(&mut service.clone()).await
}

fn mixed(calls: usize) -> impl Iterator<Item = Plan> {
    let plans = [
        Plan::Answer,
        Plan::FailFirst(1),
        Plan::Take(Duration::from_millis(1)),
    ];
    plans.into_iter().cycle().take(calls)
}
