//! Half-open and what can go wrong in it; the ramp-up after it.

use tokio::time::advance;

use super::*;
use crate::breaker::{RampUp, State};

async fn half_open(half_open: HalfOpen) -> (CircuitBreaker, Guarded, Dependency) {
    let breaker = builder().half_open(half_open).build().unwrap();
    let (service, dependency) = guarded(&breaker);
    trip(&breaker);
    advance(5 * SECOND).await;
    (breaker, service, dependency)
}

#[tokio::test(start_paused = true)]
async fn an_ignored_result_in_half_open_frees_its_probe_and_changes_nothing() {
    let (breaker, mut service, _) = half_open(HalfOpen::probes(1)).await;
    for _ in 0..20 {
        assert_eq!(
            call(&mut service, Do::Refuse).await,
            Err(Error::Service(Failure("refused")))
        );
        assert_eq!(breaker.state(), State::HalfOpen);
        let probes = breaker.snapshot().probes.unwrap();
        assert_eq!((probes.out, probes.judged), (0, 0));
    }
    call(&mut service, Do::Succeed).await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_hung_probe_does_not_keep_the_breaker_half_open_for_ever() {
    let (breaker, mut service, _) = half_open(HalfOpen::probes(1).max_wait(30 * SECOND)).await;
    let mut hung = tokio_test::task::spawn(service.ready().await.unwrap().call(Do::Hang));
    tokio_test::assert_pending!(hung.poll());
    assert!(is_rejected(
        call(&mut service, Do::Succeed).await,
        Reason::NoProbeLeft
    ));
    advance(30 * SECOND).await;
    assert!(is_rejected(
        call(&mut service, Do::Succeed).await,
        Reason::Open
    ));
    advance(5 * SECOND).await;
    call(&mut service, Do::Succeed).await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
    drop(hung);
    assert_eq!(breaker.state(), State::Closed, "too late to say anything");
}

#[tokio::test(start_paused = true)]
async fn half_open_without_traffic_stays_half_open() {
    let (breaker, mut service, _) = half_open(HalfOpen::probes(1).max_wait(SECOND)).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    advance(3600 * SECOND).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    call(&mut service, Do::Succeed).await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_panicked_probe_opens_again_and_the_next_one_closes() {
    let (breaker, service, _) = half_open(HalfOpen::probes(1)).await;
    for (trips, what) in [(2, Do::PanicInCall), (3, Do::PanicInPoll)] {
        let mut service = service.clone();
        let panicked = tokio::spawn(async move { call(&mut service, what).await });
        assert!(panicked.await.is_err());
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.snapshot().totals.trips, trips);
        advance(5 * SECOND).await;
    }
    call(&mut service.clone(), Do::Succeed).await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn healthy_but_rare_probes_close_though_a_window_of_time_would_forget_them() {
    let breaker = builder()
        .window(Window::time(SECOND))
        .half_open(HalfOpen::probes(3).no_max_wait())
        .build()
        .unwrap();
    trip(&breaker);
    for _ in 0..3 {
        advance(20 * SECOND).await;
        breaker.acquire().unwrap().settle(Verdict::Success);
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn probes_that_were_never_sent_do_not_count_at_the_end_of_the_wait() {
    let (breaker, mut service, _) = half_open(HalfOpen::probes(10).max_wait(SECOND)).await;
    call(&mut service, Do::Succeed).await.unwrap();
    advance(SECOND).await;
    assert_eq!(breaker.state(), State::Closed, "all that is known is good");
}

#[tokio::test(start_paused = true)]
async fn half_open_is_judged_by_the_rate_and_not_by_one_failure() {
    let (breaker, mut service, _) = half_open(HalfOpen::probes(4).failure_rate(0.5)).await;
    for what in [Do::Fail, Do::Succeed, Do::Succeed] {
        assert_eq!(breaker.state(), State::HalfOpen);
        drop(call(&mut service, what).await);
    }
    assert_eq!(
        breaker.state(),
        State::HalfOpen,
        "the fourth could make it half"
    );
    call(&mut service, Do::Succeed).await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_at_the_moment_of_reopening_sends_no_more_than_the_probes() {
    let (breaker, service, dependency) = half_open(HalfOpen::probes(3)).await;
    let crowd: Vec<_> = (0..100)
        .map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move { call(&mut service, Do::Take(1)).await })
        })
        .collect();
    let mut rejected = 0;
    for task in crowd {
        rejected += usize::from(is_rejected(task.await.unwrap(), Reason::NoProbeLeft));
    }
    assert_eq!((dependency.calls(), rejected), (3, 97));
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.snapshot().totals.rejected_no_probe, 97);
}

#[tokio::test(start_paused = true)]
async fn the_open_interval_grows_from_trip_to_trip_and_starts_over_after_a_calm() {
    let open_for = OpenFor::exponential(SECOND, 8 * SECOND)
        .jitter(0.0)
        .reset_after(60 * SECOND);
    let breaker = builder()
        .open_for(open_for)
        .half_open(HalfOpen::probes(1))
        .build()
        .unwrap();
    trip(&breaker);
    for open in [1, 2, 4, 8, 8] {
        assert_eq!(breaker.snapshot().open_for, Some(open * SECOND));
        advance(open * SECOND).await;
        breaker.acquire().unwrap().settle(Verdict::transient());
    }
    advance(8 * SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::Success);
    advance(59 * SECOND).await;
    trip(&breaker);
    assert_eq!(
        breaker.snapshot().open_for,
        Some(8 * SECOND),
        "not calm for long enough"
    );
    advance(8 * SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::Success);
    advance(60 * SECOND).await;
    trip(&breaker);
    assert_eq!(breaker.snapshot().open_for, Some(SECOND));
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_probes_of_a_fleet() {
    let open_for = OpenFor::exponential(10 * SECOND, 60 * SECOND).jitter(0.5);
    let mut intervals: Vec<_> = (0..20)
        .map(|seed| {
            let breaker = builder().open_for(open_for).seed(seed).build().unwrap();
            trip(&breaker);
            breaker.snapshot().open_for.unwrap()
        })
        .collect();
    intervals.sort();
    intervals.dedup();
    assert!(intervals.len() > 15, "{intervals:?}");
    assert!(intervals[0] >= 5 * SECOND && intervals[intervals.len() - 1] <= 10 * SECOND);
    assert!(intervals[0] < 7 * SECOND && intervals[intervals.len() - 1] > 8 * SECOND);
}

/// Of how many calls, how many are let through.
fn admitted(breaker: &CircuitBreaker, calls: usize) -> usize {
    let admitted = |_: &usize| match breaker.acquire() {
        Ok(mut call) => {
            call.settle(Verdict::Success);
            true
        }
        Err(rejected) => {
            assert_eq!(rejected.reason(), Reason::RampingUp);
            assert!(rejected.retry_after() <= Some(SECOND));
            false
        }
    };
    (0..calls).filter(admitted).count()
}

#[tokio::test(start_paused = true)]
async fn the_load_comes_back_in_stages() {
    let breaker = builder()
        .half_open(HalfOpen::probes(1))
        .ramp_up(RampUp::stages([0.1, 0.5], 10 * SECOND))
        .seed(1)
        .build()
        .unwrap();
    trip(&breaker);
    advance(5 * SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::Success);
    assert_eq!(breaker.state(), State::RampingUp);
    let tenth = admitted(&breaker, 1000);
    assert!((60..140).contains(&tenth), "{tenth}");
    let stage = breaker.snapshot().stage.unwrap();
    assert_eq!((stage.index, stage.left), (0, 10 * SECOND));
    advance(10 * SECOND).await;
    let half = admitted(&breaker, 1000);
    assert!((430..570).contains(&half), "{half}");
    assert_eq!(breaker.snapshot().stage.unwrap().index, 1);
    advance(10 * SECOND).await;
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(admitted(&breaker, 100), 100);
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_fails_opens_again_for_longer() {
    let breaker = builder()
        .open_for(OpenFor::exponential(SECOND, 8 * SECOND).jitter(0.0))
        .half_open(HalfOpen::probes(1))
        .ramp_up(RampUp::stages([1.0], 10 * SECOND).minimum_calls(2))
        .build()
        .unwrap();
    trip(&breaker);
    advance(SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::Success);
    breaker.acquire().unwrap().settle(Verdict::transient());
    assert_eq!(breaker.state(), State::RampingUp);
    breaker.acquire().unwrap().settle(Verdict::transient());
    assert_eq!(breaker.snapshot().open_for, Some(2 * SECOND));
}
