//! Orders of an operator.

use tokio::time::advance;

use super::*;
use crate::breaker::{Override, State};

#[tokio::test(start_paused = true)]
async fn forced_open_stays_open_however_long_it_takes() {
    let breaker = builder().build().unwrap();
    let (mut service, dependency) = guarded(&breaker);
    breaker.set_override(Override::force_open("maintenance").by("ops"));
    for _ in 0..10 {
        advance(3600 * SECOND).await;
        let rejected = rejection(call(&mut service, Do::Succeed).await).unwrap();
        assert_eq!(
            (rejected.reason(), rejected.retry_after()),
            (Reason::ForcedOpen, None)
        );
    }
    assert_eq!(
        (dependency.calls(), breaker.state()),
        (0, State::ForcedOpen)
    );
    let active_override = breaker.snapshot().active_override.unwrap();
    assert_eq!(
        (active_override.kind, &*active_override.reason),
        ("force_open", "maintenance")
    );
    assert_eq!(
        (active_override.by.as_deref(), active_override.expires_in),
        (Some("ops"), None)
    );
    assert!(breaker.clear_override("done"));
    assert!(!breaker.clear_override("done twice"));
    assert_eq!(call(&mut service, Do::Succeed).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_order_ends_at_its_expiry_and_says_how_long_that_is() {
    let breaker = builder().build().unwrap();
    breaker.set_override(Override::force_open("maintenance").expires_after(60 * SECOND));
    advance(20 * SECOND).await;
    assert_eq!(
        breaker.acquire().unwrap_err().retry_after(),
        Some(40 * SECOND)
    );
    // Given again, it is renewed.
    breaker.set_override(Override::force_open("maintenance").expires_after(60 * SECOND));
    advance(59 * SECOND).await;
    assert_eq!(breaker.state(), State::ForcedOpen);
    advance(SECOND).await;
    assert!(breaker.acquire().is_ok());
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn forced_closed_never_trips_and_still_counts() {
    let breaker = builder().build().unwrap();
    let (mut service, _) = guarded(&breaker);
    trip(&breaker);
    breaker.set_override(Override::force_closed("we know"));
    for _ in 0..50 {
        assert_eq!(
            call(&mut service, Do::Fail).await,
            Err(Error::Service(Failure("failed")))
        );
    }
    let snapshot = breaker.snapshot();
    assert_eq!(
        (snapshot.state, counts(&snapshot)),
        (State::ForcedClosed, (10, 10))
    );
    breaker.clear_override("we do not know any more");
    assert_eq!(counts(&breaker.snapshot()), (0, 0));
    trip(&breaker);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn disabled_lets_all_through_and_records_nothing() {
    let breaker = builder().build().unwrap();
    let (mut service, _) = guarded(&breaker);
    breaker.set_override(Override::disable("tuning"));
    for _ in 0..50 {
        drop(call(&mut service, Do::Fail).await);
    }
    let snapshot = breaker.snapshot();
    assert_eq!(
        (snapshot.state, counts(&snapshot)),
        (State::Disabled, (0, 0))
    );
    assert_eq!(
        snapshot.totals.failures + snapshot.totals.stale + snapshot.totals.ignored,
        0
    );
}

#[tokio::test(start_paused = true)]
async fn metrics_only_goes_through_all_states_and_rejects_nothing() {
    let breaker = builder().half_open(HalfOpen::probes(1)).build().unwrap();
    let (mut service, _) = guarded(&breaker);
    breaker.set_override(Override::metrics_only("trial run"));
    for _ in 0..10 {
        assert_eq!(
            call(&mut service, Do::Fail).await,
            Err(Error::Service(Failure("failed")))
        );
    }
    let snapshot = breaker.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.totals.would_reject),
        (State::Open, 6)
    );
    assert_eq!(snapshot.totals.rejected(), 0);
    advance(5 * SECOND).await;
    call(&mut service, Do::Succeed).await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_reset_while_closed_clears_the_window() {
    let breaker = builder().build().unwrap();
    for _ in 0..3 {
        breaker.acquire().unwrap().settle(Verdict::transient());
    }
    let mut before = breaker.acquire().unwrap();
    breaker.reset("redeployed");
    before.settle(Verdict::transient());
    assert_eq!(counts(&breaker.snapshot()), (0, 0));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_reset_while_open_closes_and_starts_the_series_over() {
    let open_for = OpenFor::exponential(SECOND, 8 * SECOND).jitter(0.0);
    let breaker = builder().open_for(open_for).build().unwrap();
    trip(&breaker);
    breaker.reset("fixed");
    assert_eq!(breaker.state(), State::Closed);
    trip(&breaker);
    assert_eq!(breaker.snapshot().open_for, Some(SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_reset_does_not_overrule_an_order() {
    let breaker = builder().build().unwrap();
    breaker.set_override(Override::force_open("maintenance"));
    breaker.reset("habit");
    assert_eq!(breaker.state(), State::ForcedOpen);
}
