//! Futures dropped at every point where they wait.

use std::time::Duration;

use tower::{Service, ServiceExt};

use super::{
    call_at_once,
    readiness::{answers, settled},
    waiting::release,
};
use crate::conformance::layer::{
    Driven, Instance, OFFENCES, Outcome, Plan, Probe, Readiness, Subject, rest,
};

/// A call is dropped after 0, 1, 2, .. polls, with time passing in between, so that it is left at every await.
pub(super) async fn a_dropped_call_gives_back_what_it_held(subject: Subject) -> Outcome {
    let mut plans = vec![Plan::Hang, Plan::Take(Duration::from_millis(30))];
    if subject.makes_further_attempts {
        // Dropped while it waits for its next attempt, and in it.
        plans.push(Plan::FailFirst(1));
    }
    for plan in plans {
        for polls in 0..6 {
            let (instance, probe) = (subject.instance().await, Probe::default());
            drop_after(&instance, &probe, plan, polls)
                .await
                .map_err(|seen| format!("{plan:?}, {polls} polls: {seen}"))?;
        }
    }
    Ok(())
}

/// The same beside calls that hold all there is: what waits in a queue is dropped there.
pub(super) async fn a_dropped_call_among_many_gives_back_what_it_held(subject: Subject) -> Outcome {
    let Some((Plan::Hang, full)) = subject.saturation else {
        return Ok(());
    };
    let (instance, probe) = (subject.instance().await, Probe::default());
    let service = instance.around(probe.clone());
    let mut holders: Vec<_> = (0..full)
        .map(|_| Driven::new(service.clone().oneshot(Plan::Hang.into())))
        .collect();
    for holder in &mut holders {
        ensure!(
            !holder.run().await,
            "a call that hangs ended in {:?}",
            holder.output()
        );
    }
    let held = (instance.held)();
    for polls in 0..6 {
        for _ in 0..OFFENCES {
            let mut extra = Driven::new(service.clone().oneshot(Plan::Hang.into()));
            for _ in 0..polls {
                extra.poll();
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        }
    }
    ensure!(
        (instance.held)() == held,
        "{} held by {held} calls",
        (instance.held)()
    );
    release(&probe, &mut holders).await?;
    drop(holders);
    settled(&instance, &probe)?;
    // As many as before find a place.
    let all = call_at_once(
        &service,
        (0..full).map(|_| Plan::Take(Duration::from_millis(1))),
    )
    .await;
    ensure!(all.iter().all(Result::is_ok), "afterwards: {all:?}");
    settled(&instance, &probe)
}

/// Callers that give up waiting for a service that is not ready.
pub(super) async fn a_dropped_wait_for_readiness_leaves_no_trace(subject: Subject) -> Outcome {
    let (instance, probe) = (subject.instance().await, Probe::default());
    let mut service = instance.around(probe.clone());
    probe.set(Readiness::Closed);
    for polls in 0..6 {
        for _ in 0..OFFENCES {
            let mut clone = service.clone();
            let mut on_a_clone = Driven::new(async { clone.ready().await.map(|_| ()) });
            let mut ready = Driven::new(async { service.ready().await.map(|_| ()) });
            for _ in 0..polls {
                on_a_clone.poll();
                ready.poll();
            }
        }
    }
    probe.set(Readiness::Open);
    answers(&mut service).await?;
    // Long after: that a caller once waited here says nothing about the next call.
    probe.set(Readiness::Closed);
    Driven::new(async { service.ready().await.map(|_| ()) }).poll();
    probe.set(Readiness::Open);
    tokio::time::advance(Duration::from_secs(3600)).await;
    answers(&mut service).await?;
    settled(&instance, &probe)
}

async fn drop_after(instance: &Instance, probe: &Probe, plan: Plan, polls: u32) -> Outcome {
    let mut service = instance.around(probe.clone());
    for _ in 0..OFFENCES {
        service.ready().await.map_err(|error| error.to_string())?;
        let mut call = Driven::new(service.call(plan.into()));
        for _ in 0..polls {
            call.poll();
            tokio::time::advance(Duration::from_millis(5)).await;
        }
        drop(call);
        rest().await;
        settled(instance, probe)?;
    }
    answers(&mut service).await?;
    settled(instance, probe)
}
