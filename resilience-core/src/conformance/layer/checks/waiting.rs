//! What happens while nothing happens: few polls, and the right waker woken in the end.

use std::time::Duration;

use tower::{Service, ServiceExt, limit::ConcurrencyLimit};

use super::{call, call_at_once};
use crate::conformance::layer::{
    Ask, Driven, Outcome, Plan, Probe, Readiness, Stack, Subject, rest,
};

/// "A handful".
const FEW: u32 = 10;

/// The service below hangs.
pub(super) async fn waiting_for_an_answer_takes_few_polls(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    service.ready().await.map_err(|error| error.to_string())?;
    let mut waiting = Driven::new(service.call(Plan::Hang.into()));
    stays_calm(&mut waiting).await?;
    let polls = probe.seen().call_polls;
    ensure!(
        polls <= FEW.into(),
        "the future below was polled {polls} times"
    );
    Ok(())
}

/// The service below is not ready.
pub(super) async fn waiting_for_readiness_takes_few_polls(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    probe.set(Readiness::Closed);
    let mut waiting = Driven::new(async { service.ready().await.map(|_| ()) });
    stays_calm(&mut waiting).await?;
    let polls = probe.seen().ready_polls;
    ensure!(
        polls <= FEW.into(),
        "the service below was polled {polls} times"
    );
    Ok(())
}

/// All that the layer has is taken. A layer that rejects does not wait, which is as good.
pub(super) async fn waiting_for_a_place_takes_few_polls(subject: Subject) -> Outcome {
    let Some(saturation) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let service = instance.around(probe.clone());
    let _holders = saturate(&service, saturation).await;
    let before = probe.seen();
    let mut waiting = Driven::new(service.clone().oneshot(Plan::Answer.into()));
    stays_calm(&mut waiting).await?;
    let polls = probe.seen().ready_polls - before.ready_polls;
    ensure!(
        polls <= FEW.into(),
        "the service below was polled {polls} times"
    );
    Ok(())
}

/// The pause before a further attempt, and a service that is not ready when it is over.
pub(super) async fn waiting_for_the_next_attempt_takes_few_polls(subject: Subject) -> Outcome {
    if !subject.makes_further_attempts {
        return Ok(());
    }
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    service.ready().await.map_err(|error| error.to_string())?;
    let mut call = Driven::new(service.call(Plan::FailFirst(1).into()));
    probe.set(Readiness::Closed);
    stays_calm(&mut call).await?;
    tokio::time::advance(Duration::from_millis(500)).await;
    stays_calm(&mut call).await?;
    probe.set(Readiness::Open);
    // The rest of the pause, should there be one.
    for _ in 0..60 {
        call.run().await;
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    ensure!(
        matches!(call.output(), Some(Ok(2))),
        "the second attempt ended in {:?}",
        call.output()
    );
    Ok(())
}

/// The service below answers.
pub(super) async fn an_answer_wakes_who_waits_for_it(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    service.ready().await.map_err(|error| error.to_string())?;
    let mut waiting = Driven::new(service.call(Plan::Hang.into()));
    ensure!(
        !waiting.run().await,
        "a call that hangs ended in {:?}",
        waiting.output()
    );
    probe.release();
    ensure!(waiting.run().await, "no waiter was woken by the answer");
    ensure!(
        matches!(waiting.output(), Some(Ok(1))),
        "answered with {:?}",
        waiting.output()
    );
    Ok(())
}

/// The service below becomes ready.
pub(super) async fn readiness_wakes_all_who_wait_for_it(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let service = instance.around(probe.clone());
    probe.set(Readiness::Closed);
    let ready = |mut clone: Stack| async move { clone.ready().await.map(|_| ()) };
    let mut waiting: Vec<_> = (0..5)
        .map(|_| Driven::new(ready(service.clone())))
        .collect();
    for one in &mut waiting {
        ensure!(
            !one.run().await,
            "ready, though what is below is not: {:?}",
            one.output()
        );
    }
    probe.set(Readiness::Open);
    for one in &mut waiting {
        ensure!(
            one.run().await,
            "no waiter was woken when the service below became ready"
        );
        ensure!(
            matches!(one.output(), Some(Ok(()))),
            "became {:?}",
            one.output()
        );
    }
    Ok(())
}

/// A place becomes free.
pub(super) async fn a_place_wakes_who_waits_for_it(subject: Subject) -> Outcome {
    let Some(saturation @ (Plan::Hang, _)) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let service = instance.around(probe.clone());
    let mut holders = saturate(&service, saturation).await;
    let mut waiting = Driven::new(service.clone().oneshot(Plan::Answer.into()));
    if waiting.run().await {
        // It rejects instead of letting anybody wait.
        return Ok(());
    }
    release(&probe, &mut holders).await?;
    ensure!(
        waiting.run().await,
        "no waiter was woken when places became free"
    );
    ensure!(
        matches!(waiting.output(), Some(Ok(_))),
        "after waiting: {:?}",
        waiting.output()
    );
    Ok(())
}

/// A future that moves to another task is polled with another waker.
pub(super) async fn the_last_waker_is_the_one_that_is_woken(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    let mut call = Driven::new(
        service
            .ready()
            .await
            .map_err(|error| error.to_string())?
            .call(Plan::Hang.into()),
    );
    call.run().await;
    call.poll_elsewhere();
    probe.release();
    ensure!(
        call.run().await,
        "a call that moved was not woken by its answer"
    );

    probe.set(Readiness::Closed);
    let mut ready = Driven::new(async { service.ready().await.map(|_| ()) });
    ready.run().await;
    ready.poll_elsewhere();
    probe.set(Readiness::Open);
    ensure!(
        ready.run().await,
        "a caller that moved was not woken when the service became ready"
    );
    drop(ready);

    let Some(saturation @ (Plan::Hang, _)) = subject.saturation else {
        return Ok(());
    };
    let mut holders = saturate(&service, saturation).await;
    let mut queued = Driven::new(service.clone().oneshot(Plan::Answer.into()));
    queued.run().await;
    queued.poll_elsewhere();
    release(&probe, &mut holders).await?;
    ensure!(
        queued.run().await,
        "a caller that moved was not woken when a place became free"
    );
    Ok(())
}

/// A service that waits in `poll_ready` must not withhold what others below could use.
pub(super) async fn readiness_below_is_not_held_while_waiting(subject: Subject) -> Outcome {
    let Some((plan, calls)) = subject.saturation else {
        return Ok(());
    };
    if plan == Plan::Hang {
        // The holders hold the only place themselves.
        return Ok(());
    }
    let (instance, probe) = (subject.instance().await, Probe::default());
    let below = ConcurrencyLimit::new(probe.clone(), 1);
    let mut beside = Stack::new(below.clone());
    let service = instance.around(below);
    let _holders = saturate(&service, (plan, calls)).await;
    let mut clone = service.clone();
    let mut waiting = Driven::new(async { clone.ready().await.map(|_| ()) });
    if waiting.run().await {
        return Ok(());
    }
    let mut other = Driven::new(async { call(&mut beside, Plan::Answer).await });
    ensure!(
        other.run().await,
        "who waits above holds the only place below"
    );
    Ok(())
}

/// Calls that bring a layer to where it rejects or makes wait; the futures hold what they hold.
pub(super) async fn saturate(
    service: &Stack,
    (plan, calls): (Plan, usize),
) -> Vec<Driven<impl Future<Output = Result<u32, tower::BoxError>> + use<>>> {
    if plan != Plan::Hang {
        for _ in 0..calls {
            call_at_once(service, [plan]).await;
        }
        return Vec::new();
    }
    let mut holders = Vec::new();
    for _ in 0..calls {
        let mut holder = Driven::new(service.clone().oneshot(Ask::from(plan)));
        holder.run().await;
        holders.push(holder);
    }
    holders
}

/// Lets the calls of [`saturate`] end. Those that had to queue hang only now.
pub(super) async fn release<F: Future>(probe: &Probe, holders: &mut [Driven<F>]) -> Outcome {
    for holder in holders {
        for _ in 0..2 {
            probe.release();
            holder.run().await;
        }
        ensure!(holder.run().await, "a call that was released does not end");
    }
    Ok(())
}

/// Polled as often as it is woken, it comes to rest, and stays there.
async fn stays_calm<F: Future>(waiting: &mut Driven<F>) -> Outcome {
    let before = waiting.polls();
    waiting.run().await;
    for _ in 0..10 {
        rest().await;
        waiting.run().await;
    }
    let polls = waiting.polls() - before;
    ensure!(polls <= FEW, "polled {polls} times while nothing happened");
    Ok(())
}
