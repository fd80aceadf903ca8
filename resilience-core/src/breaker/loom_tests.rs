//! Every interleaving of a few threads, by loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p resilience-core --release --lib loom_breaker`.

use std::time::Duration;

use loom::{sync::Arc, thread};

use super::{
    CircuitBreaker, HalfOpen, OpenFor, Window,
    builder::CircuitBreakerBuilder,
    machine::{Machine, Outcome},
    snapshot::State,
    window::{CountWindow, Kind, Noted, Streak, Sums, TimeWindow},
};
use crate::{Clock, Moment};

const FAILURE: Outcome = Outcome {
    failed: true,
    slow: false,
    retry_after: None,
};

fn at(seconds: u64) -> Moment {
    Moment::from_nanos((1 << 42) + seconds * 1_000_000_000)
}

/// Opens at two calls of which half failed, for five seconds; one probe.
fn builder() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("test")
        .clock(Clock::tokio())
        .minimum_calls(2)
        .failure_rate(0.5)
        .open_for(OpenFor::fixed(Duration::from_secs(5)))
        .half_open(HalfOpen::probes(1))
}

fn machine(builder: CircuitBreakerBuilder) -> Machine {
    let mut rules = builder.check().unwrap().rules;
    rules.stripes = 1;
    Machine::new(rules, Some(1), at(0))
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    explore_to(3, model);
}

/// With a bound on preemptions: each multiplies the time.
fn explore_to(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn fail(machine: &Machine, now: Moment) {
    let permit = machine.pass().or_else(|| machine.admit(now, || 0).ok());
    if let Some(permit) = permit {
        let _ = machine.record(permit, Some(FAILURE), || now);
    }
}

/// A result of the first generation comes in while a reset brings the second; `later` seconds after the
/// window was last written.
fn stale_in_time_window(later: u64) {
    explore_to(2, move || {
        let window = Arc::new(TimeWindow::new(Duration::from_secs(10), 1, 0, at(0)));
        let other = Arc::clone(&window);
        let thread = thread::spawn(move || other.record(0, Kind::Failure, at(later)));
        window.reset(1, at(later));
        window.record(1, Kind::Success, at(later));
        let noted = thread.join().unwrap();
        let one = Sums {
            calls: 1,
            ..Sums::default()
        };
        assert_eq!(window.sums(1, at(later)), one);
        let counted = u64::from(noted != Noted::Stale);
        assert_eq!(
            window.total(Kind::Failure),
            counted,
            "in its own generation, or not at all"
        );
    });
}

#[test]
fn loom_breaker_a_stale_result_never_counts_in_a_newer_generation_of_a_time_window() {
    stale_in_time_window(0);
}

#[test]
fn loom_breaker_nor_does_one_that_finds_the_window_to_be_moved_on() {
    stale_in_time_window(6);
}

#[test]
fn loom_breaker_a_stale_result_never_counts_in_a_newer_generation_of_a_count_window() {
    explore(|| {
        let machine = machine(builder().window(Window::count(4)).consecutive_failures(9));
        let machine = Arc::new(machine);
        let permit = machine.pass().unwrap();
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || {
            let _ = other.record(permit, Some(FAILURE), || at(1));
        });
        machine.reset("test".into(), at(1));
        let fresh = machine.pass().unwrap();
        let _ = machine.record(fresh, Some(Outcome::default()), || at(1));
        thread.join().unwrap();
        let view = machine.view(at(1));
        assert_eq!(
            (
                view.packed.generation(),
                view.counts.calls,
                view.counts.failures
            ),
            (1, 1, 0)
        );
        assert_eq!(view.counts.consecutive_failures, 0);
        let totals = machine.totals();
        assert_eq!(
            totals.failures + totals.stale,
            1,
            "in its own generation, or not at all"
        );
    });
}

/// Two failures at the same time, neither of which is enough alone; the minimum is reached before them, or by them.
fn one_trip(preemptions: usize, window: Window, successes: u32) {
    explore_to(preemptions, move || {
        let machine = Arc::new(machine(builder().window(window)));
        for _ in 0..successes {
            let permit = machine.pass().unwrap();
            let _ = machine.record(permit, Some(Outcome::default()), || at(1));
        }
        let permits = [machine.pass().unwrap(), machine.pass().unwrap()];
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || {
            let _ = other.record(permits[0], Some(FAILURE), || at(1));
        });
        let _ = machine.record(permits[1], Some(FAILURE), || at(1));
        thread.join().unwrap();
        assert_eq!(
            State::of(machine.packed()),
            State::Open,
            "one of the two has seen both"
        );
        assert_eq!(
            (machine.packed().generation(), machine.totals().trips),
            (1, 1)
        );
    });
}

/// A quick success of the first generation comes in while a reset brings the second.
fn stale_success(window: Window) {
    explore_to(2, move || {
        let machine = Arc::new(machine(builder().window(window)));
        let permit = machine.pass().unwrap();
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || {
            if other.record_success(permit, || at(1)).is_none() {
                let _ = other.record(permit, Some(Outcome::default()), || at(1));
            }
        });
        machine.reset("test".into(), at(1));
        let fresh = machine.pass().unwrap();
        let taken = machine.record_success(fresh, || at(1));
        assert!(taken.is_some(), "in place");
        thread.join().unwrap();
        assert_eq!(machine.view(at(1)).counts.calls, 1);
        let totals = machine.totals();
        assert_eq!(totals.successes + totals.stale, 2, "once each");
    });
}

#[test]
fn loom_breaker_a_stale_success_never_counts_in_a_newer_generation_of_a_time_window() {
    stale_success(Window::time(Duration::from_secs(10)));
}

#[test]
fn loom_breaker_a_stale_success_never_counts_in_a_newer_generation_of_a_count_window() {
    stale_success(Window::count(4));
}

#[test]
fn loom_breaker_opens_exactly_once_over_a_time_window() {
    for successes in [0, 2] {
        one_trip(2, Window::time(Duration::from_secs(10)), successes);
    }
}

#[test]
fn loom_breaker_opens_exactly_once_over_a_count_window() {
    for successes in [0, 2] {
        one_trip(3, Window::count(4), successes);
    }
}

#[test]
fn loom_breaker_never_sends_more_probes_than_there_are() {
    explore(|| {
        let machine = Arc::new(machine(builder()));
        fail(&machine, at(0));
        fail(&machine, at(0));
        assert_eq!(State::of(machine.packed()), State::Open);
        // Two callers at the moment of reopening; the machine has yet to become half-open.
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || other.admit(at(5), || 0));
        let mine = machine.admit(at(5), || 0);
        let theirs = thread.join().unwrap();
        assert!(mine.is_ok() != theirs.is_ok(), "one probe, and one only");
        assert_eq!(machine.view(at(5)).probes.unwrap().out, 1);
    });
}

#[test]
fn loom_breaker_a_probe_given_back_is_neither_lost_nor_doubled() {
    explore(|| {
        let machine = Arc::new(machine(builder()));
        fail(&machine, at(0));
        fail(&machine, at(0));
        let probe = machine.admit(at(5), || 0).unwrap();
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || {
            let _ = other.record(probe, None, || at(6));
        });
        let mine = machine.admit(at(6), || 0);
        thread.join().unwrap();
        let out = machine.view(at(6)).probes.unwrap().out;
        assert_eq!(out, u32::from(mine.is_ok()));
        assert_eq!(machine.admit(at(6), || 0).is_ok(), mine.is_err());
    });
}

#[test]
fn loom_breaker_sends_no_probe_once_the_verdict_has_fallen() {
    explore(|| {
        let machine = Arc::new(machine(builder().half_open(HalfOpen::probes(2))));
        fail(&machine, at(0));
        fail(&machine, at(0));
        let probe = machine.admit(at(5), || 0).unwrap();
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || {
            let _ = other.record(probe, Some(FAILURE), || at(5));
        });
        let mine = machine.admit(at(5), || 0);
        thread.join().unwrap();
        assert_eq!(State::of(machine.packed()), State::Open);
        assert_eq!(machine.lock().probe_round.out, 0, "{mine:?}");
    });
}

#[test]
fn loom_breaker_totals_of_a_count_window_equal_its_slots_at_rest() {
    explore(|| {
        let window = Arc::new(CountWindow::new(2, 0));
        let other = Arc::clone(&window);
        let thread = thread::spawn(move || {
            other.record(0, Kind::Failure);
            other.record(0, Kind::SlowSuccess);
        });
        window.record(0, Kind::SlowFailure);
        window.record(0, Kind::Success);
        thread.join().unwrap();
        assert_eq!(window.sums(0), window.recount(0));
        assert_eq!(window.sums(0).calls, 2);
        assert_eq!(window.successes(), 1);
    });
}

#[test]
fn loom_breaker_a_count_window_is_empty_after_a_reset_whoever_was_still_writing() {
    explore(|| {
        let window = Arc::new(CountWindow::new(2, 0));
        let other = Arc::clone(&window);
        let thread = thread::spawn(move || {
            other.record(0, Kind::Failure);
            other.record(0, Kind::Failure);
        });
        window.reset(1);
        window.record(1, Kind::Success);
        thread.join().unwrap();
        let one = Sums {
            calls: 1,
            ..Sums::default()
        };
        assert_eq!((window.sums(1), window.recount(1)), (one, one));
    });
}

#[test]
fn loom_breaker_failures_in_a_row_are_counted_once_each() {
    explore(|| {
        let streak = Arc::new(Streak::new(0));
        let other = Arc::clone(&streak);
        let thread = thread::spawn(move || other.record(0, true));
        let mine = streak.record(0, true);
        let mut both = [mine, thread.join().unwrap()];
        both.sort_unstable();
        assert_eq!(both, [1, 2]);
    });
}
